"""Completions: their ends, their order, their independence of the batch, their text as it streams."""

import pytest

from gpt2x.config import GenerationConfig
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.generate.completion import ROUND_BATCHES, Row, rounds_of
from gpt2x.generate.streaming import TextStream

PROMPTS = [[5, 6, 7], [8] * 20, [9, 10], [250, 251, 252, 253, 254], [1]]
SAMPLING = GenerationConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, eos_ids=[])


def test_a_batch_gives_what_each_prompt_gives_alone(generator):
    config = GenerationConfig(max_new_tokens=12, eos_ids=[])
    together = generator.generate_ids(PROMPTS, config, seed=0)
    assert together == [generator.generate_ids([ids], config, seed=0)[0] for ids in PROMPTS]
    assert len({tuple(ids) for ids in together}) == len(PROMPTS)


def test_samples_depend_on_seed_and_index_alone(generator):
    together = generator.generate_ids(PROMPTS, SAMPLING, seed=1)
    assert together == generator.generate_ids(PROMPTS, SAMPLING, seed=1)
    assert together != generator.generate_ids(PROMPTS, SAMPLING, seed=2)
    small = GenerationConfig(**(vars(SAMPLING) | {"batch_size": 2}))
    assert generator.generate_ids(PROMPTS, small, seed=1) == together
    others = [PROMPTS[0], [77] * 9, PROMPTS[2], [3, 4], [99]]
    assert [generator.generate_ids(others, SAMPLING, seed=1)[i] for i in (0, 2)] == [together[0], together[2]]
    same = generator.generate_ids([PROMPTS[0]] * 5, SAMPLING, seed=1)
    assert len({tuple(ids) for ids in same}) == 5  # a prompt that is given five times has five samples


def test_each_row_ends_by_itself(generator):
    free = generator.generate_ids(PROMPTS, GenerationConfig(max_new_tokens=12, eos_ids=[]), seed=0)
    eos = free[0][4]  # the first row ends here, or before
    ended = generator.generate_ids(PROMPTS, GenerationConfig(max_new_tokens=12, eos_ids=[eos]), seed=0)
    for whole, found in zip(free, ended, strict=True):
        assert found == (whole[: whole.index(eos) + 1] if eos in whole else whole)
    assert len(ended[0]) < 12


def test_min_new_tokens_puts_eos_off(generator):
    free = generator.generate_ids(PROMPTS, GenerationConfig(max_new_tokens=12, eos_ids=[]), seed=0)
    eos = [ids[0] for ids in free]  # every row would end at once
    config = GenerationConfig(max_new_tokens=12, min_new_tokens=5, eos_ids=eos)
    for ids in generator.generate_ids(PROMPTS, config, seed=0):
        assert len(ids) >= 6 or len(ids) == 12
        assert not set(ids[:5]) & set(eos)


def test_completions_of_text(generator, tokenizer):
    prompts = ["the cat", "", "the dog sat on the log and the mat"]
    pieces, done = ["", "", ""], {}
    found = generator.complete(
        prompts,
        GenerationConfig(max_new_tokens=10, batch_size=2),
        seed=0,
        on_text=lambda index, text: pieces.__setitem__(index, pieces[index] + text),
        on_completion=done.__setitem__,
    )
    assert [completion.prompt for completion in found] == prompts
    for index, completion in enumerate(found):
        kept = completion.ids[:-1] if completion.finish_reason == "eos" else completion.ids
        assert completion.completion == tokenizer.decode(kept) == pieces[index]
        assert completion.num_tokens == len(completion.ids) <= 10
        assert completion.tokens_per_s > 0
        assert done[index] is completion
    assert found[1].ids == generator.generate_ids([[tokenizer.eos_id]], GenerationConfig(max_new_tokens=10), 0)[0]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 50])
