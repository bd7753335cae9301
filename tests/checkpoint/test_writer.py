"""Checkpoints beside training: a copy is written, one at a time; what fails is tried again, and is never half there."""

import errno
import os
from threading import Event

import numpy as np
import pytest

from gpt2x.checkpoint import CheckpointWriter, Content, list_checkpoints, open_checkpoint, prune, recover, writer
from gpt2x.config import ModelConfig
from gpt2x.train.saving import copy_checkpoint
from tests.checkpoint.ranks import Group

CONTENT = Content(ModelConfig("tiny", 2, 2, 4, 8, vocab_size=16), {"seed": 1}, {"step": 1}, None)
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def gate(monkeypatch):
    """Nothing is written before `gate.set()`."""
    event, write_slices = Event(), writer.write_slices

    def late(*arguments):
        assert event.wait(20)
        write_slices(*arguments)

    monkeypatch.setattr(writer, "write_slices", late)
    yield event
    event.set()


def fail_first(monkeypatch, owner, name, times):
    """Let the first calls of a function fail as on a full disk; return the number of calls in a list."""
    calls, function = [], getattr(owner, name)

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= times:
            raise FULL
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)
    return calls


def values(path):
    return open_checkpoint(path).tensor("weights", "a").tolist()


def test_what_is_written_are_the_values_of_the_save(folder, gate):
    a = np.arange(6, dtype=np.float32)
    saves = CheckpointWriter()
    saves.save(folder / "step_1", {"weights": {"a": a}}, CONTENT)
    a += 100  # training continues
    with pytest.raises(ValueError, match="step_1 is being written"):
        saves.save(folder / "step_2", {"weights": {"a": a}}, CONTENT)
    gate.set()
    outcome = saves.wait()
    assert (outcome.directory, outcome.failure) == (folder / "step_1", "")
    assert values(folder / "step_1") == [0, 1, 2, 3, 4, 5]
    assert saves.wait() is None
    saves.save(folder / "step_2", {"weights": {"a": a}}, CONTENT)
    a += 100
    assert saves.wait().failure == ""
    assert values(folder / "step_2") == [100, 101, 102, 103, 104, 105]


def test_what_it_refers_to_comes_before_its_name_and_the_rest_after(folder):
    seen = []
    saves = CheckpointWriter()
    saves.save(
        folder / "step_1",
        {"weights": {"a": np.ones(3)}},
        CONTENT,
        before=lambda: seen.append((folder / "step_1").exists()),
        after=lambda: seen.append((folder / "step_1").exists()),
    )
    assert saves.wait().failure == ""
    assert seen == [False, True]


@pytest.mark.parametrize("call", ["write_slices", "complete"])
@pytest.mark.parametrize("times", [2, 3])
def test_what_fails_is_tried_again(folder, monkeypatch, capsys, call, times):
    calls = fail_first(monkeypatch, writer, call, times)
    saves = CheckpointWriter(retries=2)
    saves.save(folder / "step_1", {"weights": {"a": np.ones(3)}}, CONTENT)
    failure = saves.wait().failure
    assert len(calls) == 3
    assert capsys.readouterr().out.count("trying again in 0 s") == 2
    assert ("No space left" in failure) == (times == 3)
    assert os.listdir(folder) == ([] if times == 3 else ["step_1"])


