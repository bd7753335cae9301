"""Speculative decoding gives what greedy decoding gives, in fewer passes of the model."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gpt2x.commands.entry import run_in_process
from gpt2x.config import GenerationConfig, ModelConfig
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.generate import Generator
from gpt2x.generate.completion import Drafter
from gpt2x.generate.speculative import accepted_tokens, draft_by_lookup
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
from tests.support.configs import typed
from tests.support.generation import MODEL, num_graphs

run = partial(run_in_process, "predict", run_dir=Path("unused"))

PROMPTS = [[5, 6, 7], [8] * 20, [9, 10], [250, 251, 252, 253, 254], [1], [77] * 24]
SMALL = ModelConfig(name="small", num_layers=1, num_heads=2, hidden_size=16, max_seq_len=80, vocab_size=300,
                    initializer_range=0.3)  # fmt: skip


@pytest.fixture(scope="module")
def small(hardware):
    net = GPT2(SMALL, hardware)
    load_weights(net, initial_weights(SMALL, seed=5))
    return Drafter(net, SMALL)


@pytest.fixture(scope="module")
def speculators(net, hardware, tokenizer, small):
    """Generators by their draft: the model itself, and one that has learnt nothing."""
    drafts = {"agreeing": Drafter(net, MODEL), "other": small}
    return {name: Generator(net, MODEL, hardware, tokenizer, draft=draft) for name, draft in drafts.items()}


@pytest.mark.parametrize(
    ("draft", "batch_size"),
    [("agreeing", 4), ("other", 1), ("other", 4), pytest.param("agreeing", 1, marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("with_eos", [False, True])
def test_text_is_that_of_greedy_decoding(generator, speculators, draft, batch_size, with_eos):
    speculator = speculators[draft]
    config = GenerationConfig(max_new_tokens=23, eos_ids=[], batch_size=batch_size)
    if with_eos:
        config.eos_ids = [generator.generate_ids(PROMPTS[:1], config, seed=0)[0][9]]
    plain_before, before = generator.slots.num_passes, speculator.slots.num_passes
    expected = generator.generate_ids(PROMPTS, config, seed=0)
    rows = {}
    assert speculator.generate_ids(PROMPTS, config, 0, lambda row: rows.update({row.index: row})) == expected
    plain, passes = generator.slots.num_passes - plain_before, speculator.slots.num_passes - before
    rate = sum(row.num_accepted for row in rows.values()) / sum(row.num_drafted for row in rows.values())
    if draft == "other":
        assert passes <= plain
        assert rate < 0.5
    else:
        assert passes < plain / 2
        assert rate == 1


@pytest.mark.parametrize(("count", "agrees"), [(1, True), (7, False)])
def test_drafts_of_other_lengths(generator, speculators, count, agrees):
    config = GenerationConfig(max_new_tokens=12, eos_ids=[], draft_tokens=count, batch_size=4)
    prompts = [*PROMPTS, [2] * 68]  # the last goes up to the last position
    speculator = speculators["agreeing" if agrees else "other"]
    assert speculator.generate_ids(prompts, config, seed=0) == generator.generate_ids(prompts, config, seed=0)
    before = num_graphs(speculator.slots), num_graphs(speculator.draft_slots)
    speculator.generate_ids([[4] * 30, *PROMPTS[1:], [3] * 65], config, seed=0)
    assert (num_graphs(speculator.slots), num_graphs(speculator.draft_slots)) == before


def test_the_longest_prefix_that_agrees():
    assert accepted_tokens([1, 2, 3], [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert accepted_tokens([1, 9, 3], [1, 2, 3, 4]) == [1, 2]
    assert accepted_tokens([9, 2, 3], [1, 2, 3, 4]) == [1]


def test_what_is_looked_up():
    text = [5, 6, 7, 8, 5, 6, 9, 5, 6]
    assert draft_by_lookup(text, 3, 2) == [9, 5]  # the latest place of 5, 6
    assert draft_by_lookup([1, 2, 3, 4, 2, 3], 3, 4) == [4, 2, 3, 3]  # then the last token again
    assert draft_by_lookup([3, 1, 3], 1, 1) == [1]
    assert draft_by_lookup([1, 2], 3, 2) == [2, 2]
    assert draft_by_lookup([1], 3, 1) == [1]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_text_with_lookups_is_that_of_greedy_decoding(generator, batch_size):
    config = GenerationConfig(max_new_tokens=24, eos_ids=[], batch_size=batch_size)
    prompts = [[1, 2, 3, 1, 2], [7], [4, 4, 4]]
    expected = generator.generate_ids(prompts, config, seed=0)
    passes = generator.slots.num_passes
    drafting = replace(config, draft_ngram=3)
    assert generator.generate_ids(prompts, drafting, seed=0) == expected
    assert generator.slots.num_passes - passes < passes  # an untrained model soon repeats itself


def test_a_draft_with_a_shorter_window(net, hardware, tokenizer):
    model = ModelConfig(**(vars(SMALL) | {"max_seq_len": 40}))
    speculator = Generator(net, MODEL, hardware, tokenizer, draft=Drafter(GPT2(model, hardware), model))
    with pytest.raises(UserError, match=r"prompt 1 .* exceeds the draft's max_seq_len=40; use .*max_new_tokens=20"):
        speculator.generate_ids([[2] * 20], GenerationConfig(max_new_tokens=30), seed=0)


def save_small(folder, model, tokenizer, hardware):
    from gpt2x.checkpoint import save

    weights = {"weights": dict(initial_weights(model, seed=5))}
    save(folder, tensors=weights, model=model, run_config={}, loop_state={}, tokenizer_dir_writer=tokenizer.save)
    return folder


def test_predict_with_a_draft(generator, speculators, saved, tokenizer, hardware, tmp_path, capfd):
    """Texts and rates are those of generators of the same weights: of the model alone, and of it with its draft."""
    texts, output = ["the cat", "the dog sat on", "a"], tmp_path / "out.jsonl"
    draft = save_small(tmp_path / "draft", SMALL, tokenizer, hardware)
    run(typed("predict", f"load={saved}", f"prompts={json.dumps(texts)}", f"output={output}",
              "generation.max_new_tokens=23", "generation.batch_size=2", f"generation.draft={draft}"))  # fmt: skip
    assert capfd.readouterr().err.count("of drafted tokens accepted") == 1
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    config = GenerationConfig(max_new_tokens=23, batch_size=4)
    padded = [*texts, "the cat sat on the mat and the dog"]  # shapes of the graphs that exist already
    plain, other = (each.complete(padded, config, seed=0)[:3] for each in (generator, speculators["other"]))
    assert [row["completion"] for row in rows] == [each.completion for each in plain]
    assert [row.get("acceptance_rate") for row in rows] == [
        each.acceptance_rate and pytest.approx(each.acceptance_rate, abs=1e-3) for each in other
    ]
    assert all(each.acceptance_rate is None for each in plain)


@pytest.mark.run
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["temperature=0.7"], r"generation\.draft=d decodes greedily.*drop generation\.temperature=0\.7, or use"),
        (["top_k=5", "repetition_penalty=1.2"], r"drop generation\.top_k=5, generation\.repetition_penalty=1\.2"),
        (["min_new_tokens=3"], r"drop generation\.min_new_tokens=3"),
        (["do_sample=true"], r"drop generation\.do_sample=True"),
        (["draft_tokens=0"], r"generation\.draft_tokens=0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_a_draft(options, message):
    with pytest.raises(UserError, match=message):
        typed("predict", "load=x", "prompts=[a]", "generation.draft=d", *(f"generation.{option}" for option in options))


def test_a_draft_of_other_tokens_is_refused(saved, hardware, tmp_path):
    other = byte_level_bpe.train(["other words altogether " * 5], 270)
    model = ModelConfig(**(vars(SMALL) | {"vocab_size": other.vocab_size}))
    draft = save_small(tmp_path / "other", model, other, hardware)
    config = typed("predict", f"load={saved}", "prompts=[a]", f"generation.draft={draft}")
    with pytest.raises(UserError, match=rf"generation\.draft={draft} \(.* tokens, .*tokenizer of load={saved} \("):
        run(config)
    with pytest.raises(UserError, match=r"generation\.draft=/nowhere: "):
        run(typed("predict", f"load={saved}", "prompts=[a]", "generation.draft=/nowhere"))
