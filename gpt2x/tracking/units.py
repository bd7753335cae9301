"""A loss in other units: perplexity and bits per byte."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if it overflows; the loss is in nats."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(nll: float, num_bytes: int) -> float:
    """Return the bits that a model needs per byte of UTF-8 text (Gao et al., arXiv:2101.00027, section 3.1).

    Args:
        nll: the sum over tokens, in nats.
        num_bytes: of the text of these tokens; special tokens such as EOS have none. Without a byte the result is NaN.
    """
    return nll / math.log(2) / num_bytes if num_bytes else math.nan
