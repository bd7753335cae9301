"""The rate that MFU is relative to."""

from __future__ import annotations

from gpt2x.runtime.console import console


class Peak:
    """A device's peak, as measured at the start or as configured; an update that beats it raises it.

    A measurement on a busy machine is too low, and a device cannot be used by more than 100 %.

    Args:
        tflops: in TFLOP/s, of one device at the precision that is used.
    """

    def __init__(self, tflops: float):
        self.tflops = tflops
        self._has_said = False

    def mfu(self, tflops: float) -> float:
        """Return the share of the peak that an update has used, 0 to 1; say so the first time that it is raised."""
        if tflops > self.tflops:
            if not self._has_said:
                console.notice(
                    f"an update ran at {tflops:.3g} TFLOP/s, faster than the peak of {self.tflops:.3g}, which was "
                    "measured on a busy machine or configured too low; mfu is relative to the fastest update from here "
                    "on. Set hardware.peak_tflops to compare runs."
                )
            self.tflops, self._has_said = tflops, True
        return tflops / self.tflops
