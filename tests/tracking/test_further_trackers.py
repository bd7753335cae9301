"""`csv`, `tensorboard` and `wandb`, whose packages are not replaced: what they write is read back."""

import contextlib
import csv
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from gpt2x.commands.hydra_entry import compose_config
from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import MetricsLog, RunInfo, create_tracker, jsonl
from gpt2x.tracking.guarded import Guarded
from gpt2x.tracking.repair import repair_files
from gpt2x.tracking.tracker import tracked
from tests.commands import sync as main
from tests.support.decide import refusal
from tests.support.small_runs import ROOT, run_dirs

TAGS = {"layout": "single", "command": "python train.py a='x|y'"}


def mirror(run_dir, steps, *trackers, status="FINISHED", run_name="gpt2_tiny/pydocs", **settings):
    """A run of `steps`, of which every second one evaluates; its tracker."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("seed: 0\n")
    picture(run_dir / "loss.png")
    name, *also = trackers
    config = TrackerConfig(name=name, also=also, system_metrics=False, settings=settings)
    tracker, log = create_tracker(config, run_dir.parent), MetricsLog(run_dir / "metrics.jsonl")
    params = {"optimizer": {"learning_rate": 1e-3}, "load": None, "plan": "false", "sizes": [1, 2]}
    with contextlib.suppress(KeyboardInterrupt):  # noqa: SIM117
        with tracked(tracker, RunInfo("pretrain", run_name, run_dir, params, TAGS), ("loss.png",)):
            for step in steps:
                metrics = {"train/loss": math.nan if step == 3 else 10 / step}
                metrics |= {"val/loss": 5 / step} if step % 2 == 0 else {}
                tracker.log_metrics(*log.append(step, metrics))
            tracker.set_tags({"checkpoint.newest": "step_6"})
            if status == "KILLED":
                raise KeyboardInterrupt
    log.close()
    return tracker


def picture(path):
    from PIL import Image

    Image.new("RGB", (3, 2)).save(path)


def killed_and_resumed(run_dir, *trackers, **settings):
    """Six steps, of which a checkpoint has four, and four more in a second start."""
    mirror(run_dir, range(1, 7), *trackers, status="KILLED", **settings)
    MetricsLog(run_dir / "metrics.jsonl").rewind(4)
    mirror(run_dir, range(5, 9), *trackers, run_name="renamed", **settings)


# ---- csv


def test_the_table_has_each_step_once_with_columns_that_appear_later(tmp_path):
    killed_and_resumed(tmp_path / "run", "csv")
    text = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "step,time,train/loss,val/loss"
    rows = list(csv.DictReader(text.splitlines()))
    truth = jsonl.read(tmp_path / "run" / "metrics.jsonl")
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    for row, line in zip(rows, truth, strict=True):
        values = {key: float(value) for key, value in row.items() if value}
        assert str(values) == str({key: float(value) for key, value in line.items()}), "bit for bit, nan included"
    assert [path.name for path in (tmp_path / "run").glob("*.part")] == []


def test_a_table_that_cannot_be_written_ends_the_table_and_not_the_run(tmp_path, capsys):
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)
    mirror(tmp_path / "run", range(1, 5), "csv")
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 2
    assert "tracker=csv has failed, the run continues without it: " in printed
    assert f"Write it later: gpt2x sync {tmp_path / 'run'}" in printed
    assert len(jsonl.read(tmp_path / "run" / "metrics.jsonl")) == 4
    (tmp_path / "run" / "metrics.csv").rmdir()
    (tmp_path / "run" / "config.yaml").write_text("tracker: {name: csv}\n")
    assert main([str(tmp_path)]) == 0
    assert "tracker=csv written from metrics.jsonl" in capsys.readouterr().out
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 5
    assert repair_files(tmp_path) == []


def test_a_table_that_fails_for_a_while_is_whole_at_the_end(tmp_path, capsys, monkeypatch):
    tracker, log = create_tracker(TrackerConfig(name="csv"), tmp_path), MetricsLog(tmp_path / "run" / "metrics.jsonl")
    tracker.start(RunInfo("e", "r", tmp_path / "run"))
    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            if step == 2:
                patch.setattr("gpt2x.tracking.trackers.csv._text", lambda *_: 1 / 0)
            tracker.log_metrics(*log.append(step, {"a": 1.0}))
    tracker.finish("FINISHED")
    assert [line[0] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()] == ["s", "1", "2", "3"]
    printed = capsys.readouterr().out
    assert "division by zero" in printed
    assert "what it had missed was written" in printed


@pytest.mark.run
def test_lines_that_event_files_lack_are_written_again(tmp_path):
    """Each step once, as TensorBoard shows it."""
    run_dir = tmp_path / "run"
    mirror(run_dir, range(1, 5), "tensorboard")
    log = MetricsLog(run_dir / "metrics.jsonl")
    for step in (5, 6):  # as a tracker that has failed misses them
        log.append(step, {"train/loss": float(step)})
    (run_dir / "config.yaml").write_text("tracker: {name: mlflow, also: [tensorboard]}\n")
    assert repair_files(tmp_path) == [f"{run_dir}: tracker=tensorboard"]
    assert repair_files(tmp_path) == []
    _, _, tensors = events(tmp_path)
    assert [event.step for event in tensors["train/loss"]] == [1, 2, 3, 4, 5, 6]


# ---- tensorboard


def events(folder):
    """(tag -> steps, tag -> values, tag -> plugin) of the only TensorBoard run below `folder`, and its name."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    board = EventMultiplexer().AddRunsFromDirectory(str(folder))
    board.Reload()
    (name,) = board.Runs()
    plugins = {tag: value.plugin_data.plugin_name for tag, value in board.AllSummaryMetadata()[name].items()}
    tensors = {tag: board.GetAccumulator(name).Tensors(tag) for tag in plugins}
    return name, plugins, tensors


