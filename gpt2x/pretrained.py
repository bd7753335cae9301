"""A trained model ready to use: weights, configuration and tokenizer from one directory (floor 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpt2x.config import HardwareConfig, ModelConfig, TokenizerConfig
from gpt2x.convert import Source, check_weights, load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.model.gpt2 import GPT2, load_weights


@dataclass
class Pretrained:
    """What `load=` stands for."""

    net: GPT2
    model: ModelConfig
    tokenizer: Tokenizer
    source: Source


def load_pretrained(load: str, hardware: HardwareConfig, tokenizer: TokenizerConfig) -> Pretrained:
    """Build the model that the directory `load` describes, with its weights and tokenizer.

    Raises:
        UserError: for a directory that is no checkpoint, weights that do not fit, or a tokenizer that disagrees.
    """
    source = load_source(load)
    own = source_tokenizer(source, tokenizer)
    check_vocabulary(own, source.model, f"load={load}")
    weights = source.weights()
    check_weights(weights, source.model, origin=f"load={load}")
    net = GPT2(source.model, hardware)
    load_weights(net, weights)
    return Pretrained(net, source.model, own, source)


def source_tokenizer(source: Source, wanted: TokenizerConfig) -> Tokenizer:
    """The checkpoint's own tokenizer; the configured one where it has none.

    Raises:
        UserError: when there is neither, or when tokenizer.path names another one than the checkpoint's.
    """
    if source.tokenizer_dir is None:
        if wanted.path is None:
            raise UserError(
                f"load={source.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt): "
                "give tokenizer.path=DIRECTORY"
            )
        return Tokenizer.load(wanted.path, wanted.eos_token)
    own = Tokenizer.load(source.tokenizer_dir)
    if wanted.path is not None and Path(wanted.path).expanduser().exists():  # a hub's name may be out of reach
        other = Tokenizer.load(wanted.path)
        if other.fingerprint != own.fingerprint:
            raise UserError(
                f"tokenizer.path={wanted.path} ({other.vocab_size} tokens) is not the tokenizer that "
                f"load={source.path} was trained with ({own.vocab_size} tokens): drop tokenizer.path"
            )
    return own


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, origin: str) -> None:
    """Refuse a tokenizer whose ids the embedding has no rows for."""
    if model.vocab_size is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} tokens but the model's embedding only "
            f"model.vocab_size={model.vocab_size} rows: they do not belong together; use the tokenizer that the "
            f"checkpoint was trained with, or for a new model model.vocab_size=null (the tokenizer's size)"
        )
