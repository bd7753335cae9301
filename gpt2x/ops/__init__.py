"""The operators of the model, each chosen once for its device and precision, when a cell is built (floor 1).

`composed` writes them out with MindSpore's operators, `native` has kernels of our own for the CPU in fp32
(`gpt2x.native`), `ascend` MindSpore's fused ones for Ascend. docs/design/ops.md has the measurements.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from gpt2x import native as library
from gpt2x.ops import ascend, composed, native
from gpt2x.ops.composed import Dropout

CPU, ASCEND = "CPU", "Ascend"
DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}


def is_native(dtype) -> bool:
    """Whether kernels of our own compute: they are switched on (`gpt2x.native.set_up`), and know fp32 alone."""
    return library.is_on() and dtype == ms.float32


def linear(dtype) -> nn.Cell:
    """x W + b: a Cell of (x (R, K), weight (K, N), bias (N,) or None)."""
    return native.Linear() if is_native(dtype) else composed.Linear()


def layer_norm(hidden_size: int, eps: float, device_target: str, dtype) -> nn.Cell:
    """Layer normalisation: a Cell of (x (..., D), weight (D,), bias (D,))."""
    if device_target != CPU:
        return ascend.LayerNormAscend(hidden_size, eps)
    return native.LayerNorm(hidden_size, eps) if is_native(dtype) else composed.LayerNorm(hidden_size, eps)


def activation(name: str, device_target: str, dtype) -> nn.Cell:
    """The activation called `name`: gelu_new, gelu or fast_gelu."""
    if is_native(dtype) and name in native.ACTIVATIONS:
        return native.Activation(name)
    if name == "gelu_new":
        return composed.GeluNew() if device_target == CPU else ascend.GeluNewAscend()
    return {"gelu": composed.GeluErf, "fast_gelu": composed.FastGelu}[name]()


def dropout(rate: float, site: int, columns: int, dtype, first: int = 0) -> Dropout | None:
    """Dropout (`composed.Dropout` has the arguments); None where nothing is dropped."""
    if rate == 0:
        return None
    return (native.Dropout if is_native(dtype) else Dropout)(rate, site, columns, first)


def attention(
    num_heads: int,
    head_dim: int,
    max_seq_len: int,
    dropout: Dropout | None,
    device_target: str,
    dtype,
    flash: bool,
    first_head: int = 0,
    all_heads: int | None = None,
) -> nn.Cell:
    """The causal attention of the device, as `composed.HeadAttention`, which has the arguments."""
    all_heads = num_heads if all_heads is None else all_heads
    if is_native(dtype):
        return native.HeadAttention(num_heads, head_dim, dropout, first_head, all_heads)
    attend = composed.Attention(head_dim, max_seq_len)
    if device_target != CPU:
        attend = ascend.AttentionAscend(num_heads, head_dim, max_seq_len, flash)
    return composed.HeadAttention(attend, num_heads, head_dim, dropout, first_head, all_heads)