def scalars(tensors, tag):
    return {event.step: event.tensor_proto.float_val[0] for event in tensors[tag]}


@pytest.mark.run
def test_tensorboard_shows_the_run_by_its_name_and_a_resumed_one_once(tmp_path):
    killed_and_resumed(tmp_path / "outputs" / "2026-01-31", "tensorboard")
    name, plugins, tensors = events(tmp_path / "outputs")
    assert name == "2026-01-31/tensorboard/gpt2_tiny-pydocs", "also of the part that has a different name"
    assert plugins == {
        "train/loss": "scalars", "val/loss": "scalars", "loss": "images", "tags": "text", "config.yaml": "text",
        "_hparams_/session_start_info": "hparams", "_hparams_/session_end_info": "hparams",
    }  # fmt: skip
    losses = scalars(tensors, "train/loss")
    assert list(losses) == list(range(1, 9))
    assert math.isnan(losses.pop(3))
    assert losses == {step: np.float32(10 / step) for step in losses}
    assert list(scalars(tensors, "val/loss")) == [2, 4, 6, 8]
    assert [event.step for event in tensors["loss"]] == [8], "the picture of the killed part is dropped"
    (last,) = tensors["tags"][-1].tensor_proto.string_val
    for row in ("| layout | single |", r"a='x\|y' |", "| checkpoint.newest | step_6 |", "| status | FINISHED |"):
        assert row in last.decode()
    board_metadata = board_hparams(tmp_path / "outputs")
    assert board_metadata["optimizer.learning_rate"].number_value == 1e-3
    assert board_metadata["load"].string_value == "null"
    assert board_metadata["sizes"].string_value == "[1, 2]"


def board_hparams(folder):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata

    board = EventMultiplexer().AddRunsFromDirectory(str(folder))
    board.Reload()
    (tags,) = board.AllSummaryMetadata().values()
    content = tags[metadata.SESSION_START_INFO_TAG].plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content).hparams


def test_a_branch_brings_its_history_to_tensorboard_and_to_the_table(zoo, tmp_path):
    """train.py itself: the steps before the checkpoint are those of the run that it branches from."""
    start = zoo.plain.checkpoint(12)
    zoo.plain.again(tmp_path, f"resume={start}", "tracker=csv", "tracker.also=[tensorboard]")
    (run_dir,) = run_dirs(tmp_path)
    _, plugins, tensors = events(tmp_path / "outputs")
    truth = {row["step"]: row["train/loss"] for row in jsonl.read(run_dir / "metrics.jsonl")}
    assert list(truth) == list(range(1, 17))
    assert scalars(tensors, "train/loss") == {step: np.float32(loss) for step, loss in truth.items()}
    assert {"loss", "config.yaml", "samples.txt", "_hparams_/session_end_info"} <= set(plugins)
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        assert {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file)} == truth


# ---- wandb


