"""Numbers that all processes compare now and then, so that all decide alike at the same point of their work."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gpt2x.parallel.mesh import Mesh

INTERVAL_S = 2.0  # between two exchanges; one of two processes on the CPU takes about a millisecond


class Poll:
    """The largest of all processes' numbers, about every two seconds, at the same call on every process.

    An exchange at each update would cost too much, and clocks do not say at which update it is time for one. So the
    processes agree, in each exchange, on the number of calls until the next one: from the time that the calls since the
    last one took on the slowest process. The number at most doubles, since calls may become slower.

    Args:
        mesh: the processes. A process that is alone compares at every call.
        clock: seconds, for tests.
    """

    def __init__(self, mesh: Mesh, clock: Callable[[], float] = time.monotonic):
        self.mesh, self.clock = mesh, clock
        self.calls = self.interval = 1  # until the next exchange, and from the last one to the next
        self.since = clock()

    def __call__(self, *numbers: float, now: bool = False) -> list[float]:
        """Return the largest of each number over all processes, or zeros if this call does not compare them.

        Args:
            numbers: of this process, not negative; as many on each.
            now: compare at this call, whatever was agreed; the same on every process.
        """
        if self.mesh.world is None:
            return list(numbers)
        self.calls -= 1
        if self.calls and not now:
            return [0.0] * len(numbers)
        seconds, *largest = self.mesh.gather(np.array([self.clock() - self.since, *numbers])).max(axis=0)
        num_calls = self.interval - self.calls
        fitting = int(INTERVAL_S * num_calls / max(seconds, 1e-6))
        self.calls = self.interval = max(1, min(2 * self.interval, fitting))
        self.since = self.clock()
        return [float(number) for number in largest]
