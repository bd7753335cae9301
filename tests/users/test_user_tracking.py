"""What MLflow makes of users' paths, names of classes and deletions: all values arrive in the store that was named."""

import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import DataInput, MetricsLog, RunInfo
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_run import MlflowRun
from gpt2x.tracking.mlflow_store import import_mlflow, resolve_uri
from gpt2x.tracking.mlflow_sync import sync
from gpt2x.tracking.parameters import clean_key, shortened_for_mlflow, tags_for_mlflow
from gpt2x.tracking.sqlite_store import create_store, sqlite_file, sqlite_uri
from gpt2x.tracking.trackers.mlflow import MlflowTracker
from tests.support.mirror import MirrorThread

# what a name of a directory may have and a URL reads differently
NAMES = st.text(st.sampled_from("ab%?#& +é'\"@:;=[]{}$~!,25F0中"), min_size=1, max_size=8).filter(
    lambda name: name.strip(" ") == name
)
# names of classes, as people and data sets write them
LABELS = st.text(st.sampled_from("ab/.:-_ %\\é中\n\t\"'é$#?[]{}=,;\ud83d\0"), max_size=12) | st.text(max_size=300)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("gpt2x.tracking.trackers.mlflow.start_mirror", MirrorThread)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store without runs; creating one takes seconds, copying it none."""
    import_mlflow()
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    create_store(file)
    return file


@pytest.fixture
def outputs(tmp_path, empty_store):
    """`paths.outputs` with a store."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def client(outputs):
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(tracking_uri=sqlite_uri(outputs / "mlflow.db"))


def record_of(outputs, run_dir, **values):
    uri, artifact_root = resolve_uri(None, outputs)
    return RunRecord(uri, artifact_root, "pretrain", "tiny", **({"tags": {"run_dir": str(run_dir)}} | values))


def train(outputs, run_dir, steps, **values):
    """A tracked run; returns the warnings."""
    warnings = []
    tracker = MlflowTracker(TrackerConfig(name="mlflow", system_metrics=False), outputs, warn=warnings.append)
    log = MetricsLog(run_dir / "metrics.jsonl")
    info = {"experiment": "pretrain", "run_name": "tiny", "run_dir": run_dir, "tags": {"run_dir": str(run_dir)}}
    tracker.start(RunInfo(**(info | values)))
    for step in steps:
        metrics = {"train/loss": 10 / step}
        tracker.log_metrics(*log.append(step, metrics))
    (run_dir / "note.txt").write_text("x")
    tracker.log_artifact(run_dir / "note.txt")
    tracker.finish("FINISHED")
    return warnings


def run_id(run_dir):
    return json.loads((run_dir / "mlflow_run.json").read_text())["run_id"]


def steps_of(outputs, run_dir):
    return sorted(each.step for each in client(outputs).get_metric_history(run_id(run_dir), "train/loss"))


# ---- paths


@given(NAMES)
@example("100%20done")
@example("what?")
@example("a%3Fb?c%")
def test_the_address_of_a_file_is_read_back(name):
    from sqlalchemy.engine import make_url

    file = Path("/tmp") / name / "mlflow.db"
    assert make_url(sqlite_uri(file)).database == str(file)
    assert sqlite_file(sqlite_uri(file)) == file
    assert resolve_uri(f"sqlite:///{file}", Path("/elsewhere")) == (sqlite_uri(file), str(file.parent / "mlartifacts"))
    assert resolve_uri(None, file.parent) == (sqlite_uri(file), str(file.parent / "mlartifacts"))


@pytest.mark.run
@given(NAMES)
@example("100%20done")
@example("what?")
@example("a#b c")
def test_runs_and_artifacts_are_where_the_path_was_typed(empty_store, name):
    with tempfile.TemporaryDirectory() as root:
        outputs = Path(root) / name
        outputs.mkdir()
        shutil.copy(empty_store, outputs / "mlflow.db")
        run_dir = outputs / "run"
        run = MlflowRun(record_of(outputs, run_dir), run_dir)
        run.log_metrics(run.metrics_of([(1, 1.0, {"train/loss": 2.5})]))
        run.log_artifact(outputs / "run" / "mlflow_run.json")
        assert sqlite3.connect(outputs / "mlflow.db").execute("SELECT value FROM metrics").fetchall() == [(2.5,)]
        assert len(list((outputs / "mlartifacts" / "pretrain").rglob("mlflow_run.json"))) == 1
        assert [each.path for each in client(outputs).list_artifacts(run.run_id)] == ["mlflow_run.json"]
        assert [each.name for each in Path(root).iterdir() if any(each.iterdir())] == [name]


def test_a_pasted_address_is_the_file_that_mlflow_reads(tmp_path, empty_store):
    folder = tmp_path / "100%20done"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    pasted = sqlite_uri(folder / "mlflow.db")
    assert "%2520" in pasted
    assert resolve_uri(pasted, tmp_path)[0] == pasted


@pytest.mark.run
@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_moved_outputs_are_synced_and_continued_in_their_new_place(tmp_path, outputs, how):
    train(outputs, outputs / "pretrain" / "run", [1, 2])
    place = tmp_path / "else where" / "outputs"
    place.parent.mkdir()
    how(str(outputs), str(place))
    if outputs.exists():
        (outputs / "mlflow.db").rename(outputs / "untouched.db")
    run_dir = place / "pretrain" / "run"
    MetricsLog(run_dir / "metrics.jsonl").append(3, {"train/loss": 1.0})
    assert sync(run_dir) == 1
    assert steps_of(place, run_dir) == [1, 2, 3]
    before = run_id(run_dir)
    assert train(place, run_dir, [4]) == []
    assert run_id(run_dir) == before
    assert steps_of(place, run_dir) == [1, 2, 3, 4]
    train(place, place / "pretrain" / "new", [1])
    for folder in (run_dir, place / "pretrain" / "new"):
        run = client(place).get_run(run_id(folder))
        assert run.info.artifact_uri.startswith(place.as_uri())
        assert [each.path for each in client(place).list_artifacts(run.info.run_id)] == ["note.txt"]
        assert run.data.tags["run_dir"] == str(folder)
    assert not (outputs / "mlflow.db").exists()


