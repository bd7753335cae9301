import json

import pytest

from gpt2x.commands.entry import run_in_process
from gpt2x.config import (
    DatasetConfig,
    EvaluateConfig,
    EvaluationConfig,
    ModelConfig,
    ParallelConfig,
    PathsConfig,
    TokenizerConfig,
    TrackerConfig,
)
from gpt2x.errors import UserError
from gpt2x.evaluate.perplexity import resolve
from gpt2x.evaluate.results import check_target
from gpt2x.tracking import NoTracker
from tests.commands import convert

MODEL = ModelConfig(name="tiny", num_layers=1, num_heads=1, hidden_size=8, max_seq_len=64)


@pytest.fixture
def config(shakespeare_dir, hardware, text_file, tmp_path):
    return EvaluateConfig(
        load=str(shakespeare_dir),
        tokenizer=TokenizerConfig(name="checkpoint"),
        hardware=hardware,
        parallel=ParallelConfig(name="single"),
        tracker=TrackerConfig(name="none"),
        paths=PathsConfig(outputs=str(tmp_path / "outputs"), cache=str(tmp_path / "cache")),
        dataset=DatasetConfig(name="text", corpus="text", val_path=str(text_file)),
        evaluation=EvaluationConfig(),
    )


def test_results_and_table(config, tmp_path, capsys):
    run_in_process("evaluate", config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    results = written["results"]
    assert list(results) == ["reference", "strided", "word"]
    assert results["word"]["num_tokens"] == results["strided"]["num_tokens"] + 1
    assert (results["strided"]["seq_len"], results["strided"]["stride"]) == (64, 32)
    assert written["load"] == {"path": config.load, "kind": "huggingface", "step": None}
    assert written["evaluation"]["seq_len"] == 64
    assert len(written["data_sha256"]["word"]) == 64
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line["eval/strided/loss"] == results["strided"]["loss"]
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert line["eval/word/bits_per_byte"] == results["word"]["bits_per_byte"]
    printed = capsys.readouterr().out
    words, batches = f"{results['word']['num_units']:,} words", f"{results['reference']['num_units']} batches"
    notice, bits = "reference is the mean over batches of 8 windows", f"{results['word']['bits_per_byte']:.4f} bits"
    for text in ("strided", "word", words, "results: ", notice, batches, "token PPL", bits):
        assert text in printed


def test_output_is_a_file_of_its_own(config, tmp_path):
    config.output = str(tmp_path / "new" / "mine.json")
    config.evaluation.protocols = ["reference"]
    run_in_process("evaluate", config, tmp_path / "run")
    assert list(json.loads((tmp_path / "new" / "mine.json").read_text())["results"]) == ["reference"]
    assert not (tmp_path / "run" / "results.json").exists()


def test_converted_checkpoint_and_names_of_runs(config, shakespeare_dir, tmp_path, monkeypatch):
    """A converted checkpoint has no step; in a tracker each run, step and model has a name of its own."""
    step = tmp_path / "run_7" / "checkpoints" / "step_1"
    assert convert(["--to", "gpt2x", "--output", str(step), str(shakespeare_dir)]) == 0
    names = []
    monkeypatch.setattr(NoTracker, "start", lambda self, run: names.append(run.run_name))
    monkeypatch.setenv("HOME", str(tmp_path))
    config.evaluation.protocols, config.output = ["reference"], "~/results.json"
    for load in ("~/run_7", str(shakespeare_dir)):
        config.load = load
        run_in_process("evaluate", config, tmp_path / "run")
    assert names == ["hf_shakespeare-a run_7 step_1/text", "hf_shakespeare-a shakespeare-a/text"]
    assert (tmp_path / "results.json").is_file()
    config.load = str(step)
    run_in_process("evaluate", config, tmp_path / "run")
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["load"] == {"path": str(step), "kind": "gpt2x", "step": None}


def test_short_text(config, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Speak, speak.", encoding="utf-8")
    config.dataset.val_path = str(short)
    with pytest.raises(UserError, match=r"fewer than the 64 that evaluation\.protocols=reference"):
        run_in_process("evaluate", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.evaluation.protocols = ["strided", "word"]
    run_in_process("evaluate", config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert results["word"]["num_units"] == 2


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (EvaluationConfig(seq_len=65), r"evaluation\.seq_len=65 .* 64 positions; use evaluation\.seq_len=64"),
        (EvaluationConfig(seq_len=1), r"evaluation\.seq_len=1 "),
        (EvaluationConfig(stride=65), r"evaluation\.stride=65 exceeds evaluation\.seq_len=64"),
        (EvaluationConfig(seq_len=16, stride=17), r"evaluation\.stride=17 exceeds evaluation\.seq_len=16"),
    ],
)
def test_lengths_that_do_not_fit(evaluation, message):
    with pytest.raises(UserError, match=message):
        resolve(evaluation, MODEL)


def test_nulls_are_the_models_positions_and_half_of_them():
    found = resolve(EvaluationConfig(), MODEL)
    assert (found.seq_len, found.stride) == (64, 32)


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"output=.* cannot be written"):
        check_target(tmp_path / "file" / "results.json")
    with pytest.raises(UserError, match="is a directory"):
        check_target(tmp_path)
    check_target(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.run
def test_shakespeare_a_on_all_of_tinyshakespeare(config, shared_data, tmp_path):
    """462,884 tokens, mean nll 3.02420 by transformers (shared/data/README.md)."""
    config.dataset.val_path = str(shared_data / "tinyshakespeare" / "input.txt")
    config.evaluation.protocols, config.evaluation.batch_size = ["reference"], 64
    run_in_process("evaluate", config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "results.json").read_text())["results"]["reference"]
    assert result["num_windows"] * 64 + result["dropped_tokens"] == 462_884
    assert result["num_tokens"] == 7232 * 63
    assert result["loss"] == pytest.approx(3.02420, abs=1e-5)
    assert result["ppl"] == pytest.approx(20.5776, abs=2e-4)
