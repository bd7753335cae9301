"""Decoding with gpt2x's C++ kernels: one call for the whole model, without a graph of MindSpore.

The time of a step is the time to read the weights. In fp32 the parameters of the model are read in place. Copies in
bf16, int8 and int4 are stored in the order of reading (gpt2x/native/src/panels.hpp).

Legend: B batch, T new tokens, L of them whose next token is computed, S cached positions, D hidden, N heads, H head
dim, V vocab; K in, O out of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Parameter

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2, SelfAttention

INT4_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
CACHES = {"fp32": np.float32, "bf16": np.int16}  # the bits of bf16
MOST_CALLS = 64
NO_FACTORS = np.ones(1, np.float32)

Call = Callable[[], np.ndarray]  # a kernel on arrays that stay where they are (`gpt2x.native.Call`)


def is_fused(net: GPT2) -> bool:
    """Return True if fused kernels decode `net`: its backend has them, and it is a whole model without adapters."""
    linears = [linear for block in net.h for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc)]
    return (
        net.decoder_kernels is not None
        and all(type(block.attn) is SelfAttention for block in net.h)  # not a share of the heads
        and all(linear.branch is None for linear in [*linears, *(block.mlp.c_proj for block in net.h)])
    )


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """fp32 -> the bits of the nearest bf16 (ties to even), int16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def int8_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each row of (O, K) to -127..127 -> int8 (O, K), and fp32 factors (O,) (absmax, arXiv:2208.07339)."""
    scales = np.abs(values).max(axis=1) / 127
    scales[scales == 0] = 1
    return np.rint(values / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def panels(values: np.ndarray, width: int, inputs: int, together: int) -> np.ndarray:
    """Return values (K, O) in the order of reading: (O / width, K / together, width, together), padded with zeros.

    Args:
        values: a matrix.
        width: outputs of a panel.
        inputs: K is padded to a multiple of it.
        together: inputs of an output that lie side by side.
    """
    num_inputs, num_outputs = values.shape
    padded = np.zeros((-(-num_inputs // inputs) * inputs, -(-num_outputs // width) * width), values.dtype)
    padded[:num_inputs, :num_outputs] = values
    return np.ascontiguousarray(padded.reshape(-1, together, padded.shape[1] // width, width).transpose(2, 0, 3, 1))


def int4_groups(values: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Round (K, O) to -8..7 in groups of inputs -> int8 (K, O), and fp16 factors (K / group, O).

    A factor maps the group's largest weight to -8 (llama.cpp's Q4_0), or is up to a fifth smaller if that brings the
    squared error down.
    """
    num_inputs, num_outputs = values.shape
    parts = values.reshape(-1, group, num_outputs)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=1)[:, None], axis=1)  # with its sign
    best = np.full(largest.shape, np.inf, np.float32)
    rounded, factors = np.zeros(parts.shape, np.int8), np.zeros(largest.shape, np.float16)
    for shrink in INT4_SHRINKS:
        factor = (largest * np.float32(shrink) / -8).astype(np.float16)
        inverse = np.divide(1, factor, out=np.zeros(factor.shape, np.float32), where=factor != 0)
        tried = np.clip(np.rint(parts * inverse), -8, 7).astype(np.int8)
        error = np.square(parts - tried * factor.astype(np.float32)).sum(axis=1, keepdims=True)
        is_better = error < best
        best, factors = np.where(is_better, error, best), np.where(is_better, factor, factors)
        rounded = np.where(is_better, tried, rounded)
    return rounded.reshape(num_inputs, num_outputs), factors[:, 0]


