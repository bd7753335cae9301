"""When processes compare, without any process."""

from itertools import pairwise

import numpy as np
import pytest

from gpt2x.parallel.poll import INTERVAL_S, Poll


class FakeMesh:
    """One of two processes; the other one's numbers are `other`, its clock is this one's."""

    def __init__(self, other=()):
        self.world, self.other, self.exchanges = "world", other, 0

    def gather(self, values):
        self.exchanges += 1
        return np.array([values, [0.0, *self.other] if self.other else values * 0])


@pytest.mark.parametrize(("step_s", "most"), [(0.001, 16), (0.1, 14), (5.0, 200)])
def test_it_compares_about_every_two_seconds_whatever_an_update_takes(step_s, most):
    mesh, now, calls_between = FakeMesh((0.0,)), [0.0], []
    poll, last = Poll(mesh, lambda: now[0]), 0
    for call in range(200):
        now[0] += step_s
        before = mesh.exchanges
        assert poll(0.0) == [0.0]
        if mesh.exchanges > before:
            calls_between.append(call - last)
            last = call
    assert mesh.exchanges <= most
    longest = max(calls_between)
    assert longest * step_s <= max(INTERVAL_S, step_s)
    assert all(later <= 2 * max(1, earlier) for earlier, later in pairwise(calls_between))


def test_the_largest_number_of_any_process_counts():
    poll = Poll(FakeMesh((15.0, 0.0)), lambda: 0.0)
    assert poll(0.0, 1.0) == [15.0, 1.0]
    assert poll(0.0, 1.0) == [0.0, 0.0], "not compared"
    assert poll(0.0, 1.0, now=True) == [15.0, 1.0]


def test_a_process_that_is_alone_compares_at_each_call():
    mesh = FakeMesh()
    mesh.world = None
    poll = Poll(mesh)
    assert [poll(number) for number in (0.0, 3.0, 0.0)] == [[0.0], [3.0], [0.0]]
    assert mesh.exchanges == 0
