"""What `predict.py` counts, it counts once: lines, prompts, tokens, whoever answers and however many ranks compute."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2x.commands.hydra_entry import compose_config
from gpt2x.config import ParallelConfig
from gpt2x.generate import Completion, Generator, predict_classes, predict_text
from gpt2x.generate.output import results
from gpt2x.generate.prompts import Prompt
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import tokenizer_ids
from gpt2x.tasks.registry import TASKS
from tests.support.generation import MODEL

PROMPTS = [Prompt(text) for text in ("a", "b", "c")]
COMPLETIONS = [Completion(str(i), " x", [1] * n, n, 2.0, "length", n, 1) for i, n in enumerate((4, 6))]


class TwoAnswers:
    """A scorer that classifies two batches of one prompt, then fails."""

    def __init__(self, net, batch_size, seq_len, pad_id):
        self.num_calls = 0

    def logits(self, ids, mask):
        self.num_calls += 1
        if self.num_calls > 2:
            raise KeyboardInterrupt
        return np.log(np.full((len(ids), 2), 0.5))


def two_completions(self, prompts, config, seed, on_text, on_completion, replicas):
    for index, completion in enumerate(COMPLETIONS):
        on_completion(index, completion)
    raise KeyboardInterrupt


@pytest.mark.parametrize("task", TASKS.names())
@pytest.mark.parametrize("output", ["-", "out.jsonl"])
def test_lines_of_a_broken_run_are_counted_once(net, tokenizer, tmp_path, monkeypatch, capsys, task, output):
    monkeypatch.setattr(predict_classes, "ClassScorer", TwoAnswers)
    monkeypatch.setattr(Generator, "complete", two_completions)
    target = output if output == "-" else str(tmp_path / output)
    config = compose_config(
        "predict", ["load=x", "prompts=[a,b,c]", "template=null", "generation.batch_size=1", f"output='{target}'"]
    )
    model = SimpleNamespace(**vars(MODEL) | {"labels": ["no", "yes"]})
    source, ids = SimpleNamespace(tokenizer_dir=None), tokenizer_ids(tokenizer, MODEL)
    pretrained = SimpleNamespace(net=net, model=model, tokenizer=tokenizer, source=source, special_ids=ids)
    mesh = Mesh(ParallelConfig(name="single"))
    with pytest.raises(KeyboardInterrupt), results(config.output, len(PROMPTS)) as lines:
        TASKS.load(task).inference.predict(config, PROMPTS, pretrained, [], mesh, lines)
    assert lines.count == 2
    out, err = capsys.readouterr()
    assert "2 of 3 lines" in err
    written = out if output == "-" else (tmp_path / "out.jsonl.partial").read_text(encoding="utf-8")
    assert len([json.loads(line) for line in written.splitlines()]) == 2


def test_a_summary_counts_each_prompt_once():
    """Counts come from completions, of which each exists once on every rank; ranks are not summed."""
    text = predict_text.summary(COMPLETIONS, decoding_s=5.0, compiling_s=1.0, output="out.jsonl")
    assert "2 completions -> out.jsonl, 10 tokens in 5.0 s: 2.0 tokens/s" in text
    assert "20% of drafted tokens accepted" in text


def test_counts_of_a_completion_reach_the_other_replicas():
    """A replica is told what another one completed, drafted tokens included."""
    from dataclasses import asdict

    again = Completion(**json.loads(json.dumps(asdict(COMPLETIONS[1]))))
    assert again == COMPLETIONS[1]
    assert again.acceptance_rate == 1 / 6
