"""Every operator of a backend against NumPy in float64: results, and gradients along a random direction.

Legend: B batch, T tokens, D hidden, N heads, H head dim, R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gpt2x.config import HardwareConfig, OptimizerConfig
from gpt2x.doctor.report import Check, CheckFailedError
from gpt2x.native.constants import MIX_1, MIX_2, WEYL
from gpt2x.ops import DTYPES, backend_of
from gpt2x.optim.registry import create_optimizer

# largest accepted error, as a share of the largest value: of results, and of gradients
TOLERANCES = {"fp32": (1e-5, 2e-3), "fp16": (5e-3, 5e-2), "bf16": (4e-2, 2e-1)}
B, T, N, H = 2, 160, 2, 16  # T: more than the 128 rows or columns that flash kernels compute at once
D = N * H
RATE, SITE, KEY = 0.25, 5, -123456789


@dataclass(frozen=True)
class Case:
    """An operator with its inputs and its formula.

    Attributes:
        name: for the report.
        cell: returns the Cell; called once the device is set up.
        formula: the same on float64 arrays.
        inputs: arrays; the floating-point ones are given in the compute dtype.
        constants: what the cell takes after them, as Tensors or tuples of them.
        num_gradients: of how many inputs the gradient is checked.
        fp32_inputs: numbers of the inputs that stay fp32 in every precision.
    """

    name: str
    cell: Callable[[], Any]
    formula: Callable[..., np.ndarray]
    inputs: tuple[np.ndarray, ...]
    constants: Callable[[], tuple] = tuple
    num_gradients: int = 1
    fp32_inputs: tuple[int, ...] = field(default=())


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return normal numbers, fp32."""
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(np.float32)


# ---- formulas


def layer_norm(x, weight, bias):
    """Normalise rows of (R, D)."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def gelu_new(x):
    """Return GELU's tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    """Return GELU by the error function."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def keep_mask(rows: np.ndarray, columns: int, site: int = SITE) -> np.ndarray:
    """Return dropout's multipliers by 32-bit arithmetic that wraps around: rows (R,) -> (R, columns).

    The hash of `gpt2x.ops.Dropout`, written once more: on a device whose int32 does not wrap around, both differ.
    """

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(MIX_1)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(MIX_2)
        return x ^ (x >> np.uint32(16))

    hashed_site = np.uint32((site * 0x9E3779B1 + 0x7F4A7C15) % 2**31)
    hashed_rows = mix(mix(rows.astype(np.uint32) ^ hashed_site) + np.uint32(KEY % 2**32))[:, None]
    numbers = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(WEYL)
    x = hashed_rows + mix((numbers >> np.uint64(32)).astype(np.uint32))[None]
    x = x * (x + np.uint32(MIX_1))
    return (x.view(np.int32) >= round(RATE * 2**32) - 2**31) / (1 - RATE)


def attention(qkv, has_dropout: bool, starts: np.ndarray | None):
    """Attend: qkv (B, T, 3D) -> (B, T, D)."""
    q, k, v = (part.reshape(B, T, N, H).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, -1))
    columns = np.arange(T)
    hidden = np.broadcast_to(columns[None, None] > columns[None, :, None], (B, T, T))
    if starts is not None:
        hidden = hidden | (columns[None, None] < starts[:, :, None])
    scores = np.where(hidden[:, None], -np.inf, q @ k.swapaxes(-1, -2) / math.sqrt(H))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    if has_dropout:
        tokens = np.arange(B * T).reshape(B, 1, T) * N + np.arange(N).reshape(1, N, 1)
        weights = weights * keep_mask(tokens.reshape(-1), T).reshape(B, N, T, T)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(B, T, D)


