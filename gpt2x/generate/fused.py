"""Decoding with gpt2x's C++ kernels: one operator for the whole model.

The time of a step is the time to read the weights. In fp32 the parameters of the model are read in place. Copies in
bf16, int8 and int4 are stored in the order of reading (gpt2x/native/src/panels.hpp).

Legend: B batch, T new tokens, L of them whose next token is computed, S cached positions, D hidden, N heads, H head
dim, V vocab; K in, O out of a linear.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2, Block, LayerNorm, SelfAttention

INT4_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
CACHES = {"fp32": ms.float32, "bf16": ms.int16}  # the bits of bf16


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
        self.kind, self.cache, self.kernels = kind, cache, net.decoder_kernels
        linears = [[block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj] for block in net.h]
        self.blocks = [[self._matrix(linear.weight, kind) for linear in layer] for layer in linears]
        head_kind, table = (
            ("int8" if kind == "int4" else kind),
            (net.wte if net.lm_head is None else net.lm_head).weight,
        )
        self.head = self._matrix(table, head_kind, is_table=True)
        for matrix, _ in [self.head, *(pair for layer in self.blocks for pair in layer)]:
            self.kernels.use_huge_pages(matrix.asnumpy())

    def _matrix(self, weight: Parameter, kind: str, is_table: bool = False) -> tuple[Parameter | Tensor, Tensor]:
        """The matrix (K, O), or table (O, K), and its factors."""
        width = self.kernels.panel
        if kind == "fp32":
            return weight, Tensor(np.ones(1, np.float32))
        values = weight.asnumpy()
        values = values.T if is_table else values
        if kind == "bf16":
            return constant(panels(bf16_bits(values), width, 32, 2), weight.name), Tensor(np.ones(1, np.float32))
        if kind == "int8":
            rows, scales = int8_rows(np.ascontiguousarray(values.T))
            totals = rows.sum(axis=1, dtype=np.int32).astype(np.float32)
            return constant(panels(rows.T, width, 64, 4), weight.name), Tensor(np.stack([scales, totals], axis=1))
        padded = np.pad(values, ((0, -len(values) % 64), (0, 0)))
        rounded, factors = int4_groups(padded, self.kernels.group)
        halves = (
            (rounded + 8).astype(np.uint8).reshape(-1, 2, 4, padded.shape[1])
        )  # 8 inputs: the low four, the high four
        both = (halves[:, 0] | halves[:, 1] << 4).reshape(-1, padded.shape[1])
        packed = panels(both, width, 4, 4).view(np.int8)
        return constant(packed, weight.name), Tensor(panels(factors.view(np.int16), width, 1, 1))


def constant(values: np.ndarray, name: str) -> Parameter:
    """Return a copy of the parameter `name`; no tensor, which would become part of every graph."""
    return Parameter(Tensor(values), name=f"copy.{name}", requires_grad=False)


class FusedBlock(nn.Cell):
    """What the kernel reads of a block, and the keys and values (B, N, S, H) of its attention."""

    def __init__(self, block: Block, weights: list[tuple], batch_size: int, cache_len: int, cache: str):
        super().__init__(auto_prefix=False)
        rows = (batch_size * block.attn.num_heads * cache_len, block.attn.head_dim)
        dtype = CACHES[cache]
        self.keys = Parameter(initializer("zeros", rows, dtype), name="keys", requires_grad=False)
        self.values = Parameter(initializer("zeros", rows, dtype), name="values", requires_grad=False)
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        (
            (self.attn, self.attn_scale),
            (self.proj, self.proj_scale),
            (self.fc, self.fc_scale),
            (self.out, self.out_scale),
        ) = weights
        self.attn_bias, self.proj_bias = block.attn.c_attn.bias, block.attn.c_proj.bias
        self.fc_bias, self.out_bias = block.mlp.c_fc.bias, block.mlp.c_proj.bias

    def operands(self):
        """Return the kernel's operands of this layer (`gpt2x.native.signatures.LAYER`)."""
        return (
            self.ln_1.weight, self.ln_1.bias, self.attn, self.attn_scale, self.attn_bias,
            self.proj, self.proj_scale, self.proj_bias,
            self.ln_2.weight, self.ln_2.bias, self.fc, self.fc_scale, self.fc_bias,
            self.out, self.out_scale, self.out_bias, self.keys, self.values,
        )  # fmt: skip


class FusedLayers(nn.Cell):
    """From tokens to logits or to the most likely tokens, as `gpt2x.generate.decoder.CachedLayers`."""

    def __init__(self, net: GPT2, model: ModelConfig, weights: Weights, batch_size: int, cache_len: int):
        super().__init__(auto_prefix=False)
        kernels = weights.kernels
        self.settings = Tensor(kernels.settings(model.num_heads, cache_len, weights.cache, model.vocab_size))
        self.blocks = nn.CellList(
            [
                FusedBlock(block, matrices, batch_size, cache_len, weights.cache)
                for block, matrices in zip(net.h, weights.blocks, strict=True)
            ],
            auto_prefix=False,
        )
        self.wte, self.wpe = net.wte, net.wpe
        self.ln_f: LayerNorm = net.ln_f
        self.table, self.table_scale = weights.head
        self.eps = net.ln_f.norm.kernel.eps
        self.logits_kernel = kernels.logits(weights.kind, model.vocab_size)
        self.likeliest_kernel = kernels.likeliest(weights.kind)

    def operands(self, ids, positions, columns):
        """Return the kernels' operands: ids, positions (B, T), columns (B, L)."""
        operands = (
            ids, positions, columns, self.wte.weight, self.wpe.weight, self.ln_f.weight, self.ln_f.bias,
            self.table, self.table_scale, self.settings, self.eps,
        )  # fmt: skip
        for block in self.blocks:
            operands = operands + block.operands()
        return operands

    def logits(self, ids, positions, columns):
        """ids, positions (B, T), columns (B, L) of ids -> (B * L, V)."""
        logits = self.logits_kernel(*self.operands(ids, positions, columns))
        return logits.reshape(-1, logits.shape[-1])

    def likeliest(self, ids, positions, columns):
        """ids, positions (B, T), columns (B, L) of ids -> (B, L) int32, -1 if a logit is not finite."""
        return self.likeliest_kernel(*self.operands(ids, positions, columns))


class FusedEntry(nn.Cell):
    """As `gpt2x.generate.slots.Entry`, by one operator."""

    def __init__(self, prompt: FusedLayers, slots: FusedLayers, kernels, sizes: dict[str, int]):
        super().__init__(auto_prefix=False)
        self.sources, self.targets = prompt.blocks, slots.blocks
        self.kernel, self.settings = kernels.fill_slot(), Tensor(kernels.copy_settings(**sizes))

    def construct(self, slot):
        """slot (1,) int32 -> (1,) fp32, after the copy."""
        operands = (slot, self.settings)
        for layer in range(len(self.sources)):
            operands = operands + (  # noqa: RUF005, since graphs cannot unpack
                self.sources[layer].keys, self.targets[layer].keys,
                self.sources[layer].values, self.targets[layer].values,
            )  # fmt: skip
        return self.kernel(*operands)