@pytest.mark.parametrize("at", range(12))
def test_a_fsync_that_fails_once_costs_a_try(folder, monkeypatch, at):
    """Each call of fsync, the one after the rename included."""
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == at + 1:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    saves = CheckpointWriter(retries=1)
    saves.save(folder / "step_1", {"weights": {"a": np.ones(3)}}, CONTENT)
    assert saves.wait().failure == ""
    open_checkpoint(folder / "step_1").verify()
    assert os.listdir(folder) == ["step_1"]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_ranks_learn_what_failed_and_then_save_again(folder, monkeypatch, bad):
    write_slices, tries = writer.write_slices, []

    def failing(temporary, tensors, rank, size):
        if rank == bad and not tries:
            tries.append(rank)
            raise FULL
        write_slices(temporary, tensors, rank, size)

    monkeypatch.setattr(writer, "write_slices", failing)

    def work(rank, exchange):
        saves, outcomes = CheckpointWriter(rank=rank, world_size=3, exchange=exchange), []
        for step in (1, 2):
            tensors = {"weights": {f"a{rank}": np.full(3, rank)}}
            saves.save(folder / f"step_{step}", tensors, CONTENT)
            outcomes.append(saves.wait().failure)
        return outcomes

    for first, second in Group(3).run(work):
        assert first.startswith(f"rank {bad}: cannot write ")
        assert second == ""
    assert os.listdir(folder) == ["step_2"]
    open_checkpoint(folder / "step_2").verify()


def test_a_run_that_fails_ends_what_it_began(folder, gate):
    saves = CheckpointWriter(retries=5, retry_s=1000)
    saves.save(folder / "step_1", {"weights": {"a": np.ones(3)}}, CONTENT)
    gate.set()
    saves.close()
    assert os.listdir(folder) == ["step_1"]


def test_a_run_that_fails_does_not_pause(folder, monkeypatch, capsys):
    fail_first(monkeypatch, writer, "write_slices", 99)
    saves = CheckpointWriter(retries=3, retry_s=1000)
    saves.save(folder / "step_1", {"weights": {"a": np.ones(3)}}, CONTENT)
    saves.close()
    assert "cannot write" in capsys.readouterr().out
    assert os.listdir(folder) == []


def save_steps(folder, *steps):
    saves = CheckpointWriter()
    for step in steps:
        saves.save(folder / f"step_{step}", {"weights": {"a": np.full(3, step)}}, CONTENT)
        assert saves.wait().failure == ""


def test_pruning_never_removes_the_last_sound_one(folder):
    """A run that continues from step 1, because step 9 is damaged, keeps what it writes."""
    save_steps(folder, 1, 9, 2)
    assert prune(folder.parent, 1, newest=2) == [folder / "step_1"]
    assert sorted(os.listdir(folder)) == ["step_2", "step_9"]
    (folder / "step_2" / "manifest.json").unlink()
    save_steps(folder, 1)
    assert prune(folder.parent, 1, newest=2) == []
    assert sorted(os.listdir(folder)) == ["step_1", "step_2", "step_9"]


def test_a_checkpoint_is_replaced_also_without_an_exchange(folder, monkeypatch):
    monkeypatch.setattr("gpt2x.runtime.files.exchange", lambda first, second: False)
    save_steps(folder, 1, 1)
    open_checkpoint(folder / "step_1").verify()
    assert os.listdir(folder) == ["step_1"]


def test_a_crash_between_two_renames_costs_nothing(folder):
    save_steps(folder, 1)
    (folder / "step_1").rename(folder / ".step_1.old-1234")
    (folder / ".step_2.old-1234").mkdir()  # half deleted
    assert list_checkpoints(folder.parent) == []
    recover(folder.parent)
    assert list_checkpoints(folder.parent) == [folder / "step_1"]
    assert prune(folder.parent, 1) == []
    assert os.listdir(folder) == ["step_1"]


def test_a_copy_is_complete_or_not_there(folder, tmp_path, monkeypatch):
    save_steps(folder, 1)
    (folder.parent / "metrics.jsonl").write_text("{}\n")
    copy_checkpoint(folder / "step_1", tmp_path / "copy")
    open_checkpoint(tmp_path / "copy" / "checkpoints" / "step_1").verify()
    assert (tmp_path / "copy" / "metrics.jsonl").read_text() == "{}\n"
    content = (folder / "step_1" / "weights.safetensors").read_bytes()
    (folder / "step_1" / "weights.safetensors").write_bytes(content[:-1] + b"\1")
    with pytest.raises(Exception, match="was altered after it was written"):
        copy_checkpoint(folder / "step_1", tmp_path / "other")
    assert os.listdir(tmp_path / "other" / "checkpoints") == []