def records(path):
    """The records of a W&B file: LevelDB's log format with a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits for the process that writes
    content, place, part, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the end of a block is empty
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(part))
            part = b""
    return found


def history(found):
    rows = [{".".join(item.nested_key) or item.key: json.loads(item.value_json)
             for item in record.history.item} for record in found if record.HasField("history")]  # fmt: skip
    return {row["_step"]: row for row in rows}


@pytest.mark.run
def test_wandb_is_offline_and_its_newest_directory_has_the_whole_run(tmp_path, monkeypatch, capfd):
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(variable, raising=False)
    run_dir = tmp_path / "a run"
    killed_and_resumed(run_dir, "wandb")
    first, last = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    out, err = capfd.readouterr()
    assert out.splitlines() == [f"W&B: wandb sync '{path.parent}'" for path in (first, last)]
    assert err == ""
    parts = [records(path) for path in (first, last)]
    assert list(history(parts[0])) == list(range(1, 7))
    rows = history(parts[1])
    truth = {row["step"]: row for row in jsonl.read(run_dir / "metrics.jsonl")}
    assert list(rows) == list(range(1, 9))
    assert {step: row["_timestamp"] for step, row in rows.items()} == {step: row["time"] for step, row in truth.items()}
    assert rows[6]["train/loss"] == truth[6]["train/loss"]
    assert rows[8]["loss._type"] == "image-file"
    (run,) = [record.run for record in parts[1] if record.HasField("run")][-1:]
    assert (run.run_id, run.project, run.display_name) == (json.loads((run_dir / "wandb_run.json").read_text())["id"],
                                                           "pretrain", "renamed")  # fmt: skip
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optimizer"] == {"learning_rate": 1e-3}
    assert config["tags"]["layout"] == "single"
    exits = [record.exit.exit_code for part in parts for record in part if record.HasField("exit")]
    assert exits == [130, 0]


OFFLINE = """
import sys
from pathlib import Path
from gpt2x.tracking.trackers import wandb
from tests.tracking.test_further_trackers import history, mirror, records
wandb.INIT_WAIT_S = 1.0
mirror(Path(sys.argv[1]), range(1, 4), "wandb", mode="online")
(file,) = Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")
print(list(history(records(file))))
"""


@pytest.mark.launch
def test_a_server_that_does_not_answer_leaves_an_offline_run(tmp_path):
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | server, check=True)
    warning, where, steps = done.stdout.splitlines()
    assert warning.startswith("warning: W&B does not answer, so the run is kept offline: ")
    assert where.startswith("W&B: wandb sync ")
    assert steps == "[1, 2, 3]"


# ---- mistakes


def test_a_package_that_is_missing_is_said_before_any_work(monkeypatch, tmp_path):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        for options in ([f"tracker={name}"], ["tracker=none", f"tracker.also=[{name}]"]):
            message = refusal("train", *options)
            expected = f"tracker={name}: the package {name} is not installed; pip install 'gpt2x[{name}]', or leave "
            assert message.startswith(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tracker.also=[tensorbord]"], "tracker.also=tensorbord does not exist; did you mean tensorboard?"),
        (["tracker=csv", "tracker.settings.mode=online"], "tracker.settings.mode does not exist; tracker=csv has no"),
        (
            ["tracker=mlflow", "tracker.also=[wandb]", "tracker.settings.mod=online"],
            "tracker.settings.mod does not exist; did you mean mode? settings are: mode.",
        ),
        (["tracker=wandb", "tracker.settings.mode=on"], "tracker.settings.mode=on does not exist; "),
        (["tracker=wandb", "tracker.settings.mode=online"], "tracker=wandb cannot be online (nobody has logged in): "),
    ],
)
def test_mistakes_are_answered_before_any_work(options, message, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")  # restored after the test
    monkeypatch.setattr("wandb.login", lambda **options: False)
    assert refusal("train", *options).startswith(message)


@pytest.mark.parametrize("typed", ["tracker=mlflow", "tracker.name=csv", "tracker.also=[csv]"])
def test_prompts_are_not_tracked(typed):
    with pytest.raises(UserError, match=r"^tracker[.a-z]*: this command has no tracker; train\.py and evaluate\.py"):
        compose_config("predict", ["load=x", "prompts=[a]", typed])
    with pytest.raises(UserError, match=r"tracker\.nmae is not a key"):
        compose_config("train", ["tracker.nmae=csv"])


@pytest.mark.parametrize(("command", "typed"), [("predict", ["load=x", "prompts=[a]"]), ("prepare", [])])
def test_commands_without_a_tracker_take_none(command, typed):
    assert compose_config(command, [*typed, "tracker=none"]) == compose_config(command, typed)


def test_the_environment_chooses_the_mode_of_wandb(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(UserError, match="the environment variable WANDB_MODE=shared does not exist; choose one of: "):
        create_tracker(TrackerConfig(name="wandb"), tmp_path)
    create_tracker(TrackerConfig(name="wandb", settings={"mode": "offline"}), tmp_path)


def test_a_tracker_that_fails_is_left_alone_and_others_are_told(tmp_path):
    told, warnings = [], []

    class Failing:
        def start(self, run):
            raise OSError(28, "No space left on device")

        def finish(self, status):
            told.append(status)

    tracker = Guarded("x", Failing(), warnings.append)
    tracker.start(RunInfo("e", "r", tmp_path))
    tracker.finish("FINISHED")
    assert told == []
    assert warnings == ["tracker=x has failed, the run continues without it: [Errno 28] No space left on device"]
    with pytest.raises(ValueError, match="DONE"):
        tracker.finish("DONE")