def cross_entropy(logits, labels):
    """Return negative log-likelihoods: logits (R, V) -> (R,)."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]


class Gradients(nn.Cell):
    """Gradients of all inputs of an operator, for the gradient of its result."""

    def __init__(self, cell: nn.Cell):
        super().__init__(auto_prefix=False)
        self.cell, self.gradient = cell, ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, direction, *inputs):
        """-> a gradient per tensor among the inputs."""
        return self.gradient(self.cell)(*inputs, direction)


class PackedAttention(nn.Cell):
    """Attention of rows of several segments, as a net calls it."""

    def __init__(self, attention: Any):
        super().__init__(auto_prefix=False)
        self.attention = attention

    def construct(self, qkv, randomness, starts):
        """qkv (B, T, 3D), starts (B, T) -> (B, T, D)."""
        return self.attention(qkv, randomness, self.attention.segments(starts))


# ---- cases


def cases(hardware: HardwareConfig) -> list[Case]:
    """Return a case for each operator of the model."""
    backend = backend_of(hardware)
    rows = np.arange(B * T, dtype=np.int32)
    columns = np.arange(T)
    starts = np.stack([np.where(columns < 50, 0, np.where(columns < 60, 50, 60)), np.where(columns < 150, 0, 150)])
    starts = starts.astype(np.int32)
    labels = np.arange(B * T).astype(np.int32) % 7

    def randomness() -> tuple:
        return ((Tensor(np.int32(KEY)), Tensor(rows.reshape(-1, 1))),)

    def attend(has_dropout: bool, is_packed: bool = False) -> Callable[[], Any]:
        def cell() -> Any:
            attention = backend.attention(N, H, T, backend.dropout(RATE, SITE, T) if has_dropout else None)
            return PackedAttention(attention) if is_packed else attention

        return cell

    qkv = draw(B, T, 3 * D)
    x, vectors = draw(B * T, D), (draw(D, seed=1), draw(D, seed=2))
    return [
        Case("linear", backend.linear, lambda x, w, b: x @ w + b, (x, draw(D, 24, scale=0.2), draw(24)),
             num_gradients=3),
        Case("layer norm", lambda: backend.layer_norm(D, 1e-5), layer_norm, (x, *vectors), num_gradients=3,
             fp32_inputs=(1, 2)),
        Case("gelu_new", lambda: backend.activation("gelu_new"), gelu_new, (x,)),
        Case("gelu", lambda: backend.activation("gelu"), gelu, (x,)),
        Case("dropout", lambda: backend.dropout(RATE, SITE, D), lambda x: x * keep_mask(rows, D).reshape(B, T, D),
             (draw(B, T, D),), lambda: (Tensor(np.int32(KEY)), Tensor(rows.reshape(-1, 1)))),
        Case("attention", attend(False), lambda qkv: attention(qkv, False, None), (qkv,), lambda: (None,)),
        Case("attention with dropout", attend(True), lambda qkv: attention(qkv, True, None), (qkv,), randomness),
        Case("attention of packed rows", attend(False, True), lambda qkv: attention(qkv, False, starts), (qkv,),
             lambda: (None, Tensor(starts))),
        Case("attention of packed rows with dropout", attend(True, True), lambda qkv: attention(qkv, True, starts),
             (qkv,), lambda: (*randomness(), Tensor(starts))),
        Case("cross entropy", backend.cross_entropy, lambda logits: cross_entropy(logits, labels),
             (draw(B * T, 12),), lambda: (Tensor(labels),)),
    ]  # fmt: skip


def operator_checks(hardware: HardwareConfig) -> list[Check]:
    """Return a check of each operator in the compute dtype of `hardware`; the device is set up."""
    advice = (
        "send doctor.md with an issue; --precision fp32 tells whether the fused form of the operator is wrong, or its "
        "formula"
    )
    checks = [
        Check("operators", case.name, lambda case=case: compare(case, hardware), advice) for case in cases(hardware)
    ]
    return [*checks, Check("operators", "AdamW", lambda: compare_adamw(hardware), advice)]


def compare_adamw(hardware: HardwareConfig) -> str:
    """Compare three updates of a matrix with PyTorch's formula of AdamW, in fp32 whatever the precision.

    Raises:
        CheckFailedError: a value differs by more than is allowed in fp32.
    """
    config = OptimizerConfig(name="doctor", learning_rate=1e-2)
    expected = draw(6, 8).astype(np.float64)
    parameter = Parameter(Tensor(expected.astype(np.float32)), name="matrix")
    optimizer = create_optimizer(config, [parameter], backend_of(hardware))
    mean, square = np.zeros_like(expected), np.zeros_like(expected)
    for update in (1, 2, 3):
        gradient = draw(6, 8, seed=update)
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient.astype(np.float64) ** 2
        correction = math.sqrt(1 - config.beta2**update)
        step = mean / (1 - config.beta1**update) / (np.sqrt(square) / correction + config.eps)
        expected = expected * (1 - config.learning_rate * config.weight_decay) - config.learning_rate * step
        scalars = optimizer.scalars(config.learning_rate, update)
        optimizer((Tensor(gradient),), Tensor(1.0, ms.float32), Tensor(True), scalars)
    error, allowed = largest(parameter.asnumpy() - expected, expected), TOLERANCES["fp32"][0]
    text = f"differs by {error:.0e} after 3 updates (allowed {allowed:.0e})"
    if not error <= allowed:
        raise CheckFailedError(text)
    return text


def compare(case: Case, hardware: HardwareConfig) -> str:
    """Compare results and gradients of a case with its formula.

    Raises:
        CheckFailedError: a difference exceeds `TOLERANCES`.
    """
    dtype = DTYPES[hardware.tensor_precision]
    tensors = [
        Tensor(value, ms.float32 if index in case.fp32_inputs else dtype) for index, value in enumerate(case.inputs)
    ]
    exact = [tensor.astype(ms.float32).asnumpy().astype(np.float64) for tensor in tensors]
    expected, constants, cell = case.formula(*exact), case.constants(), case.cell()
    direction = draw(*expected.shape, seed=3)

    result = cell(*tensors, *constants)
    gradients = Gradients(cell)(Tensor(direction, result.dtype), *tensors, *constants)
    error = largest(result.astype(ms.float32).asnumpy() - expected, expected)
    slope = max(
        slope_error(case, exact, index, direction, gradients[index].astype(ms.float32).asnumpy())
        for index in range(case.num_gradients)
    )
    allowed = TOLERANCES[hardware.precision]
    text = f"differs by {error:.0e}, gradients by {slope:.0e} (allowed {allowed[0]:.0e}, {allowed[1]:.0e})"
    if not (error <= allowed[0] and slope <= allowed[1]):
        raise CheckFailedError(text)
    return text


def largest(difference: np.ndarray, values: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value."""
    return float(np.abs(difference).max() / np.abs(values).max())


def slope_error(
    case: Case, inputs: list[np.ndarray], index: int, direction: np.ndarray, gradient: np.ndarray, eps: float = 1e-4
) -> float:
    """Return how far the gradient is from the formula's slope along a random direction, as a share of its length."""
    step = np.random.default_rng(7).standard_normal(inputs[index].shape)
    ends = []
    for sign in (1, -1):
        moved = [value + sign * eps * step if at == index else value for at, value in enumerate(inputs)]
        ends.append((case.formula(*moved) * direction).sum())
    slope = (ends[0] - ends[1]) / (2 * eps)
    return float(abs((gradient * step).sum() - slope) / np.linalg.norm(gradient))
