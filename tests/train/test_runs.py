"""train.py end to end: what a run leaves, exact resume, wrong input."""

import json
import shutil
import signal

import numpy as np
import pytest
import yaml

from gpt2x import checkpoint
from tests.train.runs import begin, curve, run_dirs, start, train

LONG = ["trainer.max_steps=16", "model.dropout=0.1", "trainer.eval_every_steps=5", "trainer.checkpoint_every_steps=4",
        "trainer.keep_last=9", "trainer.keep_best=false"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: dropout and accumulation on, past an epoch boundary."""
    directory = tmp_path_factory.mktemp("whole")
    done = train(directory, *LONG, "trainer.sample_prompts=['the cat']")
    (run_dir,) = run_dirs(directory)
    return directory, run_dir, done.stdout


def test_what_a_run_leaves(whole):
    _, run_dir, out = whole
    left = {path.name for path in run_dir.iterdir()}
    assert left == {"config.yaml", "metrics.jsonl", "checkpoints", "samples.txt", "loss.png"}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    for key in ("time", "train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s", "perf/mfu"):
        assert all(isinstance(line[key], float) for line in lines), key
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 15, 16]
    assert all(line["val/ppl"] == pytest.approx(np.exp(line["val/loss"])) for line in lines if "val/loss" in line)
    assert lines[-1]["train/epoch"] > 1, "the run is meant to pass an epoch boundary"
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["vocab_size"] == 300
    assert "the cat" in (run_dir / "samples.txt").read_text(encoding="utf-8")
    assert (run_dir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in checkpoint.list_checkpoints(run_dir)] == ["step_4", "step_8", "step_12", "step_16"]
    assert "unigram" in out
    assert "step 16/16" in out


def test_two_runs_are_bit_identical(whole, tmp_path):
    directory, run_dir, _ = whole
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    train(tmp_path, *LONG)
    assert curve(run_dirs(tmp_path)[0]) == curve(run_dir)


def weights_of(path):
    saved = checkpoint.open_checkpoint(path)
    groups = ("weights", "optimizer")
    return {(group, name): np.array(value) for group in groups for name, value in saved.tensors(group).items()}


def test_resume_equals_the_uninterrupted_run_float_for_float(whole, tmp_path):
    directory, run_dir, _ = whole
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    train(tmp_path, *LONG, "trainer.stop_after_steps=6")
    (stopped,) = run_dirs(tmp_path)
    assert max(curve(stopped)) == 6
    train(tmp_path, *LONG, "resume=auto")
    assert run_dirs(tmp_path) == [stopped], "auto goes on in the run's own directory"
    keys = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/tokens", "val/loss")
    assert curve(stopped, *keys) == curve(run_dir, *keys)
    mine, theirs = weights_of(stopped / "checkpoints/step_16"), weights_of(run_dir / "checkpoints/step_16")
    assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)


def test_resume_from_a_directory_begins_a_new_run(whole, tmp_path):
    directory, run_dir, _ = whole
    before = curve(run_dir)
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    train(tmp_path, *LONG, f"dataset.path={directory}/corpus.txt", f"resume={run_dir}/checkpoints/step_4")
    (branch,) = run_dirs(tmp_path)
    assert curve(branch) == before
    assert curve(run_dir) == before


def test_a_killed_run_repeats_the_steps_behind_its_checkpoint(whole, tmp_path):
    directory, run_dir, _ = whole
    shutil.copytree(directory, tmp_path / "copy")
    copied = tmp_path / "copy" / run_dir.relative_to(directory)
    shutil.rmtree(copied / "checkpoints" / "step_16")
    shutil.rmtree(copied / "checkpoints" / "step_12")
    with (copied / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 17, "tra')  # torn by the crash
    keep = [f"dataset.path={directory}/corpus.txt", f"paths.cache={directory}/cache"]
    train(tmp_path / "copy", *LONG, "trainer.sample_prompts=['the cat']", *keep, "resume=auto")
    assert curve(copied) == curve(run_dir)
    aside = (copied / "metrics.1.jsonl").read_text(encoding="utf-8").splitlines()
    assert aside[0].startswith('{"step": 9, ')
    assert len(aside) == 9, "nothing is lost: eight repeated steps and the torn line"


def test_ctrl_c_ends_a_run_cleanly(whole, tmp_path):
    directory, _, _ = whole
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    running = begin(
        tmp_path, "trainer.max_steps=100000", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=3"
    )
    for line in running.stdout:
        if line.startswith("step 7/"):
            running.send_signal(signal.SIGINT)
            break
    out, error = running.communicate(timeout=60)
    assert running.returncode == 130, out + error
    assert "interrupted" in out
    assert "Traceback" not in error
    (run_dir,) = run_dirs(tmp_path)
    assert max(curve(run_dir)) >= 6


def refused(directory, *overrides):
    done = train(directory, *overrides, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def test_nothing_to_resume(whole, tmp_path):
    assert "nothing to resume" in refused(tmp_path, *LONG, "resume=auto")
    directory, run_dir, _ = whole
    message = refused(directory, *LONG, "trainer.sample_prompts=['the cat']", f"resume={run_dir}/checkpoints/step_16")
    assert "nothing to resume" in message
    assert "step 16" in message
    message = refused(directory, *LONG, "resume=auto", "seed=5")
    assert "nothing to resume" in message
    assert "seed: 0 -> 5" in message


def test_resume_with_another_model(whole):
    directory, run_dir, _ = whole
    message = refused(directory, *LONG, "model.num_layers=3", f"resume={run_dir}/checkpoints/step_4")
    assert "model.num_layers: 2 -> 3" in message


def test_a_damaged_checkpoint(whole, tmp_path):
    directory, run_dir, _ = whole
    shutil.copytree(run_dir / "checkpoints/step_4", tmp_path / "step_4")
    file = tmp_path / "step_4" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "weights.safetensors" in refused(directory, *LONG, f"resume={tmp_path}/step_4")
    file.write_bytes(content[:1000])
    assert "weights.safetensors" in refused(directory, *LONG, f"load={tmp_path}/step_4")


def test_fine_tuning_starts_from_the_checkpoint_and_its_tokenizer(whole, tmp_path):
    directory, run_dir, _ = whole
    load = f"load={run_dir}/checkpoints/step_16"
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    train(tmp_path, "task=finetune", load, "trainer.max_steps=2", "tokenizer.vocab_size=280", "model.dropout=0.0")
    (tuned,) = run_dirs(tmp_path)
    last = curve(run_dir)[16][0]
    assert curve(tuned)[1][0] == pytest.approx(last, abs=0.3)
    other = start("-m", "gpt2x.convert", "--to", "hf", "--output", f"{tmp_path}/other", f"{tuned}/checkpoints/step_2")
    assert not other.returncode
    vocabulary = json.loads((tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    assert "is not the tokenizer that" in refused(tmp_path, load, f"tokenizer.path={tmp_path}/other")
    message = refused(tmp_path, load, "model.num_layers=4")
    assert "model.num_layers" in message


def test_wrong_input(tmp_path):
    (tmp_path / "short.txt").write_text("only a few words\nin here", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xffad\n")
    assert "empty.txt" in refused(tmp_path, f"dataset.path={tmp_path}/empty.txt")
    assert "UTF-8" in refused(tmp_path, f"dataset.path={tmp_path}/bad.txt")
    assert "seq_len" in refused(tmp_path, f"dataset.path={tmp_path}/short.txt")
    assert "trainer.global_batch_size=800" in refused(tmp_path, "trainer.global_batch_size=800")
    assert "model.vocab_size=200" in refused(tmp_path, "model.vocab_size=200")
    assert not list((tmp_path / "outputs").rglob("*.yaml"))


def test_a_checkpoint_without_a_tokenizer_needs_one(whole, tmp_path):
    directory, run_dir, _ = whole
    done = start("-m", "gpt2x.convert", "--to", "hf", "--output", f"{tmp_path}/hf", f"{run_dir}/checkpoints/step_16")
    assert not done.returncode
    for path in (tmp_path / "hf").iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            path.unlink()
    assert "tokenizer.path=" in refused(directory, "task=finetune", f"load={tmp_path}/hf")


def test_a_stopped_fine_tuning_resumes_with_or_without_load(whole, tmp_path):
    directory, run_dir, _ = whole
    load = f"load={run_dir}/checkpoints/step_16"
    shutil.copy(directory / "corpus.txt", tmp_path / "corpus.txt")
    tune = ["task=finetune", "trainer.max_steps=4"]
    train(tmp_path, *tune, load, "trainer.stop_after_steps=2")
    train(tmp_path, *tune, load, "resume=auto", "trainer.stop_after_steps=3")
    train(tmp_path, *tune, "resume=auto")
    (tuned,) = run_dirs(tmp_path)
    assert list(curve(tuned)) == [1, 2, 3, 4]


def test_a_changed_corpus_is_noticed_on_resume(tmp_path):
    train(tmp_path, "trainer.max_steps=4", "trainer.stop_after_steps=2")
    with (tmp_path / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write("\nanother line of the cat and the mat")
    message = refused(tmp_path, "trainer.max_steps=4", "resume=auto")
    assert "its files have changed" in message