def test_a_run_directory_that_moved_alone_keeps_its_store(tmp_path, outputs):
    train(outputs, outputs / "pretrain" / "run", [1])
    shutil.move(outputs / "pretrain" / "run", tmp_path / "kept")
    MetricsLog(tmp_path / "kept" / "metrics.jsonl").append(2, {"train/loss": 1.0})
    assert sync(tmp_path / "kept") == 1
    assert steps_of(outputs, tmp_path / "kept") == [1, 2]
    shutil.move(outputs, tmp_path / "gone")
    with pytest.raises(UserError, match=r"was moved from .*mlflow\.db does not exist\. Copy the store"):
        sync(tmp_path / "kept")
    assert not outputs.exists()


# ---- names


@pytest.mark.run  # imports MLflow
@given(LABELS)
@example("..")
@example("...a")
@example("/")
@example("a/./b//")
@example("a" * 260)
def test_every_key_is_one_that_mlflow_accepts(label):
    from mlflow.utils import validation

    for key in (label, f"val/f1/{label}", f"dataset.label_names.{label}", label[::-1]):
        validation._validate_metric_name(clean_key(key))
        validation._validate_param(clean_key(key), "x")
        validation._validate_tag(clean_key(key), "x")
    if clean_key(label) == label:
        validation._validate_tag_name(label)


@given(st.lists(LABELS, unique=True, max_size=8))
@example(["a*b", "a?b", "a b"])
@example(["x" * 300, "x" * 301, "x" * 302])
def test_keys_that_become_equal_stay_apart(labels):
    assert len(shortened_for_mlflow({"dataset": {"label_names": dict.fromkeys(labels, "x")}})) == max(len(labels), 1)
    assert len(tags_for_mlflow(dict.fromkeys(labels, "x"))) == len(labels)


@pytest.fixture(scope="session")
def shared_outputs(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.mark.run
@given(st.lists(LABELS, unique=True, min_size=1, max_size=5), st.text(max_size=8))
@example(["news//sport", "news_/sport", "", "..", "a/"], "")
def test_values_of_every_class_arrive(shared_outputs, labels, name):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        params = shortened_for_mlflow(
            {"dataset": {"label_names": {label: f"class {i}" for i, label in enumerate(labels)}}}
        )
        inputs = [{"name": name, "digest": "d", "source": "s", "context": "train"}]
        record = record_of(shared_outputs, run_dir, params=params, inputs=inputs, status="FINISHED")
        record.save(run_dir)
        values = {f"val/f1/{label}": 0.5 + i for i, label in enumerate(labels)}
        log = MetricsLog(run_dir / "metrics.jsonl")
        log.append(1, dict(list(values.items())[-1:]))  # a second process sees the keys in a different order
        log.append(2, values)
        assert sync(run_dir) == len(labels) + 1
        assert sync(run_dir) == 0
        run = client(shared_outputs).get_run(run_id(run_dir))
        assert sorted(run.data.metrics.values()) == sorted(values.values())
        assert sorted(run.data.params.values()) == sorted(f"class {i}" for i in range(len(labels)))


# ---- what a store says of a run


def deleted(store, run):
    store.delete_run(run)


def of_a_deleted_experiment(store, run):
    store.delete_experiment(store.get_run(run).info.experiment_id)


def deleted_with_its_experiment(store, run):
    store.delete_run(run)
    store.delete_experiment(store.get_run(run).info.experiment_id)


def killed(store, run):
    store.set_terminated(run, "KILLED")


NEW_RUN = (deleted, None)  # an experiment is restored with its runs


@pytest.mark.parametrize("happened", [deleted, of_a_deleted_experiment, deleted_with_its_experiment, killed, None])
@pytest.mark.parametrize("then", ["resumed", "synced"])
def test_values_arrive_whatever_happened_to_the_run(outputs, happened, then):
    run_dir = outputs / "run"
    train(outputs, run_dir, [1, 2])
    before = run_id(run_dir)
    if happened is None:  # the store has no such run, nor could it
        record = RunRecord.load(run_dir)
        record.run_id = "no id!"
        record.save(run_dir)
    else:
        happened(client(outputs), before)
    if then == "resumed":
        warnings = train(outputs, run_dir, [3])
        assert len(warnings) == (happened in NEW_RUN), warnings
    else:
        MetricsLog(run_dir / "metrics.jsonl").append(3, {"train/loss": 1.0})
        assert sync(run_dir) == (3 if happened in NEW_RUN else 1)
    assert sync(run_dir) == 0
    assert steps_of(outputs, run_dir) == [1, 2, 3]
    run = client(outputs).get_run(run_id(run_dir)).info
    assert (run.status, run.lifecycle_stage) == ("FINISHED", "active")


def test_a_run_of_a_different_experiment_is_continued_there(outputs):
    run_dir = outputs / "run"
    train(outputs, run_dir, [1], experiment="first", inputs=(DataInput("", "d", "s", "training"),))
    before = run_id(run_dir)
    assert train(outputs, run_dir, [2], experiment="second") == []
    assert run_id(run_dir) == before
    assert steps_of(outputs, run_dir) == [1, 2]
