"""The native backend: gpt2x's C++ kernels (gpt2x/native/src), for the CPU in fp32 and bf16.

In bf16, tensors are fp32 as well; linears and the head round the operands of their products to bf16 and sum in fp32.

Each Cell equals its namesake in `composed` up to rounding; tests/test_native.py compares them. Cells named `...Kernel`
also return what their gradient needs.

Legend: B batch, T tokens, D hidden, N heads, H head dim, V table rows, R rows, K in, N out of a linear.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x import native as cpp
from gpt2x.config import HardwareConfig
from gpt2x.ops import composed
from gpt2x.ops._attention import HeadAttention as ComposedHeadAttention
from gpt2x.ops._dropout import Dropout as ComposedDropout
from gpt2x.ops._native_decoder import DecoderKernels
from gpt2x.ops._native_head import HeadLoss
from gpt2x.ops.base import Backend

NUM_HEAD_SETTINGS = 4  # fields of AttentionSettings before its MaskSettings
ACTIVATIONS = ("gelu_new", "fast_gelu")  # that have kernels


class Linear(nn.Cell):
    """x W + b, or x W if there is no b.

    Args:
        precision: of the operands of products, fp32 or bf16.
    """

    def __init__(self, precision: str = "fp32"):
        super().__init__()
        self.affine, self.product = AffineKernel(precision), ProductKernel(precision)

    def construct(self, x, weight, bias=None):
        """x (R, K), weight (K, N), bias (N,) or None -> (R, N)."""
        return self.product(x, weight) if bias is None else self.affine(x, weight, bias)


class ProductKernel(nn.Cell):
    """x W. Each gradient is an operator of its own, so that those of frozen weights are not computed."""

    def __init__(self, precision: str):
        super().__init__()
        self.forward = cpp.product("linear", precision)
        self.dx, self.dw = cpp.product("linear_dx", precision), cpp.product("linear_dw", precision)

    def construct(self, x, weight):
        """x (R, K), weight (K, N) -> (R, N)."""
        return self.forward(x, weight)

    def bprop(self, x, weight, out, dout):
        """Gradients of x and weight."""
        return self.dx(dout, weight), self.dw(x, dout)


class AffineKernel(nn.Cell):
    """x W + b."""

    def __init__(self, precision: str):
        super().__init__()
        self.forward = cpp.product("linear_bias", precision)
        self.dx, self.dw = cpp.product("linear_dx", precision), cpp.product("linear_dw", precision)
        self.db = cpp.operator("linear_db")

    def construct(self, x, weight, bias):
        """x (R, K), weight (K, N), bias (N,) -> (R, N)."""
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x, weight and bias."""
        return self.dx(dout, weight), self.dw(x, dout), self.db(dout)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dim (Ba et al., arXiv:1607.06450)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.kernel = hidden_size, LayerNormKernel(eps)

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D)."""
        return self.kernel(x.reshape(-1, self.hidden_size), weight, bias)[0].reshape(x.shape)


class LayerNormKernel(nn.Cell):
    """`LayerNorm` that also returns what its gradient needs."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor(np.array([eps], np.float32))
        self.forward = cpp.operator("layer_norm")
        self.backward = cpp.operator("layer_norm_grad")

    def construct(self, x, weight, bias):
        """x (R, D) -> y (R, D), mean (R,), reciprocal standard deviation (R,)."""
        return self.forward(x, weight, bias, self.eps)

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x, weight and bias."""
        return self.backward(dout[0], x, weight, out[1], out[2])


class Activation(nn.Cell):
    """One of ACTIVATIONS, as in `composed`."""

    def __init__(self, name: str):
        super().__init__()
        self.forward = cpp.operator(name)
        self.backward = cpp.operator(f"{name}_grad")

    def construct(self, x):
        """Same shape as x."""
        return self.forward(x)

    def bprop(self, x, out, dout):
        """The gradient of x."""
        return (self.backward(x, dout),)


class Dropout(ComposedDropout):
    """Dropout whose mask is drawn inside the kernel that applies it."""

    def __init__(self, rate: float, site: int, columns: int, first: int = 0):
        super().__init__(rate, site, columns, first)
        self.settings, self.reads_site = Tensor(self.mask_settings()), False
        self.kernel = DropoutKernel()

    def read_site(self, number: ms.Parameter) -> None:
        """As `gpt2x.ops.Dropout.read_site`."""
        settings = self.mask_settings()
        assert settings[0] == self.site, "the site is the first field of MaskSettings"
        super().read_site(number)
        self.settings, self.reads_site = Tensor(settings[1:]), True

    def operand(self):
        """Return MaskSettings, int32 (4,), within a graph."""
        return ops.concat((self.site, self.settings), 0) if self.reads_site else self.settings

    def mask_settings(self) -> np.ndarray:
        """Return what decides a mask besides key and row: MaskSettings, int32 (4,)."""
        scale_bits = np.float32(self.scale).view(np.int32)
        return cpp.record(
            "MaskSettings", site=self.site, threshold=self.threshold, scale=scale_bits, first_column=self.first
        )

    def construct(self, x, key, rows):
        """x (B, T, D); rows (B * T, 1) -> x after dropout."""
        return self.kernel(x, key, rows, self.operand())


class DropoutKernel(nn.Cell):
    """`Dropout`, whose gradient draws the mask again."""

    def __init__(self):
        super().__init__()
        self.apply_mask = cpp.operator("dropout")

    def construct(self, x, key, rows, settings):
        """x (..., D), rows: one number per row of x -> the shape of x."""
        return self.apply_mask(x, key, rows, settings)

    def bprop(self, x, key, rows, settings, out, dout):
        """The gradient of x, through the same mask."""
        dx = self.apply_mask(dout, key, rows, settings)
        return dx, ops.zeros_like(key), ops.zeros_like(rows), ops.zeros_like(settings)


class HeadAttention(nn.Cell):
    """`composed.HeadAttention` (which explains the arguments); scores exist for one block of queries at a time."""

    def __init__(self, num_heads: int, head_dim: int, dropout: Dropout | None, first_head: int, all_heads: int):
        super().__init__()
        self.kernel, self.dropout = AttentionKernel(num_heads), dropout
        self.none = Tensor(np.zeros(1, np.int32))
        mask = np.zeros(4, np.int32) if dropout is None else dropout.mask_settings()
        self.settings = tuple(
            self.record(has_starts, has_dropout, first_head, all_heads, mask)
            for has_dropout in (0, 1)
            for has_starts in (0, 1)
        )
        self.split_heads = ComposedHeadAttention(nn.Cell(), num_heads, head_dim, None, first_head, all_heads)

    @staticmethod
    def record(has_starts: int, has_dropout: int, first_head: int, all_heads: int, mask: np.ndarray) -> Tensor:
        """Return the operand `settings`: AttentionSettings, int32 (8,)."""
        fields = {"has_starts": has_starts, "has_dropout": has_dropout, "first_head": first_head}
        return Tensor(cpp.record("AttentionSettings", **fields, all_heads=all_heads, mask=mask))

    def split(self, qkv):
        """qkv (B, T, 3D) -> three times (B, N, T, H)."""
        return self.split_heads.split(qkv)

    def merge(self, x):
        """x (B, N, T, H) -> (B, T, D)."""
        return self.split_heads.merge(x)

    def segments(self, starts):
        """Return `starts` (B, T) as they are."""
        return starts

    def construct(self, qkv, randomness, starts=None):
        """qkv (B, T, 3D) -> (B, T, D).

        randomness and starts: as in `GPT2.construct`; randomness[-1] has the rows of all tokens.
        """
        has_dropout = self.dropout is not None and randomness is not None
        key = randomness[0] if has_dropout else self.none
        rows = randomness[-1] if has_dropout else self.none
        settings = self.settings[2 * has_dropout + (starts is not None)]
        if has_dropout and self.dropout.reads_site:
            settings = ops.concat((settings[:NUM_HEAD_SETTINGS], self.dropout.operand()), 0)
        return self.kernel(qkv, self.none if starts is None else starts, key, rows, settings)[0]

    def recompute_weights(self):
        """Do nothing: this kernel always recomputes the weights in backward."""


class AttentionKernel(nn.Cell):
    """`HeadAttention` that also returns what its gradient needs."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.forward, self.backward = cpp.operator("attention", N=num_heads), cpp.operator("attention_grad")

    def construct(self, qkv, starts, key, rows, settings):
        """qkv (B, T, 3D) -> output (B, T, D), log-sum-exp of the scores (B, N, T)."""
        return self.forward(qkv, starts, key, rows, settings)

    def bprop(self, qkv, starts, key, rows, settings, out, dout):
        """The gradient of qkv (B, T, 3D)."""
        dqkv = self.backward(dout[0], qkv, out[0], out[1], starts, key, rows, settings)
        nothing = ops.zeros_like(starts), ops.zeros_like(key), ops.zeros_like(rows), ops.zeros_like(settings)
        return dqkv, *nothing


