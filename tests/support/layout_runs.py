"""Run the jobs of `tests/support/layout_jobs.py`: all of a number of processes in one launch, one after the other.

A test names the jobs that it reads by the mark `needs` and gets them from the fixture `layout_runs`. What the selected
tests need is run once per session: a job that fails ends its launch, and the jobs after it get a new one.

`python -m tests.support.layout_runs FOLDER JOB...` is one launch; its processes run the same with FOLDER and JOBs.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from gpt2x.commands.configuration import read_config, save_config
from gpt2x.commands.entry import command, open_run_dir, run_here
from gpt2x.config import LaunchConfig, ParallelConfig, TrainConfig
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.exits import guarded, run_and_leave
from gpt2x.runtime.interrupt import catch
from gpt2x.runtime.role import Role, read_role
from tests.ascend.reference_ops import ascend_branch
from tests.support.configs import typed
from tests.support.layout_jobs import JOBS, REFERENCES, Job, run_dir
from tests.support.models import CPU
from tests.support.once import needed, once
from tests.support.small_runs import ROOT, corpus

if TYPE_CHECKING:
    from gpt2x.parallel.mesh import Mesh

STDOUT, STDERR, DONE = "stdout.txt", "stderr.txt", "done"  # in a run directory
FAILURES = "failures.json"  # in the session's directory
LAUNCH_TIMEOUT_S = 900
LAUNCHED = [pytest.mark.launch, pytest.mark.timeout(2400)]  # of a module; the first test waits for all launches
UNCACHED = {"train": ["trainer.compile_cache=false"]}  # MindSpore takes the place of its cache once per process


# ---- in tests


class LayoutRuns:
    """The jobs of a session."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures: dict[str, str] = json.loads((folder / FAILURES).read_text(encoding="utf-8"))

    def of(self, name: str) -> Path:
        """Return the run directory of a job; fail with what it said if it failed."""
        if name in self.failures:
            pytest.fail(self.failures[name], pytrace=False)
        directory = run_dir(self.folder, name)
        assert (directory / DONE).exists(), f"the mark `needs` of this test does not name {name!r}"
        return directory

    def printed(self, name: str) -> tuple[str, str]:
        """Return what a job printed: stdout, stderr."""
        directory = self.of(name)
        return tuple((directory / file).read_text(encoding="utf-8") for file in (STDOUT, STDERR))


@pytest.fixture(scope="session")
def layout_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayoutRuns:
    """Run the jobs that the selected tests read."""
    wanted = with_needs({name for name in needed(request.session.items) if name in JOBS})
    return LayoutRuns(once(tmp_path_factory, "layouts", lambda folder: run_all(folder, wanted)))


def each(names: list[str], *marks: pytest.MarkDecorator) -> list:
    """Return parameters that are jobs; a test reads its job, and the job of one process that it has to equal."""
    return [
        pytest.param(name, marks=[pytest.mark.needs(name, REFERENCES.get(name, name)), *marks], id=name)
        for name in names
    ]


# ---- for a session


def with_needs(names: set[str]) -> list[str]:
    """Return the jobs, with those that have to run before them, in the order of the list of jobs."""
    needed = {need for name in names for need in JOBS[name].needs} - names
    return with_needs(names | needed) if needed else [name for name in JOBS if name in names]


def run_all(folder: Path, names: list[str]) -> None:
    """Run jobs, and write down which failed, and how."""
    corpus(folder)
    failures: dict[str, str] = {}
    while batch := next_batch(folder, names, failures):
        error = run_batch(folder, batch)
        failed = next((name for name in batch if not is_done(folder, name)), None)
        if failed:
            failures[failed] = f"the job {failed!r} failed:\n{error}"
        for name in names:
            lost = [need for need in JOBS[name].needs if need in failures]
            if lost and name not in failures:
                failures[name] = f"the job {name!r} starts from {lost[0]!r}, which failed"
    (folder / FAILURES).write_text(json.dumps(failures), encoding="utf-8")


def is_done(folder: Path, name: str) -> bool:
    return (run_dir(folder, name) / DONE).exists()


