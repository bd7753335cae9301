"""transformers' and PEFT's models with the same weights as ours."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2x.config import ModelConfig

TRAINED = {"wikitext2-causal-r8": None, "agnews-seqcls-r8": 4, "rotten-tomatoes-seqcls-r8-allproj": 2}  # classes


def torch_model(model: ModelConfig, weights):
    """transformers' GPT-2 with given weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=model.num_layers, n_head=model.num_heads, n_embd=model.hidden_size, n_positions=model.max_seq_len,
        vocab_size=model.vocab_size, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config)
    state = {f"transformer.{name}": torch.tensor(value) for name, value in weights.items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return theirs.eval()


def torch_classifier(model: ModelConfig, weights, num_labels: int):
    """transformers' classifier with given weights of the transformer, and a head of zeros."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    whole = torch_model(model, weights)
    whole.config.num_labels, whole.config.pad_token_id = num_labels, 0
    theirs = transformers.GPT2ForSequenceClassification(whole.config)
    theirs.transformer = whole.transformer
    torch.nn.init.zeros_(theirs.score.weight)
    return theirs.eval()


def logits_by_peft(theirs, directory, ids):
    """What PEFT computes with the adapter of a directory beside transformers' model."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    adapted = peft.PeftModel.from_pretrained(theirs, directory).eval()
    with torch.no_grad():
        return adapted(torch.tensor(ids.astype(np.int64))).logits.numpy()
