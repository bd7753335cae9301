"""A window of updates under MindSpore's profiler (trainer.profile_steps); each rank writes its own folder.

`mindspore.profiler.profile` with a schedule is how MindSpore 2.10 documents it:
https://www.mindspore.cn/tutorials/en/r2.10.0/debug/profiler.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mindspore import profiler

from gpt2x.runtime.console import Progress, console

FOLDER = "profile"  # in the run directory


class ProfileWindow:
    """The updates that are profiled.

    Args:
        steps: the first and the last; None: no update.
        folder: where the ranks write.
        rank: of this process.
        is_cpu: whether the device is the CPU; Ascend's profiler also records the device.
    """

    def __init__(self, steps: list[int] | None, folder: Path, rank: int, is_cpu: bool):
        self.first, self.last = steps or (0, 0)
        self.folder, self.worker, self.is_cpu = folder, f"rank_{rank}", is_cpu
        self.profile: profiler.profile | None = None
        self.step = 0  # the newest that was recorded

    def covers(self, step: int) -> bool:
        """Return whether this update is profiled; its speed is not that of the others."""
        return self.first <= step <= self.last

    @contextlib.contextmanager
    def update(self, step: int, progress: Progress) -> Iterator[None]:
        """Record what the block computes if it is an update of the window; write all after the last one."""
        if not self.covers(step):
            yield
            return
        if self.profile is None:
            self.profile = self.create()
            self.profile.start()
        yield
        self.step = step
        if step < self.last:
            self.profile.step()
            return
        with progress.busy("writing the profile"), self.log():
            self.profile.step()  # the schedule ends: MindSpore reads what it recorded and writes its tables
        self.close()

    def create(self) -> profiler.profile:
        """Return MindSpore's profiler for this window, not yet started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kinds, level = [profiler.ProfilerActivity.CPU], None
        if not self.is_cpu:
            kinds.append(profiler.ProfilerActivity.NPU)
            # level 1 has the parts of each collective and how busy the units of a core are; level 0 has neither
            level = profiler._ExperimentalConfig(
                profiler_level=profiler.ProfilerLevel.Level1, aic_metrics=profiler.AicoreMetrics.PipeUtilization
            )
        return profiler.profile(
            activities=kinds,
            start_profile=False,
            schedule=profiler.schedule(wait=0, active=self.last - self.first + 1, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(str(self.folder), self.worker),
            experimental_config=level,
        )

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """Write to a file what MindSpore prints while it reads the records."""
        path = self.folder / f"{self.worker}.log"
        with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            yield

    def close(self) -> None:
        """Stop, within the window too, and say where the tables are; MindSpore raises none of its own errors."""
        if self.profile is None:
            return
        with self.log():
            self.profile.stop()
        self.profile = None
        if list(self.folder.glob(f"{self.worker}_*/ASCEND_PROFILER_OUTPUT/*")):
            console.notice(f"profile of steps {self.first} to {self.step}: {self.folder}")
        else:
            console.warn(f"MindSpore's profiler wrote no tables to {self.folder}; see {self.worker}.log there")
