"""Byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2): 256 bytes, merges, one special token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import models, pre_tokenizers, trainers

from gpt2x.config import TokenizerConfig
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizer_classes import DEFAULT_EOS, GPT2_TOKENS, byte_level
from gpt2x.errors import UserError
from gpt2x.extensions import settings


def train(texts: Iterable[str], vocab_size: int, eos_token: str = DEFAULT_EOS) -> Tokenizer:
    """Train a tokenizer.

    Args:
        texts: Read once, one at a time. Memory grows with the number of different words, not with the text.
        vocab_size: Number of ids to reach; a small corpus may give fewer.
        eos_token: Gets id 0.

    Raises:
        UserError: `vocab_size` has no room for the bytes and the special token.
    """
    if vocab_size < 257:
        raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {eos_token} need 257 ids.")
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos_token, dict.fromkeys(GPT2_TOKENS, eos_token))


@dataclass
class Settings:
    """`tokenizer.settings`: this kind has none."""


def train_configured(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a tokenizer as configured.

    Raises:
        UserError: No or too small a `vocab_size`, or unknown settings.
    """
    settings(Settings, config.settings, "tokenizer.settings")
    if config.vocab_size is None:
        raise UserError("tokenizer.vocab_size=null: a tokenizer is trained if tokenizer.path is null. Give a size.")
    return train(texts, config.vocab_size, config.eos_token)


TRAIN = train_configured