class AdamWUpdate(composed.AdamWUpdate):
    """`composed.AdamWUpdate` in one pass over memory."""

    def __init__(self, beta1: float, beta2: float):
        super().__init__(beta1, beta2)
        self.update, self.update_by_group = adamw_updates(beta1, beta2)

    def construct(self, parameters, means, squares, gradients, decays, groups, factor, finite, rate, eps, decay_factor):
        """Same arguments as `composed.AdamWUpdate.construct`."""
        tensors = parameters, means, squares, gradients, decays
        if groups is None:
            self.for_each(ops.partial(self.update, factor, finite, rate, eps, decay_factor), *tensors)
        else:
            update = ops.partial(self.update_by_group, factor, finite, rate, eps, decay_factor)
            self.for_each(update, *tensors, groups)
        return True


def adamw_updates(beta1: float, beta2: float) -> tuple[ops.MultitypeFuncGraph, ops.MultitypeFuncGraph]:
    """Return the update of one tensor, by scalars of all parameters and by those of the parameter's group."""
    kernel = cpp.operator("adamw", in_place=True)
    betas, one = Tensor(np.array([beta1, beta2], np.float32)), Tensor(1.0, ms.float32)
    update = ops.MultitypeFuncGraph("native_update")
    by_group = ops.MultitypeFuncGraph("native_update_by_group")

    @update.register(*["Tensor"] * 9, "Bool")
    def _native_update(factor, finite, rate, eps, decay_factor, parameter, mean, square, gradient, decays):
        kernel(parameter, mean, square, gradient, factor, finite, rate, eps, decay_factor if decays else one, betas)
        return True

    @by_group.register(*["Tensor"] * 9, "Bool", "Tensor")
    def _native_by_group(factor, finite, rates, eps, decay_factors, parameter, mean, square, gradient, decays, group):
        decay_factor = ops.gather(decay_factors, group, 0) if decays else one
        rate = ops.gather(rates, group, 0)
        kernel(parameter, mean, square, gradient, factor, finite, rate, eps, decay_factor, betas)
        return True

    return update, by_group


