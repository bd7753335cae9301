"""Lengths of the graphs and caches that decode texts (imports no mindspore)."""

from __future__ import annotations

LEAST_BUCKET = 32  # tokens; shorter texts share one graph


def bucket(length: int, max_seq_len: int) -> int:
    """Return the next power of two, at least LEAST_BUCKET and at most max_seq_len; each bucket is one graph."""
    return min(max(LEAST_BUCKET, 1 << (length - 1).bit_length()), max_seq_len)
