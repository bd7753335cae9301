"""Runs whose disk rejects a checkpoint: what is lost is said, training continues, the last failure is the status."""

import errno
import os

import pytest

from gpt2x import checkpoint
from gpt2x.checkpoint import writer
from gpt2x.errors import UserError
from gpt2x.tracking import jsonl
from gpt2x.train.saving import copy_directory
from tests.support.configs import typed
from tests.support.in_process import train
from tests.support.small_runs import run_dirs

STEPS = ["trainer.max_steps=6", "trainer.checkpoint_every_steps=2", "trainer.checkpoint_retry_s=0",
         "trainer.keep_best=false", "trainer.keep_last=1", "trainer.sample_prompts=[]"]  # fmt: skip


@pytest.fixture
def full(monkeypatch):
    """A set of steps at which the disk is full, and stays full for all tries."""
    steps, write_slices = set(), writer.write_slices

    def failing(folder, *arguments):
        if int(folder.name.split(".")[1].removeprefix("step_")) in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_slices(folder, *arguments)

    monkeypatch.setattr(writer, "write_slices", failing)
    return steps


def steps_of(run_dir):
    return [path.name for path in checkpoint.list_checkpoints(run_dir)]


@pytest.mark.run
def test_a_lost_checkpoint_does_not_end_a_run_that_has_one(tmp_path, full):
    full.add(4)
    done = train(tmp_path, *STEPS, f"trainer.checkpoint_copy={tmp_path}/copy")
    assert done.stdout.count("step_4 cannot be written yet (No space left on device); trying again") == 2
    assert "warning: step_4 is LOST: cannot write" in done.stdout
    assert "the newest checkpoint is" in done.stdout
    assert steps_of(done.run_dir) == ["step_6"]
    assert os.listdir(done.run_dir / "checkpoints") == ["step_6"]
    rows = jsonl.read(done.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("perf/checkpoint_stall_s", 0) > 0] == [3, 5]
    copy = tmp_path / "copy" / done.run_dir.relative_to(tmp_path / "outputs")
    assert steps_of(copy) == ["step_6"]
    resumed = train(tmp_path, *STEPS, "trainer.max_steps=8", f"resume={copy}")
    assert [row["step"] for row in jsonl.read(resumed.run_dir / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "warning" not in resumed.stdout


@pytest.mark.run
def test_the_last_failure_is_the_status_after_all_else_is_done(tmp_path, full):
    full.add(6)
    with pytest.raises(UserError, match=r"the last checkpoint is lost: cannot write .*step_6 \(No space .*step_4"):
        train(tmp_path, *STEPS)
    (run_dir,) = run_dirs(tmp_path)
    assert steps_of(run_dir) == ["step_4"]
    assert (run_dir / "loss.png").is_file()
    assert (run_dir / "report.html").is_file()


@pytest.mark.run
def test_a_run_ends_whose_directory_takes_no_checkpoint(tmp_path, full):
    full.update((2, 4, 6))
    with pytest.raises(UserError, match="There is no earlier checkpoint, so the run ends here"):
        train(tmp_path, *STEPS, "trainer.checkpoint_async=false", "trainer.checkpoint_retries=0")
    (run_dir,) = run_dirs(tmp_path)
    assert [row["step"] for row in jsonl.read(run_dir / "metrics.jsonl")] == [1, 2]


def test_copies_of_runs_have_directories_of_their_own(tmp_path):
    config = typed("train", "trainer.checkpoint_copy=/copies", f"paths.outputs={tmp_path}/outputs")
    assert str(copy_directory(config, tmp_path / "outputs" / "pretrain" / "a")) == "/copies/pretrain/a"
    assert str(copy_directory(config, tmp_path / "elsewhere" / "a")) == f"/copies{tmp_path}/elsewhere/a"
    assert copy_directory(typed("train"), tmp_path) is None


@pytest.mark.run
def test_a_copy_beside_the_original_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.checkpoint_copy=.* is paths\.outputs"):
        train(tmp_path, f"trainer.checkpoint_copy={tmp_path}/outputs")