def test_each_round_is_shared_out(count):
    rows = [Row(index, [1]) for index in range(count)]
    assert rounds_of(rows, 3, 1) == ([rows] if rows else [])  # one process: no rounds
    found = rounds_of(rows, 3, 2)
    assert sorted(row.index for share in found for row in share) == list(range(count))
    assert all(1 <= len(share) <= ROUND_BATCHES * 3 for share in found)
    for place in range(0, len(found), 2):
        turn = [row.index for share in found[place : place + 2] for row in share]
        assert max(turn) < ROUND_BATCHES * 3 * 2 * (place // 2 + 1)  # prompts in their order
        assert max(map(len, found[place : place + 2])) - min(map(len, found[place : place + 2])) <= 1


def test_eos_is_no_text(generator, tokenizer):
    ids = generator.generate_ids([tokenizer.encode("the")], GenerationConfig(max_new_tokens=6, eos_ids=[]), 0)[0]
    config = GenerationConfig(max_new_tokens=6, eos_ids=[ids[-1]])
    (completion,) = generator.complete(["the"], config, seed=0)
    assert completion.finish_reason == "eos"
    assert completion.ids[-1] == ids[-1]
    assert completion.completion == tokenizer.decode(completion.ids[:-1])


def test_no_prompts_give_no_completions(generator):
    assert generator.complete([], GenerationConfig(), seed=0) == []


@pytest.mark.parametrize("text", ["aé", "日本語 and ñ", "🙂🙃x", "a\ufffdb", "plain"])
def test_streamed_characters_are_whole(text):
    bytes_only = byte_level_bpe.train([], 257)  # a token a byte
    stream = TextStream(bytes_only)
    pieces = [stream.push(token) for token in bytes_only.encode(text)]
    assert "".join(pieces) + stream.end() == text
    assert all(piece in ("", *text, "\ufffdb") for piece in pieces)


def test_broken_bytes_stream_as_they_decode():
    bytes_only = byte_level_bpe.train([], 257)
    emoji = bytes_only.encode("🙂")
    for ids in (emoji[:3], emoji[:2] + bytes_only.encode("x"), emoji[1:] + emoji, [*emoji[:1], *emoji[:1]]):
        stream = TextStream(bytes_only)
        assert "".join([*map(stream.push, ids), stream.end()]) == bytes_only.decode(ids)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], [2] * 70], {"max_new_tokens": 11}, r"prompt 2 \(.*\) has 70 tokens.*max_new_tokens=11.*"
         r"model.max_seq_len=80; use generation.max_new_tokens=10 or less"),
        ([[2] * 90], {"max_new_tokens": 11}, "shorten the prompt to 69 tokens"),
        ([[1], []], {}, "prompt 2 has no token"),
        ([[1, 300]], {}, "prompt 1 has a token outside the vocabulary.*300"),
        ([[1]], {"eos_ids": [4, 300]}, "generation.eos_ids: 300 is not a token"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_before_any_work(generator, prompts, options, message):
    with pytest.raises(UserError, match=message):
        generator.generate_ids(prompts, GenerationConfig(**options), seed=0)


def test_a_prompt_up_to_the_last_position(generator):
    (ids,) = generator.generate_ids([[2] * 70], GenerationConfig(max_new_tokens=10, eos_ids=[]), seed=0)
    assert len(ids) == 10


def test_text_that_is_no_unicode(generator):
    with pytest.raises(UserError, match=r"prompt 2 .* is not valid UTF-8"):
        generator.complete(["a", "caf\udce9"], GenerationConfig(), seed=0)


def test_logits_that_are_not_finite(hardware, tokenizer):
    import numpy as np

    from gpt2x.generate import Generator
    from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
    from tests.support.generation import MODEL

    weights = dict(initial_weights(MODEL, seed=0))
    weights["ln_f.bias"] = np.full_like(weights["ln_f.bias"], np.nan)
    net = GPT2(MODEL, hardware)
    load_weights(net, weights)
    with pytest.raises(UserError, match="logits are not finite"):
        Generator(net, MODEL, hardware, tokenizer).generate_ids([[1]], GenerationConfig(max_new_tokens=2), seed=0)