def native_square_sum() -> ops.MultitypeFuncGraph:
    """Return the kernel of `Backend.square_sum`."""
    kernel = cpp.operator("square_sum")
    square_sum = ops.MultitypeFuncGraph("native_square_sum")

    @square_sum.register("Tensor")
    def _native_square_sum(gradient):
        return kernel(gradient).reshape(())

    return square_sum


class NativeUpdate(composed.Composed):
    """C++ kernels for the optimizer update, which is fp32 in every precision; composed operators for the model."""

    def __init__(self, hardware: HardwareConfig):
        super().__init__(hardware)
        self.library = cpp.library().path

    def square_sum(self) -> ops.MultitypeFuncGraph:
        """As `Backend.square_sum`."""
        return native_square_sum()

    def adamw(self, beta1: float, beta2: float) -> nn.Cell:
        """As `Backend.adamw`."""
        return AdamWUpdate(beta1, beta2)


class Native(NativeUpdate):
    """C++ kernels; composed operators in fp32 for what has none (the activation gelu, cross entropy of logits)."""

    def __init__(self, hardware: HardwareConfig):
        super().__init__(hardware)
        self.precision = hardware.precision  # of the operands of products

    def linear(self) -> nn.Cell:
        """As `Backend.linear`."""
        return Linear(self.precision)

    def layer_norm(self, hidden_size: int, eps: float) -> nn.Cell:
        """As `Backend.layer_norm`."""
        return LayerNorm(hidden_size, eps)

    def activation(self, name: str) -> nn.Cell:
        """As `Backend.activation`."""
        return Activation(name) if name in ACTIVATIONS else super().activation(name)

    def dropout(self, rate: float, site: int, columns: int, first: int = 0) -> Dropout | None:
        """As `Backend.dropout`."""
        return Dropout(rate, site, columns, first) if rate > 0 else None

    def attention(
        self,
        num_heads: int,
        head_dim: int,
        max_seq_len: int,
        dropout: Dropout | None,
        first_head: int = 0,
        all_heads: int | None = None,
    ) -> nn.Cell:
        """As `Backend.attention`."""
        return HeadAttention(num_heads, head_dim, dropout, first_head, all_heads or num_heads)

    def head_loss(self, vocab_size: int) -> nn.Cell:
        """As `Backend.head_loss`."""
        return HeadLoss(vocab_size, self.precision)

    def decoder(self, activation: str) -> DecoderKernels | None:
        """As `Backend.decoder`; None if the kernels lack the activation."""
        return DecoderKernels(activation) if activation in ACTIVATIONS else None


def create(hardware: HardwareConfig) -> Backend:
    """Return the native backend, or the composed one if this machine has no kernels (`set_up_device` warns).

    Raises:
        UserError: bf16 without kernels, or on a processor without it.
    """
    if hardware.precision == "bf16":
        cpp.require_bf16()
    try:
        return Native(hardware) if hardware.computes_natively else NativeUpdate(hardware)
    except cpp.MissingKernelsError:
        return composed.create(hardware)
