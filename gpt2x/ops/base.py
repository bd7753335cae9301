"""What a backend provides: every operator of the model, the optimizer and the decoder that is chosen by hardware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from gpt2x.config import HardwareConfig
from gpt2x.ops._dropout import Dropout

DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}


class Backend(ABC):
    """The implementation of the operators on one kind of hardware.

    A backend is a file of this package with a function `create(hardware) -> Backend`. `HardwareConfig.backend` is the
    name of the file.

    Attributes:
        dtype: compute dtype of MindSpore.
        exp_is_exact: whether a log-softmax on the device has the digits that a published perplexity needs.
        library: the compiled kernels that graphs of this backend name; None if there are none.
    """

    exp_is_exact: bool
    library: Path | None = None

    def __init__(self, hardware: HardwareConfig):
        self.dtype = DTYPES[hardware.tensor_precision]

    @abstractmethod
    def linear(self) -> nn.Cell:
        """x W + b: a Cell of (x (R, K), weight (K, N), bias (N,) or None) -> (R, N)."""

    @abstractmethod
    def embedding(self) -> nn.Cell:
        """Return rows of a table: a Cell of (ids (...) int32, table (V, D)) -> (..., D)."""

    @abstractmethod
    def layer_norm(self, hidden_size: int, eps: float) -> nn.Cell:
        """Layer normalisation: a Cell of (x (..., D), weight (D,), bias (D,)) -> (..., D)."""

    @abstractmethod
    def activation(self, name: str) -> nn.Cell:
        """Return the activation gelu_new, gelu or fast_gelu: a Cell of (x) -> x's shape."""

    @abstractmethod
    def dropout(self, rate: float, site: int, columns: int, first: int = 0) -> Dropout | None:
        """Dropout (`gpt2x.ops.Dropout` explains the arguments); None if nothing is dropped."""

    @abstractmethod
    def attention(
        self,
        num_heads: int,
        head_dim: int,
        max_seq_len: int,
        dropout: Dropout | None,
        first_head: int = 0,
        all_heads: int | None = None,
    ) -> nn.Cell:
        """Causal attention of queries, keys and values side by side.

        Args:
            num_heads: of this process.
            head_dim: H.
            max_seq_len: the largest T.
            dropout: on the weights, or None.
            first_head: number of this process' first head among all heads.
            all_heads: heads of all processes; None: `num_heads`.

        Returns:
            A Cell of (qkv (B, T, 3D), randomness, segments) -> (B, T, D), with the methods `split`, `merge`,
            `segments` and `recompute_weights` of `gpt2x.ops.composed.HeadAttention`.
        """

    @abstractmethod
    def cross_entropy(self) -> nn.Cell:
        """Negative log-likelihoods in nats: a Cell of (logits (R, V), labels (R,)) -> (R,) fp32."""

    @abstractmethod
    def head_loss(self, vocab_size: int) -> nn.Cell | None:
        """Head and cross entropy as one Cell (`gpt2x.ops.native.HeadLoss`); None if the logits exist whole."""

    @abstractmethod
    def square_sum(self) -> ops.MultitypeFuncGraph:
        """Return the sum of a tensor's squares, to map over tensors: (gradient) -> scalar fp32."""

    @abstractmethod
    def adamw(self, beta1: float, beta2: float) -> nn.Cell:
        """Return the update of all parameters and their states in place (`gpt2x.ops.composed.AdamWUpdate`)."""

    @abstractmethod
    def decoder(self, activation: str) -> Any | None:
        """Fused kernels that decode a model with `activation` (`gpt2x.ops.native.DecoderKernels`), or None."""
