"""`resume=auto`, the one command of a supervisor: what it continues, begins, rejects, and says."""

import os
import shutil
import signal
import time

import pytest
from mlflow.tracking.client import MlflowClient

from gpt2x.commands.run_directory import owned_run
from gpt2x.commands.train import end_again
from gpt2x.errors import NothingLeftError, UserError
from gpt2x.runtime.files import create_new, remove_empty
from gpt2x.runtime.owner import OwnedError, owning
from gpt2x.runtime.role import Role
from gpt2x.tracking import jsonl
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.train.run_search import remove_remains
from tests.support.configs import typed
from tests.support.decide import decide, refusal
from tests.support.owners import forked
from tests.support.small_runs import curve, run_dirs, small
from tests.support.zoo import LONG


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def become_directory(path):
    path.unlink()
    path.mkdir()


def become_file(path):
    remove(path)
    path.write_text("x")


def become_empty(path):
    shutil.rmtree(path)
    path.mkdir()


def become_dangling(path):
    remove(path)
    path.symlink_to("nowhere")


DAMAGES = {
    "a truncated tensor file": (truncate, "weights.safetensors", "weights.safetensors is truncated"),
    "a flipped bit in weights": (flip, "weights.safetensors", "weights.safetensors was altered"),
    "a flipped bit in optimizer states": (flip, "optimizer.safetensors", "optimizer.safetensors was altered"),
    "an empty tensor file": (lambda path: path.write_bytes(b""), "weights.safetensors", "is truncated (0 bytes"),
    "a missing tensor file": (remove, "weights.safetensors", "weights.safetensors is missing"),
    "a longer tensor file": (
        lambda path: path.open("ab").write(b"x"),
        "optimizer.safetensors",
        "is longer than it was",
    ),
    "a flipped bit in the manifest": (flip, "manifest.json", "manifest.json "),
    "a truncated manifest": (truncate, "manifest.json", "manifest.json cannot be read"),
    "no manifest": (remove, "manifest.json", "has no manifest.json"),
    "a manifest that is a directory": (become_directory, "manifest.json", "has no manifest.json"),
    "no tokenizer": (remove, "tokenizer", "tokenizer/merges.txt is missing"),
    "a tokenizer that is a file": (become_file, "tokenizer", "tokenizer/merges.txt is missing"),
    "a flipped bit in the tokenizer": (flip, "tokenizer/tokenizer.json", "tokenizer/tokenizer.json was altered"),
    "a flipped bit in config.yaml": (flip, "config.yaml", "config.yaml was altered"),
    "a config.yaml that is a directory": (become_directory, "config.yaml", "config.yaml "),
    "an empty directory": (become_empty, "", "has no manifest.json"),
    "a file in place of the directory": (become_file, "", "is not a directory"),
    "a link to nothing": (become_dangling, "", "does not exist"),
    "a tensor file that is a link to nothing": (
        become_dangling,
        "weights.safetensors",
        "weights.safetensors is missing",
    ),
}


@pytest.fixture
def stopped(zoo, tmp_path):
    """A copy of a run with checkpoints 4, 8 and 12 of its 16 steps -> its options and its directory."""
    run_dir = zoo.plain.copy(tmp_path)
    shutil.rmtree(run_dir / "checkpoints" / "step_16")
    return [*zoo.plain.options_at(tmp_path), "resume=auto"], run_dir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_continued(stopped, capsys, damage):
    options, run_dir = stopped
    change, name, fault = DAMAGES[damage]
    change(run_dir / "checkpoints" / "step_12" / name)
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    decision = decide("train", *options)
    assert decision.run_dir == run_dir
    assert decision.source.resumption.saved.path.name == "step_8"
    assert decision.source.resumption.newer == (run_dir / "checkpoints" / "step_12",)
    text = said(capsys)
    assert f"warning: resume=auto leaves out a damaged checkpoint: checkpoint {run_dir}/checkpoints/step_12" in text
    assert fault in text
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before, "a decision changes nothing"


def test_damaged_checkpoints_are_set_aside_until_they_are_written_again(stopped, zoo, tmp_path):
    """Two are damaged, one of them only in the values of a tensor; the curve is that of the undamaged run."""
    _, run_dir = stopped
    checkpoints = run_dir / "checkpoints"
    truncate(checkpoints / "step_12" / "manifest.json")
    flip(checkpoints / "step_8" / "optimizer.safetensors")
    (checkpoints / "step_12.damaged").mkdir()  # of an earlier time
    again = zoo.plain.again(tmp_path, "resume=auto", "trainer.stop_after_steps=10")
    assert again.run_dir == run_dir
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step_10", "step_12.damaged", "step_12.damaged.2", "step_4", "step_8"
    ]  # fmt: skip
    text = " ".join(again.stdout.split())
    assert text.count("leaves out a damaged checkpoint") == 2
    assert f"step_8 is set aside as {checkpoints}/step_8.damaged" in text
    zoo.plain.again(tmp_path, "resume=auto")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_10", "step_12", "step_16", "step_4", "step_8"]
    assert curve(run_dir) == curve(zoo.plain.run_dir)


