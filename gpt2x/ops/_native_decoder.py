"""The native backend's kernels for decoding (gpt2x/native/src/decode.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2x import native as cpp


class DecoderKernels:
    """The model on new tokens and a cache; `gpt2x.generate.fused` calls them.

    Attributes:
        panel: outputs of a panel, the form in which narrow weights are read.
        group: inputs with a common factor in int4.
    """

    def __init__(self, activation: str):
        constants = cpp.library().constants
        self.panel, self.group = int(constants["panel"]), int(constants["group"])
        self.activation = int(constants[f"activation.{activation}"])

    def settings(self, num_heads: int, cache_len: int, cache: str, vocab_size: int) -> np.ndarray:
        """Return the operand `settings` of the model: DecoderSettings, int32 (5,)."""
        return cpp.record(
            "DecoderSettings", num_heads=num_heads, cache_len=cache_len, activation=self.activation,
            has_narrow_cache=int(cache == "bf16"), vocab_size=vocab_size,
        )  # fmt: skip

    def copy_settings(self, **sizes: int) -> np.ndarray:
        """Return the operand `settings` of `fill_slot`: CopySettings, int32 (5,)."""
        return cpp.record("CopySettings", **sizes)

    def logits(self, kind: str, operands: Sequence[np.ndarray], vocab_size: int) -> cpp.Call:
        """Return the call from tokens to logits, with weights of a kind: fp32, bf16, int8 or int4."""
        return cpp.Call(f"decode_{kind}", operands, V=vocab_size)

    def likeliest(self, kind: str, operands: Sequence[np.ndarray]) -> cpp.Call:
        """Return the call from tokens to the most likely next ones, with weights of a kind."""
        return cpp.Call(f"decode_likeliest_{kind}", operands)

    def fill_slot(self, operands: Sequence[np.ndarray]) -> cpp.Call:
        """Return the call that copies the beginning of caches into a slot of larger ones."""
        return cpp.Call("fill_slot", operands)

    def use_huge_pages(self, values: np.ndarray) -> None:
        """Move an array that every token reads to pages of 2 MB."""
        cpp.use_huge_pages(values)
