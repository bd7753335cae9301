"""Each rule of decoding, against transformers' own processors on the same logits."""

import numpy as np
import pytest

from gpt2x.config import GenerationConfig
from gpt2x.generate import sampling

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 120)).astype(np.float32)
TEXTS = np.random.default_rng(1).integers(0, 120, (4, 30))


@pytest.fixture
def theirs():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.generation import logits_process

    def apply(name, *arguments):
        processor = getattr(logits_process, name)(*arguments)
        return processor(torch.tensor(TEXTS), torch.tensor(LOGITS)).numpy()

    return apply


@pytest.mark.parity
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty(theirs, penalty):
    expected = theirs("RepetitionPenaltyLogitsProcessor", penalty)
    np.testing.assert_array_equal(sampling.penalise_repetition(LOGITS, TEXTS, penalty), expected)


@pytest.mark.parity
@pytest.mark.parametrize("k", [1, 7, 120, 500])
def test_top_k(theirs, k):
    np.testing.assert_array_equal(sampling.keep_top_k(LOGITS, k), theirs("TopKLogitsWarper", k))


@pytest.mark.parity
@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p(theirs, p):
    np.testing.assert_array_equal(sampling.keep_top_p(LOGITS, p), theirs("TopPLogitsWarper", p))


@pytest.mark.parity
def test_min_new_tokens_and_their_order(theirs):
    """All of them together, as transformers' generate builds its list."""
    torch = pytest.importorskip("torch")
    from transformers import GenerationConfig as TheirConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.7, "repetition_penalty": 1.4, "min_new_tokens": 3}
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=64, vocab_size=120))
    their_config = TheirConfig(do_sample=True, eos_token_id=[5, 9], **options)
    their_config._eos_token_tensor = torch.tensor([5, 9])
    processors = model._get_logits_processor(
        their_config, input_ids_seq_length=28, logits_processor=[], device="cpu"
    )  # 28 of the 30 tokens are the prompt
    probabilities = torch.softmax(processors(torch.tensor(TEXTS), torch.tensor(LOGITS)), -1).numpy()
    # the tokens that a grid of draws gives, and the share of draws that each gets
    grid = (np.arange(4000) + 0.5) / 4000
    for row in range(4):
        drawn = sampling.next_tokens(
            np.repeat(LOGITS[row : row + 1], 4000, 0), [TEXTS[row]] * 4000, grid, GenerationConfig(**options), [5, 9]
        )
        found = np.bincount(drawn, minlength=120) / 4000
        np.testing.assert_allclose(found, probabilities[row], atol=5e-4)


def test_greedy_takes_the_likeliest():
    assert sampling.next_tokens(LOGITS, TEXTS, [0.9] * 4, GenerationConfig(), ()) == LOGITS.argmax(-1).tolist()
    best = LOGITS.argmax(-1).tolist()
    assert not set(sampling.next_tokens(LOGITS, TEXTS, [0.9] * 4, GenerationConfig(), best)) & set(best)
    assert np.isfinite(LOGITS).all()  # the caller's logits are left as they are


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.5}, True),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.0, "top_k": 5}, False),
        ({"top_k": 5}, True),
        ({"top_k": 0}, False),
        ({"top_p": 0.9}, True),
        ({"do_sample": False}, False),
    ],
)
def test_when_tokens_are_drawn(options, expected):
    assert sampling.is_sampling(GenerationConfig(**options)) is expected


def test_draws_are_a_function_of_seed_index_and_step():
    draws = {(s, i, t): sampling.draw(s, i, t) for s in range(5) for i in range(10) for t in range(20)}
    assert len(set(draws.values())) == len(draws)
    assert sampling.draw(3, 2, 1) == draws[3, 2, 1]
    assert abs(np.mean(list(draws.values())) - 0.5) < 0.05
    assert all(0 <= value < 1 for value in draws.values())
