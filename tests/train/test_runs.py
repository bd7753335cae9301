"""train.py end to end: what a run leaves, exact resume, wrong input."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml

from gpt2x import checkpoint
from gpt2x.tracking.best import best_value
from tests.commands import convert
from tests.support.decide import refusal
from tests.support.in_process import train
from tests.support.small_runs import curve, run_dirs, small


def test_what_a_run_leaves(zoo):
    run_dir, out = zoo.plain.run_dir, zoo.plain.stdout
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "command.txt", "config.yaml", "run.log", "metrics.jsonl", "checkpoints", "samples.txt", "loss.png",
        "report.html",
    }  # fmt: skip
    log = (run_dir / "run.log").read_text(encoding="utf-8")
    assert log.startswith("--- ")
    assert all(line in log for line in out.splitlines() if line.startswith(("step ", "eval ", "sample ", "memory: ")))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    for key in ("time", "train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s", "perf/mfu"):
        assert all(isinstance(line[key], float) for line in lines), key
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 15, 16]
    assert all(line["val/ppl"] == pytest.approx(np.exp(line["val/loss"])) for line in lines if "val/loss" in line)
    assert all(line["train/ppl"] == pytest.approx(np.exp(line["train/loss"])) for line in lines)
    for metric in ("val/loss", "val/ppl", "val/bits_per_byte"):
        for number, line in enumerate(lines, 1):
            if metric in line:
                best = best_value(lines[:number], metric, "lower")
                assert (line[f"best/{metric}"], line[f"best/{metric}_step"]) == best
    assert lines[-1]["train/epoch"] > 1, "the run is meant to pass an epoch boundary"
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["vocab_size"] == 300
    assert "the cat" in (run_dir / "samples.txt").read_text(encoding="utf-8")
    assert (run_dir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in checkpoint.list_checkpoints(run_dir)] == ["step_4", "step_8", "step_12", "step_16"]
    assert "unigram" in out
    assert "step 16/16" in out
    assert re.search(r"^memory: \d+\.\d\d GB resident at the peak \(plan: \d+\.\d\d GB\)$", out, re.MULTILINE)
    assert all(line["perf/memory_gb"] > 0 for line in lines)
    assert not [key for line in lines for key in line if key.startswith("perf/device")], "the CPU has no such memory"


def weights_of(path):
    saved = checkpoint.open_checkpoint(path)
    groups = ("weights", "optimizer")
    return {(group, name): np.array(value) for group in groups for name, value in saved.tensors(group).items()}


def test_resume_equals_the_uninterrupted_run_float_for_float(zoo, tmp_path):
    """Also if the first start was profiled, which leaves its speed out of the metrics."""
    whole = zoo.plain
    out = whole.again(tmp_path, "trainer.stop_after_steps=6", "trainer.profile_steps=[3,4]").stdout
    (stopped,) = run_dirs(tmp_path)
    assert max(curve(stopped)) == 6
    assert f"profile of steps 3 to 4: {stopped}/profile" in out
    assert "Parsing" not in out
    times = curve(stopped, "perf/profiled_step_time_s", "perf/step_time_s", "perf/tokens_per_s", "perf/mfu")
    is_profiled = {step: [value is not None for value in values] for step, values in times.items()}
    assert is_profiled == {step: [step in (3, 4)] + [step not in (3, 4)] * 3 for step in range(1, 7)}
    (written,) = (stopped / "profile").glob("rank_0_*")
    (table,) = written.glob("FRAMEWORK/cpu_op_detail_info_*.csv")
    assert "attn" in table.read_text(encoding="utf-8")
    (trace,) = written.glob("ASCEND_PROFILER_OUTPUT/trace_view.json")
    assert {event["ph"] for event in json.loads(trace.read_text(encoding="utf-8"))} >= {"X"}
    whole.again(tmp_path, "resume=auto")
    assert run_dirs(tmp_path) == [stopped], "auto continues in the run's own directory"
    keys = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/tokens", "val/loss")
    assert curve(stopped, *keys) == curve(whole.run_dir, *keys)
    mine, theirs = weights_of(stopped / "checkpoints/step_16"), weights_of(whole.checkpoint(16))
    assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)


def test_resume_from_a_directory_begins_a_new_run(zoo, tmp_path):
    before = curve(zoo.plain.run_dir)
    branch = zoo.plain.again(tmp_path, f"resume={zoo.plain.checkpoint(4)}", "trainer.sample_prompts=[]")
    assert [branch.run_dir] == run_dirs(tmp_path)
    assert curve(branch.run_dir) == before
    assert curve(zoo.plain.run_dir) == before


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(zoo, tmp_path):
    copied = zoo.plain.copy(tmp_path)
    shutil.rmtree(copied / "checkpoints" / "step_16")
    shutil.rmtree(copied / "checkpoints" / "step_12")
    with (copied / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 17, "tra')  # torn by the crash
    zoo.plain.again(tmp_path, "resume=auto")
    assert curve(copied) == curve(zoo.plain.run_dir)
    aside = (copied / "metrics.1.jsonl").read_text(encoding="utf-8").splitlines()
    assert aside[0].startswith('{"step": 9, ')
    assert len(aside) == 9, "nothing is lost: eight repeated steps and the torn line"


def test_nothing_to_resume(zoo, tmp_path):
    message = refusal("train", *zoo.plain.options, f"resume={zoo.plain.checkpoint(16)}")
    assert "nothing to resume" in message
    assert "step 16" in message


def test_a_profile_of_steps_that_a_resumed_run_does_not_make(zoo):
    options = [*zoo.plain.options, f"resume={zoo.plain.checkpoint(4)}"]
    message = refusal("train", *options, "trainer.profile_steps=[5,6]")
    assert "continues after step 4 and compiles in its first update; begin at 6 or later" in message


def test_resume_with_a_different_model(zoo):
    message = refusal("train", *zoo.plain.options, "model.num_layers=3", f"resume={zoo.plain.checkpoint(4)}")
    assert "model.num_layers: 2 -> 3" in message


def test_a_damaged_checkpoint(zoo, tmp_path):
    shutil.copytree(zoo.plain.checkpoint(4), tmp_path / "step_4")
    file = tmp_path / "step_4" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "weights.safetensors" in refusal("train", *zoo.plain.options, f"resume={tmp_path}/step_4")
    file.write_bytes(content[:1000])
    assert "weights.safetensors" in refusal("train", *zoo.plain.options, f"load={tmp_path}/step_4")


def test_loaded_weights_whose_tokenizer_or_shape_is_different(zoo, tmp_path):
    load = [*small(tmp_path), f"load={zoo.plain.checkpoint(16)}"]
    assert convert(["--to", "hf", "--output", f"{tmp_path}/other", str(zoo.plain.checkpoint(16))]) == 0
    vocabulary = json.loads((tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:-1]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    assert "is not the tokenizer with which" in refusal("train", *load, f"tokenizer.path={tmp_path}/other")
    assert "model.num_layers" in refusal("train", *load, "model.num_layers=4")


def test_a_checkpoint_without_a_tokenizer_needs_one(zoo, tmp_path):
    assert convert(["--to", "hf", "--output", f"{tmp_path}/hf", str(zoo.plain.checkpoint(16))]) == 0
    for path in (tmp_path / "hf").iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            path.unlink()
    assert "tokenizer.path=" in refusal("train", *small(tmp_path), "task=finetune", f"load={tmp_path}/hf")


@pytest.mark.run
def test_wrong_input(tmp_path):
    def refused(*overrides):
        return refusal("train", *small(tmp_path), *overrides)

    (tmp_path / "short.txt").write_text("only a few words\nin here", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xffad\n")
    assert "empty.txt" in refused(f"dataset.path={tmp_path}/empty.txt")
    assert "UTF-8" in refused(f"dataset.path={tmp_path}/bad.txt")
    assert "seq_len" in refused(f"dataset.path={tmp_path}/short.txt")
    assert "trainer.global_batch_size=800" in refused("trainer.global_batch_size=800")
    assert "model.vocab_size=200" in refused("model.vocab_size=200")
    assert not list((tmp_path / "outputs").rglob("*"))


def test_fine_tuning_starts_from_the_checkpoint_and_resumes_with_or_without_load(zoo, tmp_path):
    """It takes the checkpoint's tokenizer, and notices a corpus that changes on the way."""
    load = f"load={zoo.plain.checkpoint(16)}"
    tune = ["task=finetune", "trainer.max_steps=4", "tokenizer.vocab_size=280", "model.dropout=0.0"]
    train(tmp_path, *tune, load, "trainer.stop_after_steps=2")
    (tuned,) = run_dirs(tmp_path)
    assert curve(tuned)[1][0] == pytest.approx(curve(zoo.plain.run_dir)[16][0], abs=0.3)
    train(tmp_path, *tune, load, "resume=auto", "trainer.stop_after_steps=3")
    text = (tmp_path / "corpus.txt").read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(f"{text}\nanother line of the cat and the mat", encoding="utf-8")
    message = refusal("train", *small(tmp_path), *tune, "resume=auto")
    assert "its files have changed" in message
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    train(tmp_path, *tune, "resume=auto")
    assert run_dirs(tmp_path) == [tuned]
    assert list(curve(tuned)) == [1, 2, 3, 4]