def test_if_no_checkpoint_is_intact_nothing_is_changed_and_each_fault_is_named(stopped):
    options, run_dir = stopped
    for path, change in zip(sorted((run_dir / "checkpoints").iterdir()), (truncate, flip, flip), strict=True):
        change(path / "weights.safetensors")
    before = sorted(run_dir.rglob("*"))
    message = refusal("train", *options)
    assert f"no checkpoint of {run_dir} is intact" in message
    assert f"move {run_dir}/checkpoints away to start again from step 0" in message
    assert all(f"step_{step}: weights.safetensors" in message for step in (4, 8, 12))
    assert sorted(run_dir.rglob("*")) == before


def test_a_damaged_other_run_does_not_matter(stopped, tmp_path, capsys):
    options, run_dir = stopped
    for number, (change, name, _) in enumerate(DAMAGES.values()):
        other = tmp_path / "outputs" / "pretrain" / "other" / str(number)
        shutil.copytree(run_dir, other)
        for path in list((other / "checkpoints").iterdir()):
            change(path / name)
    bad = tmp_path / "outputs" / "pretrain" / "bad"
    for number, text in enumerate(
        ["", "{", "[]", "model: 3", "1: 2", "a: b: c", "\x00", "model: {}\n1: 2", "!!python/x y"]
    ):
        (bad / str(number)).mkdir(parents=True)
        (bad / str(number) / "config.yaml").write_text(text)
    (bad / "0" / "checkpoints").write_text("a file")
    (bad / "9" / "checkpoints" / "step_1").mkdir(parents=True)
    touch(run_dir)
    assert decide("train", *options).run_dir == run_dir
    assert said(capsys) == ""
    with beginning([*options, "seed=5"], tmp_path / "new"):
        text = said(capsys)
        assert "resume=auto leaves out 10 directories whose configuration cannot be read" in text
        assert "differs in seed: 0 -> 5); a new one starts" in text


def touch(run_dir):
    later = time.time() + 100
    for path in (run_dir / "checkpoints").iterdir():
        os.utime(path, (later, later))


def beginning(options, new_run_dir, **role):
    return owned_run("train", typed("train", *options), Role(**role), new_run_dir)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def begin_for_ever(options, new_run_dir):
    """Return what begins a run, and is alive until its process is killed."""

    def body(ready):
        with beginning(options, new_run_dir):
            ready()
            time.sleep(60)

    return body


@pytest.mark.run
def test_a_run_that_never_started_starts_and_others_see_it_from_its_first_moment(tmp_path, capsys):
    options = [*small(tmp_path), *LONG, "resume=auto"]
    root = tmp_path / "outputs" / "pretrain"
    with beginning(options, root / "x") as (config, run_dir):
        assert (config.resume, run_dir) == (None, root / "x")
        assert f"no run with this configuration under {root}; a new one starts" in said(capsys)
    shutil.rmtree(root)
    with forked(begin_for_ever(options, root / "first")) as pid:
        with pytest.raises(OwnedError, match=rf"the run is alive: {root}/first belongs to process {pid} on "):
            beginning(options, root / "second").__enter__()
        assert [path.name for path in root.iterdir()] == ["first"]
    with beginning(options, root / "third") as (config, run_dir):  # that one was killed before its first checkpoint
        assert (config.resume, run_dir) == (None, root / "first")
        assert f"{root}/first has no checkpoint yet; the run starts again" in said(capsys)
    with pytest.raises(UserError, match="x"), beginning([*options, "seed=3"], root / "fourth"):
        raise UserError("x")
    assert [path.name for path in root.iterdir()] == ["first"], "a run that is rejected leaves nothing"


@pytest.mark.run
def test_the_directories_of_starts_that_were_killed_at_once_are_removed(tmp_path):
    root = tmp_path / "outputs" / "pretrain"
    kept = {"new": None, "users": "notes.txt", "marked": ".gitkeep", "alive": None, "whole/checkpoints": None}
    for name, file in {**kept, "day/empty": None, "day/torn": ".config.yaml.host-1.part", "dead": ".owner.1"}.items():
        (root / name).mkdir(parents=True)
        if file:
            (root / name / file).write_text("{}")
        if name != "new":  # which another process may just have created
            os.utime(root / name, (0, 0))
    with owning(root / "alive"):
        os.utime(root / "alive", (0, 0))
        remove_remains(root, root / "ours")
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()} == {*kept, "whole"}


