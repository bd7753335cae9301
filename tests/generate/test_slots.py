"""Slots: a row that ends gives its place to the next prompt, other lengths compile nothing."""

from dataclasses import replace

import pytest

from gpt2x.config import GenerationConfig
from gpt2x.errors import UserError
from gpt2x.generate import Generator
from gpt2x.generate.fused import FusedDecoder, is_fused
from gpt2x.generate.slots import Slots
from gpt2x.model.gpt2 import GPT2
from gpt2x.runtime.device import set_up_device
from tests.support.generation import MODEL, num_graphs

PROMPTS = [[5, 6, 7], [8] * 20, [9, 10], [250, 251, 252, 253, 254], [1], [40] * 36, [60, 61], [70], [80, 3, 2]]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.95}, {"repetition_penalty": 1.3}])
def test_a_slot_is_taken_by_the_next_prompt(generator, options):
    free = [generator.generate_ids([ids], GenerationConfig(max_new_tokens=20, eos_ids=[], **options), 0)[0]
            for ids in PROMPTS[:1]]  # fmt: skip
    eos = free[0][5]
    config = GenerationConfig(max_new_tokens=20, eos_ids=[eos], batch_size=3, **options)
    before = generator.slots.num_passes
    found = generator.generate_ids(PROMPTS, config, seed=0)
    passes = generator.slots.num_passes - before
    whole = GenerationConfig(**(vars(config) | {"batch_size": len(PROMPTS)}))
    assert found == generator.generate_ids(PROMPTS, whole, seed=0)  # what a slot held before is not seen
    lengths = [len(ids) for ids in found]
    assert len(set(lengths)) > 1
    # steps of one slot after another, where each takes the next prompt as it ends: no slot waits for a longer one
    ends = [0, 0, 0]
    for length in lengths:
        first = ends.index(min(ends))
        ends[first] += length - 1
    assert passes == len(PROMPTS) + max(ends)


def test_rows_go_on_while_a_prompt_enters(generator):
    """Two slots: the second ends early, and a prompt enters it in the middle of the first."""
    order = []
    config = GenerationConfig(max_new_tokens=12, eos_ids=[], batch_size=2)

    def on_token(row):
        order.append(row.index)
        if row.index == 1 and len(row.new) == 3:
            row.finish_reason = "stop"

    found = generator.generate_ids(PROMPTS[:3], config, seed=0, on_token=on_token)
    assert [len(ids) for ids in found] == [12, 3, 12]
    assert order.index(2) < len(order) - 1 - order[::-1].index(0)
    assert found[0] == generator.generate_ids(PROMPTS[:1], config, seed=0)[0]
    assert found[2] == generator.generate_ids(PROMPTS[2:3], config, seed=0)[0]


def test_graphs_are_reused_for_other_lengths_and_calls(hardware, tokenizer):
    """Of the model's cells; the kernels for decoding need no graphs."""
    plain = replace(hardware, native_kernels=False)
    set_up_device(plain)
    generator = Generator(GPT2(MODEL, plain), MODEL, plain, tokenizer)
    greedy, sampling = {}, {"temperature": 0.7, "top_k": 5}
    for options, expected in ((greedy, 3), (sampling, 5)):  # prompt, copy into a slot, step; the copy is both's
        for lengths in ([3, 5], [9, 2], [20, 1, 7, 4], [25, 26]):
            config = GenerationConfig(max_new_tokens=6, batch_size=2, **options)
            generator.generate_ids([list(range(n)) for n in lengths], config, seed=0)
            assert num_graphs(generator.slots) == expected
    # another number of slots is another step and another copy; prompts have the graph that they had
    generator.generate_ids([[1]] * 3, GenerationConfig(max_new_tokens=6), seed=0)
    assert num_graphs(generator.slots) == 7
    set_up_device(hardware)


def test_a_common_beginning_is_computed_once(generator, net, hardware, monkeypatch):
    assert is_fused(net)
    beginning = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    prompts = [[*beginning, 20, 21], [*beginning, 22], beginning[:3], [*beginning, 22, 23], [1, 2]]
    widths, run = [], FusedDecoder.likeliest

    def noted(self, ids, positions, columns):
        widths.append(ids.shape[1])
        return run(self, ids, positions, columns)

    monkeypatch.setattr(FusedDecoder, "likeliest", noted)
    options = {"max_new_tokens": 1, "eos_ids": [], "batch_size": 1}
    plain = generator.generate_ids(prompts, GenerationConfig(**options), seed=0)
    assert widths == [14, 13, 3, 14, 2]
    widths.clear()
    kept = generator.generate_ids(prompts, GenerationConfig(**options, prompt_cache=True), seed=0)
    assert widths == [14, 1, 1, 14, 2]  # the fourth follows the third, which is short
    assert kept == plain
    cells = replace(hardware, native_kernels=False)
    slots = Slots(GPT2(MODEL, cells), MODEL, cells)
    with pytest.raises(UserError, match=r"generation.prompt_cache=true .* use generation.prompt_cache=false"):
        slots.open(1, [4], 4, [(1, 1)], True, keeps_prompts=True)
