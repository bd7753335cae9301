"""`tracker=tensorboard`: event files in the run directory, by the package `tensorboard`; TensorFlow is not needed.

They are in `RUN/tensorboard/NAME`, because TensorBoard calls a run by its directory: `tensorboard --logdir outputs`
shows what the run is called. Scalars are stored as float32.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2x.config import TrackerConfig
from gpt2x.config.keys import spell
from gpt2x.tracking import jsonl
from gpt2x.tracking.guarded import Guarded, require_package
from gpt2x.tracking.tracker import RunInfo

FOLDER = "tensorboard"  # in the run directory
EVENTS = "*/events.out.tfevents.*"
TEXTS = {".yaml": "yaml", ".json": "json", ".txt": "", ".md": ""}  # files that are shown -> the language of their text
MAX_TEXT_BYTES = 200_000
MAX_NAME_CHARS = 120
PNG_SIZE = slice(16, 24)  # width and height in the header of a PNG


class TensorBoardTracker:
    """Writes events and flushes each line, so that a killed run loses nothing.

    The package (half a second) is imported after the first update. A resumed run writes a further file, whose first
    event tells TensorBoard to drop what was logged after the checkpoint.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self._about = {"description": config.description} if config.description else {}
        self._about |= {str(key): str(value) for key, value in config.tags.items()}
        self._writer: Any = None
        self._early: list[Path] = []  # artifacts before the first line
        self._tags: dict[str, str] = {}
        self._step = 0

    def start(self, run: RunInfo) -> None:
        """Note what is to be written with the first line."""
        self._run, self._tags = run, self._about | dict(run.tags)

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Write one event with all scalars of a line."""
        is_first = self._writer is None
        self._step = step
        if is_first:
            self._open(step)
        self._scalars(step, time_s, metrics)
        if is_first:
            self._introduce()
        self._writer.flush()

    def log_artifact(self, path: Path) -> None:
        """Show a picture or a text; other files and directories are not for TensorBoard."""
        if self._writer is None:
            self._early.append(path)
        elif path.suffix == ".png":
            self._picture(path)
        elif path.suffix in TEXTS and path.stat().st_size <= MAX_TEXT_BYTES:
            self._text(path.name, f"```{TEXTS[path.suffix]}\n{path.read_text(encoding='utf-8', errors='replace')}\n```")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep tags for the text `tags`, which is written at the end once more."""
        self._tags |= tags

    def finish(self, status: str) -> None:
        """Write the tags with the status, and close the file.

        The table of hyperparameters shows success. It keeps the first status that it reads, so a failed or killed run,
        which can be resumed, leaves none there.
        """
        if self._writer is None:
            if self._has_events():
                return
            self._open(None)
            self._introduce()
        self._text("tags", _table(self._tags | {"status": status}))
        if status == "FINISHED":
            self._session_end()
        self._writer.close()

    # ---- files

    def _open(self, first_step: int | None) -> None:
        """Begin an event file; the first one of a run gets what `metrics.jsonl` has before `first_step`."""
        is_new = not self._has_events()
        self._begin_file(self._folder(), first_step or 0)
        metrics = Path(self._run.run_dir) / "metrics.jsonl"
        for row in jsonl.read(metrics) if is_new and metrics.exists() else []:
            if first_step is None or row["step"] < first_step:
                self._scalars(row.pop("step"), row.pop("time"), row)

    def repair(self, run_dir: Path) -> bool:
        """Write all lines of `metrics.jsonl` to a new file if there is one that no file has; return whether there is.

        The new file tells TensorBoard to drop the scalars of the others.

        Raises:
            OSError, ValueError: a file cannot be read or written, or `metrics.jsonl` is damaged.
        """
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        rows = jsonl.read(run_dir / "metrics.jsonl")
        paths = sorted((run_dir / FOLDER).glob(EVENTS))
        events = (event for path in paths for event in EventFileLoader(str(path)).Load())
        if {row["step"] for row in rows} <= {event.step for event in events if event.HasField("summary")}:
            return False
        self._begin_file(paths[0].parent if paths else run_dir / FOLDER / run_dir.name, 0)
        for row in rows:
            self._scalars(row.pop("step"), row.pop("time"), row)
        self._writer.close()
        return True

    def _begin_file(self, folder: Path, first_step: int) -> None:
        """Begin an event file, which tells TensorBoard to drop what other files have from a step on."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._event(time.time(), 0, file_version="brain.Event:2")
        self._event(time.time(), first_step, session_log=SessionLog(status=SessionLog.START))

    def _folder(self) -> Path:
        """Return the directory of the event files: of a resumed run the one that there is."""
        parent = Path(self._run.run_dir) / FOLDER
        earlier = sorted(path.parent for path in parent.glob(EVENTS))
        name = re.sub(r"[^\w.=,+ \[\]-]+", "-", self._run.run_name).strip(" .-")[:MAX_NAME_CHARS]
        return earlier[0] if earlier else parent / (name or "run")

    def _has_events(self) -> bool:
        return any((Path(self._run.run_dir) / FOLDER).glob(EVENTS))

    # ---- events

    def _event(self, time_s: float, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time_s, step=step, **content).SerializeToString())

    def _scalars(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._event(time_s, step, summary=Summary(value=values))

    def _introduce(self) -> None:
        """Write the hyperparameters, the tags and what was logged before the first line."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        params = dict(_leaves("", self._run.params))
        trial = f"{self._run.run_name} {Path(self._run.run_dir).name}"
        self._event(time.time(), 0, summary=hparams_pb(params, trial_id=trial))
        about = {"name": self._run.run_name, "experiment": self._run.experiment}
        self._tags = about | self._tags
        self._text("tags", _table(self._tags))
        for path in self._early:
            if path.exists():
                self.log_artifact(path)

    def _session_end(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
        self._event(time.time(), 0, summary=Summary(value=[value]))

    def _text(self, name: str, markdown: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._event(time.time(), self._step, summary=text_pb(name, markdown))

    def _picture(self, path: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        content = path.read_bytes()
        width, height = struct.unpack(">II", content[PNG_SIZE])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        self._event(time.time(), self._step, summary=Summary(value=[Summary.Value(tag=path.stem, image=image)]))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, bool | float | str]]:
    """Yield dotted keys and values of a nested configuration; other values than numbers and texts as they are typed."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), child)
    else:
        yield prefix, value if isinstance(value, bool | int | float | str) else spell(value)


def _table(values: Mapping[str, str]) -> str:
    """Return a table in Markdown."""
    cells = [(key, value.replace("|", "\\|").replace("\n", " ")) for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])


def create(config: TrackerConfig, outputs: Path) -> Guarded:
    """Return the writer of event files.

    Raises:
        UserError: the package `tensorboard` is not installed.
    """
    require_package("tensorboard", "tensorboard")
    return Guarded("tensorboard", TensorBoardTracker(config), repair=repair)


def repair(run_dir: Path) -> bool:
    """Write to the event files of a run directory what they lack; return whether they lacked something.

    Raises:
        UserError: the package `tensorboard` is not installed.
        OSError, ValueError: a file cannot be read or written, or `metrics.jsonl` is damaged.
    """
    require_package("tensorboard", "tensorboard")
    return TensorBoardTracker(TrackerConfig(name="tensorboard")).repair(run_dir)
