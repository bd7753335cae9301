"""Trackers that cannot stop a run, and several trackers at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.tracking.tracker import RunInfo, Tracker, require_status


class Guarded:
    """A tracker that is left alone after its first failure, which is said once; at the end its files are repaired.

    Args:
        name: of the tracker.
        tracker: does the work in the caller's thread.
        warn: called with the failure; None: the console.
        repair: writes to a run directory what the tracker's files lack of `metrics.jsonl`; None: it has none.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        warn: Callable[[str], None] | None = None,
        repair: Callable[[Path], bool] | None = None,
    ) -> None:
        self._name, self._tracker, self._warn, self._repair = name, tracker, warn or console.warn, repair
        self._has_failed = False
        self._run_dir = Path()

    def start(self, run: RunInfo) -> None:
        """Open the run.

        Raises:
            UserError: as the tracker.
        """
        self._run_dir = Path(run.run_dir)
        self._try(lambda: self._tracker.start(run))

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Mirror one line."""
        self._try(lambda: self._tracker.log_metrics(step, time_s, metrics))

    def log_artifact(self, path: Path) -> None:
        """Mirror a file or a directory."""
        self._try(lambda: self._tracker.log_artifact(path))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, if the tracker has some."""
        self._try(lambda: self._tracker.set_tags(tags))

    def finish(self, status: str) -> None:
        """Close the run.

        Raises:
            ValueError: the status is not FINISHED, FAILED or KILLED.
        """
        require_status(status)
        self._try(lambda: self._tracker.finish(status))
        if not self._has_failed or self._repair is None:
            return
        try:
            self._repair(self._run_dir)
            console.notice(f"tracker={self._name}: what it had missed was written from metrics.jsonl")
        except Exception as error:  # a disk that is still full
            self._warn(
                f"tracker={self._name} lacks a part of this run, which metrics.jsonl has ({_first_line(error)}). Write "
                f"it later: gpt2x sync {shlex.quote(str(self._run_dir))}"
            )

    def _try(self, call: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except UserError:
            raise
        except Exception as error:  # whatever a library raises must not end a training run
            self._has_failed = True
            self._warn(f"tracker={self._name} has failed, the run continues without it: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class Several:
    """Several trackers as one; each gets the same calls, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def start(self, run: RunInfo) -> None:
        """Open the run in each.

        Raises:
            UserError: as the trackers; those that are open already are closed as FAILED.
        """
        for number, tracker in enumerate(self._trackers):
            try:
                tracker.start(run)
            except UserError:
                for earlier in self._trackers[:number]:
                    earlier.finish("FAILED")
                raise

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Mirror one line."""
        for tracker in self._trackers:
            tracker.log_metrics(step, time_s, metrics)

    def log_artifact(self, path: Path) -> None:
        """Mirror a file or a directory."""
        for tracker in self._trackers:
            tracker.log_artifact(path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for tracker in self._trackers:
            tracker.set_tags(tags)

    def finish(self, status: str) -> None:
        """Close the run in each."""
        for tracker in self._trackers:
            tracker.finish(status)


def require_package(tracker: str, package: str) -> None:
    """Raise UserError if the package of a tracker is not installed, without importing it."""
    if find_spec(package) is None:
        raise UserError(
            f"tracker={tracker}: the package {package} is not installed; pip install 'gpt2x[{tracker}]', or leave this "
            "tracker out."
        )