def next_batch(folder: Path, names: list[str], failures: dict[str, str]) -> list[str]:
    """Return jobs that one launch can run in this order: all of the fewest processes of which one can start."""
    left = [name for name in names if not is_done(folder, name) and name not in failures]

    def batch_of(processes: int) -> list[str]:
        batch: list[str] = []
        for name in left:
            job = JOBS[name]
            if job.processes == processes and all(is_done(folder, need) or need in batch for need in job.needs):
                if job.is_typed and not batch:
                    return [name]
                if not job.is_typed:
                    batch.append(name)
        return batch

    return next(filter(None, map(batch_of, sorted({JOBS[name].processes for name in left}))), [])


def run_batch(folder: Path, names: list[str]) -> str:
    """Run jobs in one launch, or a typed one as its own command; return what was said of a failure."""
    alone = JOBS[names[0]] if JOBS[names[0]].is_typed else None
    command = [sys.executable, "-m", "tests.support.layout_runs", str(folder), *names]
    if alone:
        directory = run_dir(folder, names[0])
        command = [sys.executable, f"{alone.entry}.py", *alone.arguments(folder), f"hydra.run.dir={directory}"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LAUNCH_TIMEOUT_S, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # its processes end with it
        return f"not finished after {LAUNCH_TIMEOUT_S} s"
    if alone and done.returncode == 0:
        (directory / STDOUT).write_text(done.stdout, encoding="utf-8")
        (directory / STDERR).write_text(done.stderr, encoding="utf-8")
        (directory / DONE).touch()
    return f"status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


# ---- in a launch


def main(folder: Path, names: list[str]) -> None:
    """Start the processes of these jobs."""
    catch()
    processes = JOBS[names[0]].processes
    config = TrainConfig(parallel=ParallelConfig(name="jobs", data=processes))
    command = [sys.executable, "-m", "tests.support.layout_runs", str(folder), *names]
    launch.launch(command, config, folder / "launches" / f"{processes}")


def work(folder: Path, names: list[str]) -> None:
    """Run jobs one after the other as one process of a launch."""
    os.environ.setdefault("GLOG_v", "3")
    os.environ.update(launch.timeouts(LaunchConfig(), "CPU"))
    role = read_role(os.environ)
    if role.rank:
        console.silence()
    waiting = all_processes(JOBS[names[0]].processes, role)
    for name in names:
        job, directory = JOBS[name], run_dir(folder, name)
        with printing_to(directory, role):
            if role.rank == 0:
                begin(job, folder, directory)
            waiting.agree()
            with unpictured(), computed_as(job):
                run_here(job.entry, read_config(job.entry, directory / "config.yaml"), role, directory)
        gc.collect()  # graphs hang in circles of cells
        waiting.agree()
        if role.rank == 0:
            (directory / DONE).touch()


def all_processes(processes: int, role: Role) -> Mesh:
    """Return a mesh of all processes of the launch, which wait for each other between jobs."""
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.runtime.device import set_up_device

    set_up_device(CPU)
    return Mesh(ParallelConfig(name="jobs", data=processes), "CPU", role=role)


def unpictured() -> contextlib.AbstractContextManager:
    """Leave out the pictures of the losses, which take a second and of which no test asks here."""
    return mock.patch("gpt2x.commands.train.plot_loss")


def computed_as(job: Job) -> contextlib.AbstractContextManager:
    """Let the Ascend branch compute if the job asks for it."""
    return ascend_branch() if job.is_ascend else contextlib.nullcontext()


def begin(job: Job, folder: Path, directory: Path) -> None:
    """Do what the launcher of a typed command does before it starts the processes."""
    if job.before:
        job.before(folder)
    config = typed(job.entry, *job.arguments(folder), *UNCACHED.get(job.entry, []))
    decision = command(job.entry).decide(config, directory, Role())
    open_run_dir(job.entry, decision)
    save_config(decision.resolved, directory / "config.yaml")


@contextlib.contextmanager
def printing_to(directory: Path, role: Role) -> Iterator[None]:
    """Write what the main process prints into files of the run directory; a fault shows on stderr as well."""
    if role.rank:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (
        (directory / STDOUT).open("w", encoding="utf-8") as out,
        (directory / STDERR).open("w", encoding="utf-8") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), sys.argv[2:]
    if read_role(os.environ).is_worker:
        launch.end_with_launcher()
        launch.keep_to_cores()
        run_and_leave(lambda: work(*arguments))
    sys.exit(guarded(lambda: main(*arguments)))
