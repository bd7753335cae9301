"""`tracker=wandb`: a run of Weights & Biases, offline unless `tracker.settings.mode=online` or WANDB_MODE says so.

An offline run is a directory below `RUN/wandb`; `wandb sync`, printed at the end, sends it. The package is imported by
a background thread after the first update, and every call to it is made there, so training never waits for a network.
W&B's environment variables count where the configuration says nothing: WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError, require_choice
from gpt2x.extensions import settings
from gpt2x.runtime.console import console
from gpt2x.tracking import jsonl
from gpt2x.tracking.guarded import require_package
from gpt2x.tracking.mlflow_model import is_mlflow_model
from gpt2x.tracking.tracker import RunInfo, require_status

MAX_TAG_CHARS = 64  # W&B's limit
MODES = ("offline", "online", "disabled")
RECORD = "wandb_run.json"  # in the run directory: id and mode of its W&B run
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}
QUEUE_ITEMS = 10_000
FIRST_LINE_WAIT_S = 60.0  # a run whose first step takes longer is shown before it
INIT_WAIT_S = 10.0  # for the server, when a run begins online
FINISH_WAIT_S = 15.0  # for the server, at the end
START_WAIT_S = 60.0  # for the import and the offline part, which only read and write files


@dataclass
class Settings:
    """Keys of this tracker.

    Attributes:
        mode: `offline`, `online` or `disabled`; None: WANDB_MODE, else offline.
    """

    mode: str | None = None


class WandbTracker:
    """Queues each call for the thread that talks to W&B; `finish` waits for it."""

    def __init__(self, config: TrackerConfig, mode: str, warn: Callable[[str], None] | None = None) -> None:
        self._config, self._mode, self._warn = config, mode, warn or console.warn
        self._queue: queue.Queue[Callable[[Any], None]] = queue.Queue(QUEUE_ITEMS)
        self._thread: threading.Thread | None = None
        self._has_begun, self._is_open, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._tags: dict[str, str] = {}
        self._step, self._time_s = 0, time.time()
        self._status = "FAILED"
        self._where = ""  # what is printed at the end
        self._has_lost = False

    def start(self, run: RunInfo) -> None:
        """Start the thread; W&B is imported after the first line of metrics."""
        self._run, self._tags = run, dict(run.tags)
        self._earlier_step = jsonl.last_step(Path(run.run_dir) / "metrics.jsonl")
        self._thread = threading.Thread(target=self._mirror, name="wandb-mirror", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Queue one line."""
        self._step, self._time_s = step, time_s
        self._put(lambda run: run.log(dict(metrics) | {"_timestamp": time_s}, step=step))
        self._has_begun.set()

    def log_artifact(self, path: Path) -> None:
        """Queue a file, which is read when it is sent; a PNG becomes a picture, a directory all of its files."""
        step, time_s = self._step, self._time_s
        self._put(lambda run: _send_file(run, Path(path).absolute(), step, time_s))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queue tags, which are in the run's configuration under `tags`."""
        self._tags |= tags
        content = dict(self._tags)
        self._put(lambda run: run.config.update({"tags": content}, allow_val_change=True))

    def finish(self, status: str) -> None:
        """Close the run and print how to see it; a second call does nothing.

        Raises:
            ValueError: the status is not FINISHED, FAILED or KILLED.
        """
        require_status(status)
        if self._thread is None:
            return
        self._status = status
        self._closing.set()
        self._has_begun.set()
        self._is_open.wait(START_WAIT_S)
        self._thread.join(FINISH_WAIT_S + 5.0)  # W&B gives up before
        if self._thread.is_alive() or self._has_lost:
            self._warn(f"W&B lacks a part of this run, which metrics.jsonl has. {self._where}")
        elif self._where:
            console.notice(self._where)
        self._thread = None

    # ---- in the thread

    def _put(self, item: Callable[[Any], None]) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._has_lost = True

    def _mirror(self) -> None:
        self._has_begun.wait(FIRST_LINE_WAIT_S)  # until then the run's start needs the processor
        try:
            run = self._open()
        except Exception as error:  # whatever W&B raises must not end a training run
            self._warn(f"W&B cannot be started, the run continues without it: {_first_line(error)}")
            return
        finally:
            self._is_open.set()
        for item in self._items():
            self._try(item, run)
        self._try(lambda run: run.summary.update({"status": self._status}), run)
        self._try(lambda run: run.finish(exit_code=EXIT_CODES[self._status]), run)

    def _try(self, item: Callable[[Any], None], run: Any) -> None:
        try:
            item(run)
        except Exception as error:
            if not self._has_lost:
                self._warn(f"W&B does not accept a part of this run: {_first_line(error)}")
            self._has_lost = True

    def _items(self) -> Iterator[Callable[[Any], None]]:
        """Yield what is queued, until the run is closed and nothing is left."""
        while True:
            is_last = self._closing.is_set()  # read before the queue, so that nothing stays in it
            try:
                yield self._queue.get(timeout=0 if is_last else 1.0)
            except queue.Empty:
                if is_last:
                    return

    def _open(self) -> Any:
        """Begin the W&B run, or continue it, and send the lines that it lacks."""
        record = self._read_record()
        run_id = self._run.resume_id or record.get("id") or secrets.token_hex(4)
        try:
            run = self._init(run_id, self._mode)
        except Exception as error:
            if self._mode != "online":
                raise
            self._warn(f"W&B does not answer, so the run is kept offline: {_first_line(error)}")
            self._mode = "offline"
            _wandb().teardown()  # which keeps the id
            run = self._init(run_id, self._mode)
        is_continued = record.get("mode") == self._mode == "online"
        (Path(self._run.run_dir) / RECORD).write_text(json.dumps({"id": run_id, "mode": self._mode}) + "\n")
        if self._mode == "online":
            self._where = f"W&B: {run.url}"
        elif self._mode == "offline":
            self._where = f"W&B: wandb sync {shlex.quote(str(run.settings.sync_dir))}"
        if not is_continued:
            self._replay(run)
        return run

    def _read_record(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((Path(self._run.run_dir) / RECORD).read_text(encoding="utf-8"))
            return record if isinstance(record, dict) else {}
        return {}

    def _init(self, run_id: str, mode: Any) -> Any:
        wandb, info, config = _wandb(), self._run, self._config
        sweep_dir = info.run_dir if info.is_sweep else info.sweep_dir
        return wandb.init(
            project=info.experiment if config.experiment else _unless("WANDB_PROJECT", info.experiment),
            name=info.run_name if config.run_name else _unless("WANDB_NAME", info.run_name),
            group=_unless("WANDB_RUN_GROUP", sweep_dir.name) if sweep_dir else None,
            tags=[f"{key}:{value}"[:MAX_TAG_CHARS] for key, value in config.tags.items()] or None,
            notes=config.description,
            id=run_id,
            resume="allow" if mode == "online" else None,
            config=dict(info.params) | {"tags": dict(info.tags)},
            dir=str(info.run_dir),
            settings=wandb.Settings(
                mode=mode, silent=True, console="off", save_code=False, reinit="create_new", init_timeout=INIT_WAIT_S,
                finish_timeout=FINISH_WAIT_S, login_timeout=1.0, x_disable_stats=not config.system_metrics,
            ),
        )  # fmt: skip

    def _replay(self, run: Any) -> None:
        """Send the lines of earlier parts of the run: W&B has none of them, or they are in an older directory."""
        if self._earlier_step is None:
            return
        for row in jsonl.read(Path(self._run.run_dir) / "metrics.jsonl"):
            step, time_s = row.pop("step"), row.pop("time")
            if step <= self._earlier_step:
                run.log(row | {"_timestamp": time_s}, step=step)


def _wandb() -> Any:
    """Import W&B, without its messages and without its reports of errors to its developers."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


def _send_file(run: Any, path: Path, step: int, time_s: float) -> None:
    if path.suffix == ".png":
        run.log({path.stem: _wandb().Image(str(path)), "_timestamp": time_s}, step=step)
        return
    if is_mlflow_model(path):  # has the weights
        return
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.exists():  # named with its directory: W&B has a config.yaml of its own
            run.save(str(file), base_path=str(path.parent.parent), policy="now")


def _unless(variable: str, value: str) -> str | None:
    """Return None, so that W&B reads the environment variable, if it is set."""
    return None if os.environ.get(variable) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _require_login() -> None:
    """Raise UserError if W&B would ask for a key; the server is not contacted."""
    os.environ["WANDB_MODE"] = "online"  # otherwise `login` answers for a mode that the configuration replaces
    try:
        reason = "" if _wandb().login(prompt=False, verify=False) else "nobody has logged in"
    except Exception as error:  # such as a key of a wrong form
        reason = _first_line(error)
    if reason:
        raise UserError(
            f"tracker=wandb cannot be online ({reason}): run wandb login, set WANDB_API_KEY, or use "
            "tracker.settings.mode=offline, whose runs can be sent later."
        )


def create(config: TrackerConfig, outputs: Path) -> WandbTracker:
    """Return the mirror in Weights & Biases.

    Raises:
        UserError: the package is not installed, there is no such mode, or nobody has logged in for `online`.
    """
    require_package("wandb", "wandb")
    chosen = settings(Settings, config.settings, "tracker.settings").mode
    mode = chosen or os.environ.get("WANDB_MODE") or "offline"
    require_choice("tracker.settings.mode" if chosen else "the environment variable WANDB_MODE", mode, MODES)
    if mode == "online":
        _require_login()
    return WandbTracker(config, mode)