@pytest.mark.run
def test_of_twenty_that_start_at_once_one_is_the_run(tmp_path):
    options = [*small(tmp_path), *LONG, "resume=auto"]
    root = tmp_path / "outputs" / "pretrain"
    config = typed("train", *options)
    begin, go = os.pipe()
    answers, answer = os.pipe()
    children = []
    for number in range(20):
        children.append(os.fork())
        if children[-1] == 0:
            os.close(go)
            os.read(begin, 1)  # until all have been started
            try:
                with owned_run("train", config, Role(), root / str(number)):
                    os.write(answer, b"1")
                    time.sleep(60)
            except OwnedError:
                os.write(answer, b"0")
            finally:
                os._exit(0)
    os.close(go)
    answered = b"".join(os.read(answers, 1) for _ in children)
    assert len([path for path in root.iterdir() if path.is_dir()]) == 1
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for descriptor in (begin, answers, answer):
        os.close(descriptor)
    assert sorted(answered) == sorted(b"1" + b"0" * 19)


def test_directories_that_are_asked_for_in_one_instant_differ(tmp_path):
    """Forty processes, twenty of which also remove what they have created and its empty parents."""
    wanted = tmp_path / "outputs" / "pretrain" / "2026-01-01_00-00-00"
    answers, answer = os.pipe()
    children = []
    for number in range(40):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                path = create_new(wanted)
                if number % 2:
                    remove_empty(path)
                else:
                    (path / "file").touch(exist_ok=False)
                    os.write(answer, b".")
            finally:
                os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    assert os.read(answers, 100) == b"." * 20
    os.close(answers)
    os.close(answer)
    assert len(list(wanted.parent.glob("*/file"))) == 20


def test_a_directory_that_the_user_names_is_the_run(stopped, tmp_path, capsys):
    options, run_dir = stopped
    place = tmp_path / "place"
    with beginning(options, place, has_named_run_dir=True) as (config, owned_dir):
        assert (config.resume, owned_dir) == (None, place)
        assert f"no run in {place} ({run_dir} has the same configuration, and stays as it is)" in said(capsys)
    shutil.rmtree(place)
    run_dir.rename(place)
    with beginning(options, place, has_named_run_dir=True) as (config, owned_dir):
        assert (config.resume, owned_dir) == ("auto", place)
    with pytest.raises(UserError, match=rf"{place} holds a run with a different configuration \(seed: 0 -> 5\)"):
        beginning([*options, "seed=5"], place, has_named_run_dir=True).__enter__()
    with pytest.raises(UserError, match=rf"hydra\.run\.dir={place} holds a run already, and nothing is overwritten"):
        beginning([*options, "resume=null"], place, has_named_run_dir=True).__enter__()


def test_a_run_with_a_different_configuration_is_named_and_a_new_one_starts(stopped, tmp_path, capsys):
    options, run_dir = stopped
    with beginning([*options, "seed=5"], tmp_path / "new") as (config, owned_dir):
        assert (config.resume, owned_dir) == (None, tmp_path / "new")
        assert f"({run_dir} differs in seed: 0 -> 5); a new one starts" in said(capsys)
    with beginning([*options, "trainer.log_every_steps=3"], tmp_path / "new") as (config, owned_dir):
        assert (config.resume, owned_dir) == ("auto", run_dir), "a key that may change on resume"
    message = refusal("train", *options, "task=finetune")
    assert "and a new one cannot start: task=finetune starts from trained weights; give load=DIR" in message


def test_a_finished_run_is_said_and_not_touched(zoo, tmp_path):
    run_dir = zoo.plain.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(NothingLeftError, match=rf"nothing is left to do, since {run_dir} is at step 16 and ends at"):
        zoo.plain.again(tmp_path, "resume=auto")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before
    assert run_dirs(tmp_path) == [run_dir]


@pytest.mark.launch
def test_what_a_run_left_undone_that_was_killed_at_its_end_is_done(zoo, tmp_path):
    run_dir = zoo.plain.copy(tmp_path)
    for name in ("loss.png", "report.html"):
        (run_dir / name).unlink()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for status in ("KILLED", "FAILED"):  # as the mirror notes it; as a run whose loss did not fall enough
        record = RunRecord(uri, str(tmp_path / "artifacts"), "pretrain", "tiny", start_time_s=1.0, end_time_s=2.0)
        record.status = status
        record.save(run_dir)
        end_again(run_dir)
        record = RunRecord.load(run_dir)
        assert record.status == {"KILLED": "FINISHED"}.get(status, status)
        if status == "KILLED":
            assert record.end_time_s == jsonl.last_time(run_dir / "metrics.jsonl")
            assert {"loss.png", "report.html"} <= set(record.artifacts) & set(os.listdir(run_dir))
            run = MlflowClient(tracking_uri=uri).get_run(record.run_id)
            assert run.info.status == "FINISHED"
