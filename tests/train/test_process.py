"""train.py as a process: the numbers of a run within the tests' process; its status, streams and signals."""

import signal

import pytest

from gpt2x.checkpoint.files import sha256
from tests.support.processes import begin, start, train
from tests.support.small_runs import curve, run_dirs

pytestmark = pytest.mark.launch


def test_a_process_computes_what_a_run_in_this_process_does(zoo, tmp_path):
    """Every float of the curve and every byte of the tensors, so that all tests of runs speak for train.py."""
    done = start("train.py", *zoo.plain.options_at(tmp_path))
    assert "step 16/16" in done.stdout
    (run_dir,) = run_dirs(tmp_path)
    keys = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/tokens", "val/loss", "val/ppl")
    assert curve(run_dir, *keys) == curve(zoo.plain.run_dir, *keys)
    tensors = sorted(path.relative_to(run_dir) for path in run_dir.rglob("*.safetensors"))
    assert len(tensors) == 8
    assert all(sha256(run_dir / path) == sha256(zoo.plain.run_dir / path) for path in tensors)
    samples = [(path / "samples.txt").read_text(encoding="utf-8") for path in (run_dir, zoo.plain.run_dir)]
    assert samples[0] == samples[1]


def test_ctrl_c_ends_a_run_cleanly(tmp_path):
    running = begin(
        tmp_path, "trainer.max_steps=100000", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=3",
        "model.num_layers=1",
    )  # fmt: skip
    for line in running.stdout:
        if line.startswith("step 7/"):
            running.send_signal(signal.SIGINT)
            break
    out, error = running.communicate(timeout=60)
    assert running.returncode == 130, out + error
    assert "interrupted by SIGINT: step" in out
    assert "Traceback" not in error
    (run_dir,) = run_dirs(tmp_path)
    assert max(curve(run_dir)) >= 6


def test_a_mistake_ends_with_one_message_and_status_2(tmp_path):
    """Those of the command line alone: tests/test_config.py."""
    done = train(tmp_path, "trainer.global_batch_size=800", check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    *notices, error = done.stderr.splitlines()
    assert error.startswith("error: trainer.global_batch_size=800")
    assert all(line.startswith("Preparing ") for line in notices)
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((tmp_path / "outputs").rglob("*.yaml"))
