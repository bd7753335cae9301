"""Decoding with gpt2x's C++ kernels: one operator per block, and one for the head.

The time of a step is the time to read the weights. In fp32 the parameters of the model are read in place. Copies in
bf16 and int8, with half and a quarter of the bytes, are stored in the order of reading
(gpt2x/native/src/stream.hpp).

Legend: B batch, T new tokens, M = B T, S cached positions, D hidden, N heads, H head dim, V vocab; K in, O out of a
linear.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer
from mindspore.ops import Primitive

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2, Block, LayerNorm, Linear, SelfAttention


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


def panels(values: np.ndarray, width: int) -> np.ndarray:
    """(K, O) -> (ceil(O / width), K, width), zeros after the last column."""
    num_rows, num_columns = values.shape
    padded = np.zeros((num_rows, -(-num_columns // width) * width), values.dtype)
    padded[:, :num_columns] = values
    return np.ascontiguousarray(padded.reshape(num_rows, -1, width).transpose(1, 0, 2))


class Weights:
    """The matrices of a net in the form that the kernels read, created once for all of its decoders.

    Args:
        net: the model; fp32 shares its parameters, also while they are trained.
        kind: fp32, bf16 or int8.
    """

    def __init__(self, net: GPT2, kind: str):
        assert net.decoder_kernels is not None  # see `is_fused`
        self.kind, self.kernels = kind, net.decoder_kernels
        linears = [[block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj] for block in net.h]
        self.blocks = [[self._linear(linear) for linear in layer] for layer in linears]
        self.head = self._table((net.wte if net.lm_head is None else net.lm_head).weight)
        for matrix, _ in [self.head, *(pair for layer in self.blocks for pair in layer)]:
            self.kernels.use_huge_pages(matrix.asnumpy())

    def _linear(self, linear: Linear) -> tuple[Parameter | Tensor, Tensor]:
        """The matrix (K, O) and its factors."""
        if self.kind == "fp32":
            return linear.weight, Tensor(np.ones(1, np.float32))
        values = linear.weight.asnumpy()
        if self.kind == "bf16":
            packed = panels(bf16_bits(values), self.kernels.panel)
            return constant(packed, linear.weight.name), Tensor(np.ones(1, np.float32))
        rows, scales = int8_rows(values.T)
        return constant(panels(rows.T, self.kernels.panel), linear.weight.name), Tensor(scales)

    def _table(self, table: Parameter) -> tuple[Parameter | Tensor, Tensor]:
        """The head's matrix (V, D) and its factors."""
        if self.kind == "fp32":
            return table, Tensor(np.ones(1, np.float32))
        values = table.asnumpy()
        if self.kind == "bf16":
            return constant(bf16_bits(values), table.name), Tensor(np.ones(1, np.float32))
        rows, scales = int8_rows(values)
        return constant(rows, table.name), Tensor(scales)


def constant(values: np.ndarray, name: str) -> Parameter:
    """Return a copy of the parameter `name`; no tensor, which would become part of every graph."""
    return Parameter(Tensor(values), name=f"copy.{name}", requires_grad=False)


class FusedBlock(nn.Cell):
    """A block of the model with the keys and values (B, N, S, H) of its attention, as one operator."""

    def __init__(
        self, block: Block, weights: list[tuple], kernel: Primitive, batch_size: int, cache_len: int, settings: Tensor
    ):
        super().__init__(auto_prefix=False)
        num_heads, head_dim = block.attn.num_heads, block.attn.head_dim
        rows = (batch_size * num_heads * cache_len, head_dim)
        self.keys = Parameter(initializer("zeros", rows, ms.float32), name="keys", requires_grad=False)
        self.values = Parameter(initializer("zeros", rows, ms.float32), name="values", requires_grad=False)
        self.ln_1, self.ln_2, self.settings = block.ln_1, block.ln_2, settings
        (
            (self.attn, self.attn_scale),
            (self.proj, self.proj_scale),
            (self.fc, self.fc_scale),
            (self.out, self.out_scale),
        ) = weights
        self.attn_bias, self.proj_bias = block.attn.c_attn.bias, block.attn.c_proj.bias
        self.fc_bias, self.out_bias = block.mlp.c_fc.bias, block.mlp.c_proj.bias
        self.eps = block.ln_1.norm.kernel.eps
        self.slots = Tensor(np.arange(batch_size, dtype=np.int32))
        self.kernel = kernel

    def construct(self, x, positions):
        """The block on new tokens: write their keys and values, attend to all that is written.

        x (M, D), positions (B, T) -> (M, D).
        """
        return self.kernel(
            x, positions, self.slots,
            self.ln_1.weight, self.ln_1.bias, self.attn, self.attn_scale, self.attn_bias,
            self.proj, self.proj_scale, self.proj_bias,
            self.ln_2.weight, self.ln_2.bias, self.fc, self.fc_scale, self.fc_bias,
            self.out, self.out_scale, self.out_bias,
            self.keys, self.values, self.settings, self.eps,
        )  # fmt: skip


class FusedLayers(nn.Cell):
    """From embedded tokens to logits, as `gpt2x.generate.decoder.CachedLayers`."""

    def __init__(self, net: GPT2, model: ModelConfig, weights: Weights, batch_size: int, cache_len: int):
        super().__init__(auto_prefix=False)
        kernels = weights.kernels
        settings = Tensor(kernels.settings(model.num_heads, cache_len))
        self.blocks = nn.CellList(
            [
                FusedBlock(block, matrices, kernels.block(weights.kind), batch_size, cache_len, settings)
                for block, matrices in zip(net.h, weights.blocks, strict=True)
            ],
            auto_prefix=False,
        )
        self.ln_f: LayerNorm = net.ln_f
        self.table, self.table_scale = weights.head
        self.eps = net.ln_f.norm.kernel.eps
        self.head = kernels.head(weights.kind, model.vocab_size)

    def construct(self, x, positions, rows):
        """x (B, T, D), positions (B, T), rows (R,): those of the B T wanted -> logits (R, V)."""
        hidden_size = x.shape[-1]
        x = x.reshape(-1, hidden_size)
        for block in self.blocks:
            x = block(x, positions)
        x = ms.ops.gather(x, rows, 0)
        return self.head(x, self.ln_f.weight, self.ln_f.bias, self.table, self.table_scale, self.eps)