class Weights:
    """The matrices of a net in the form that the kernels read, created once for all of its decoders.

    Args:
        net: the model; fp32 shares its parameters, also while they are trained.
        kind: fp32, bf16, int8 or int4; the head's table is int8 with int4.
        cache: the type of cached keys and values, fp32 or bf16.
    """

    def __init__(self, net: GPT2, kind: str, cache: str):
        assert net.decoder_kernels is not None  # see `is_fused`
        self.net, self.kind, self.cache, self.kernels = net, kind, cache, net.decoder_kernels
        self.table = (net.wte if net.lm_head is None else net.lm_head).weight
        self._copies: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for block in net.h:
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                self._store(linear.weight, kind)
        self._store(self.table, "int8" if kind == "int4" else kind, is_table=True)

    def matrix(self, weight: Parameter) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix (K, O), or table (O, K), and its factors."""
        return self._copies.get(id(weight)) or (weight.asnumpy(), NO_FACTORS)

    def operands(self, caches: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Return the kernels' operands after `settings`, with the values that parameters have now.

        Args:
            caches: keys and values of each layer.
        """
        operands = [self.net.ln_f.norm.kernel.eps.asnumpy()]
        for block, cache in zip(self.net.h, caches, strict=True):
            attn, mlp = block.attn, block.mlp
            for norm, linears in ((block.ln_1, (attn.c_attn, attn.c_proj)), (block.ln_2, (mlp.c_fc, mlp.c_proj))):
                operands += [norm.weight.asnumpy(), norm.bias.asnumpy()]
                for linear in linears:
                    operands += [*self.matrix(linear.weight), linear.bias.asnumpy()]
            operands += cache
        return operands

    def _store(self, weight: Parameter, kind: str, is_table: bool = False) -> None:
        """Copy a matrix in a narrow type, or move it to huge pages."""
        if kind != "fp32":
            values = weight.asnumpy()
            self._copies[id(weight)] = self._narrow(values.T if is_table else values, kind)
        self.kernels.use_huge_pages(self.matrix(weight)[0])

    def _narrow(self, values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return values (K, O) in panels, and their factors."""
        width = self.kernels.panel
        if kind == "bf16":
            return panels(bf16_bits(values), width, 32, 2), NO_FACTORS
        if kind == "int8":
            rows, scales = int8_rows(np.ascontiguousarray(values.T))
            totals = rows.sum(axis=1, dtype=np.int32).astype(np.float32)
            return panels(rows.T, width, 64, 4), np.stack([scales, totals], axis=1)
        padded = np.pad(values, ((0, -len(values) % 64), (0, 0)))
        rounded, factors = int4_groups(padded, self.kernels.group)
        halves = (rounded + 8).astype(np.uint8).reshape(-1, 2, 4, padded.shape[1])  # the low and the high four inputs
        both = (halves[:, 0] | halves[:, 1] << 4).reshape(-1, padded.shape[1])
        return panels(both, width, 4, 4).view(np.int8), panels(factors.view(np.int16), width, 1, 1)


class FusedDecoder:
    """GPT-2 with a cache of one shape, as `gpt2x.generate.decoder.Decoder`, called on arrays.

    Args:
        model: the net's shape.
        weights: of the net.
        batch_size: B.
        cache_len: S.

    Attributes:
        caches: keys and values (B * N * S, H) of each layer.
    """

    def __init__(self, model: ModelConfig, weights: Weights, batch_size: int, cache_len: int):
        self.weights, self.vocab_size = weights, int(model.vocab_size or 0)
        kernels = weights.kernels
        self.settings = kernels.settings(model.num_heads, cache_len, weights.cache, self.vocab_size)
        rows = (batch_size * model.num_heads * cache_len, model.hidden_size // model.num_heads)
        self.caches = [
            (np.zeros(rows, CACHES[weights.cache]), np.zeros(rows, CACHES[weights.cache])) for _ in weights.net.h
        ]
        for keys, values in self.caches:
            kernels.use_huge_pages(keys)
            kernels.use_huge_pages(values)
        self._calls: dict[tuple[int, int, bool], tuple[list[np.ndarray], Call]] = {}

    def bind(self) -> None:
        """Read the net's parameters where they are now; training may have moved them."""
        self._calls.clear()

    def logits(self, ids: np.ndarray, positions: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """ids, positions (B, T), columns (B, L) of ids, int32 -> (B * L, V) fp32."""
        return self._run(ids, positions, columns, is_greedy=False).reshape(-1, self.vocab_size)

    def likeliest(self, ids: np.ndarray, positions: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """ids, positions (B, T), columns (B, L) of ids, int32 -> (B, L) int32, -1 if a logit is not finite."""
        return self._run(ids, positions, columns, is_greedy=True)

    def _run(self, *inputs: np.ndarray, is_greedy: bool) -> np.ndarray:
        key = inputs[0].shape[1], inputs[2].shape[1], is_greedy
        if key not in self._calls:
            if len(self._calls) == MOST_CALLS:
                self._calls.clear()  # of prompts, which have many lengths
            self._calls[key] = self._call([np.empty(array.shape, np.int32) for array in inputs], is_greedy)
        places, call = self._calls[key]
        for place, array in zip(places, inputs, strict=True):
            place[:] = array
        return call().copy()

    def _call(self, places: list[np.ndarray], is_greedy: bool) -> tuple[list[np.ndarray], Call]:
        """Return where the inputs of a call have to be, and the call."""
        weights, net = self.weights, self.weights.net
        first = [net.wte.weight, net.wpe.weight, net.ln_f.weight, net.ln_f.bias]
        operands = [
            *places, *(parameter.asnumpy() for parameter in first), *weights.matrix(weights.table), self.settings,
            *weights.operands(self.caches),
        ]  # fmt: skip
        if is_greedy:
            return places, weights.kernels.likeliest(weights.kind, operands)
        return places, weights.kernels.logits(weights.kind, operands, self.vocab_size)


class FusedEntry:
    """Copies the cache of a prompt to the beginning of a slot's cache, as `gpt2x.generate.slots.Entry`.

    Args:
        prompt: a decoder of one row and W cached positions.
        slots: a decoder with S.
        width: W.
        cache_len: S.
    """

    def __init__(self, prompt: FusedDecoder, slots: FusedDecoder, width: int, cache_len: int):
        keys = prompt.caches[0][0]
        settings = prompt.weights.kernels.copy_settings(
            num_heads=len(keys) // width, head_dim=keys.shape[1], prompt_len=width, cache_len=cache_len,
            value_size=keys.itemsize,
        )  # fmt: skip
        self.slot = np.zeros(1, np.int32)
        pairs = zip(prompt.caches, slots.caches, strict=True)
        caches = [array for source, target in pairs for part in zip(source, target, strict=True) for array in part]
        self.call = prompt.weights.kernels.fill_slot([self.slot, settings, *caches])

    def __call__(self, slot: int) -> None:
        """Copy into a slot."""
        self.slot[0] = slot
        self.call()
