"""Greedy text equals transformers' generate, prompts of different lengths in one batch."""

import numpy as np
import pytest

from gpt2x.config import GenerationConfig, ModelConfig, TokenizerConfig

pytestmark = pytest.mark.parity


def transformers_greedy(model, prompts, max_new_tokens, **options):
    """New ids of each prompt, one by one."""
    import torch

    found = []
    for ids in prompts:
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        found.append(out[0, len(ids) :].tolist())
    return found


def random_pair(hardware, model: ModelConfig, std: float = 0.02):
    """The same random weights, made by transformers, in both."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gpt2x.model.gpt2 import GPT2, load_weights

    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=model.num_layers, n_head=model.num_heads, n_embd=model.hidden_size,
            n_positions=model.max_seq_len, vocab_size=model.vocab_size, initializer_range=std,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    weights = {name.removeprefix("transformer."): value.numpy() for name, value in theirs.state_dict().items()}
    ours = GPT2(model, hardware)
    load_weights(ours, weights)
    return theirs, ours


def test_random_weights(hardware, tokenizer):
    from gpt2x.generate import Generator

    model = ModelConfig(name="tiny", num_layers=2, num_heads=4, hidden_size=64, max_seq_len=100, vocab_size=300)
    theirs, ours = random_pair(hardware, model, std=0.2)
    generator = Generator(ours, model, hardware, tokenizer)
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 300, size=n).tolist() for n in (2, 31, 11, 36)]
    eos = transformers_greedy(theirs, prompts, 64, eos_token_id=None)[1][9]  # so that some row ends early
    for options in ({}, {"repetition_penalty": 1.3}, {"min_new_tokens": 20}):
        config = GenerationConfig(max_new_tokens=64, eos_ids=[eos], **options)
        found = generator.generate_ids(prompts, config, seed=0)
        assert found == transformers_greedy(theirs, prompts, 64, eos_token_id=eos, **options), options
    assert len({len(ids) for ids in found}) > 1


def test_trained_weights(hardware, shared_data):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gpt2x.generate import Generator
    from gpt2x.pretrained import load_pretrained

    folder = shared_data / "checkpoints" / "shakespeare-a"
    pretrained = load_pretrained(str(folder), hardware, TokenizerConfig(name="checkpoint"))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    generator = Generator(pretrained.net, pretrained.model, hardware, pretrained.tokenizer)
    prompts = generator.encode(["KING RICHARD III:\nMy lord", "What", "", "To be, or not"])
    config = GenerationConfig(max_new_tokens=48)
    expected = transformers_greedy(theirs, prompts, 48, eos_token_id=pretrained.tokenizer.eos_id)
    assert generator.generate_ids(prompts, config, seed=0) == expected


@pytest.mark.run
def test_gpt2_small(hardware, tokenizer):
    from gpt2x.generate import Generator

    model = ModelConfig(name="gpt2_small", num_layers=12, num_heads=12, hidden_size=768, max_seq_len=1024)
    theirs, ours = random_pair(hardware, model, std=0.1)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 50257, size=n).tolist() for n in (5, 64, 23, 40)]
    config = GenerationConfig(max_new_tokens=64, eos_ids=[])
    found = Generator(ours, model, hardware, tokenizer).generate_ids(prompts, config, seed=0)
    assert found == transformers_greedy(theirs, prompts, 64, eos_token_id=None)
    assert all(len(set(ids)) > 1 for ids in found)
