import subprocess
import sys
from dataclasses import replace

import pytest

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import NoTracker, create_tracker, provenance
from gpt2x.tracking.parameters import MAX_KEY_CHARS, MAX_VALUE_CHARS, shortened_for_mlflow
from gpt2x.tracking.provenance import git_state, package_versions, run_tags
from tests.support.models import CPU


def test_flatten_spells_values_as_on_the_command_line():
    params = {"a": {"b": 1e-4, "c": None, "d": True, "e": {}}, "prompts": ["x", "y"], "name": "gpt2_tiny"}
    assert shortened_for_mlflow(params) == {
        "a.b": "0.0001",
        "a.c": "null",
        "a.d": "true",
        "a.e": "{}",
        "prompts": '["x", "y"]',
        "name": "gpt2_tiny",
    }


def test_flatten_keeps_to_limits_and_characters():
    flat = shortened_for_mlflow({"k" * 300: "v" * 7000, "a[0]=b": 1})
    assert all(len(key) <= MAX_KEY_CHARS and len(value) <= MAX_VALUE_CHARS for key, value in flat.items())
    assert "a_0__b" in flat


@pytest.mark.launch
def test_modules_import_neither_mlflow_nor_matplotlib_nor_mindspore():
    code = (
        "import sys, gpt2x.tracking.trackers.mlflow, gpt2x.tracking.plots, gpt2x.commands.sync\n"
        "import gpt2x.runtime.console, gpt2x.runtime.memory\n"
        "print([name for name in ('mlflow', 'matplotlib', 'mindspore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tracker_none_takes_every_call(tmp_path):
    tracker = create_tracker(TrackerConfig(name="none"), tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.log_metrics(1, 0.0, {})
    tracker.log_artifact(tmp_path)
    tracker.finish("FINISHED")
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"tracker=mlfow does not exist; did you mean mlflow\? choose one of: csv, "):
        create_tracker(TrackerConfig(name="mlfow"), tmp_path)


def test_git_state(tmp_path):
    assert git_state(tmp_path) == {"sha": None, "dirty": None, "branch": None}

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    state = git_state(tmp_path)
    assert len(state["sha"]) == 40
    assert (state["dirty"], state["branch"]) == (False, "trunk")
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_git_missing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path)["sha"] is None


def test_tags_are_text():
    tags = run_tags(CPU, layout="single", data_hash="abc")
    assert tags["layout"] == "single"
    assert tags["processor"]
    assert int(tags["cores"]) >= 1
    assert not {"npu", "version.cann", "version.driver", "version.firmware"} & set(tags)
    assert tags["version.numpy"] == package_versions()["numpy"]
    assert all(isinstance(value, str) for value in tags.values())
    assert "data.hash" not in run_tags(CPU, layout="single")


def test_tags_of_an_ascend_run_name_its_npus_and_their_software(monkeypatch):
    monkeypatch.setattr(provenance, "ascend_versions", lambda: {"cann": "9.1.0", "driver": "26.0.rc1"})
    monkeypatch.setattr(provenance, "npus", lambda: "8 x 910B3")
    tags = run_tags(replace(CPU, name="atlas_800t_a2", device_target="Ascend"), layout="dp8")
    assert tags["hardware"] == "atlas_800t_a2"
    assert (tags["npu"], tags["version.cann"], tags["version.driver"]) == ("8 x 910B3", "9.1.0", "26.0.rc1")
    assert "version.firmware" not in tags, "what is not installed is left out"
