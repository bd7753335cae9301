"""Pipeline stages, their messages and the order of their work (1F1B: Narayanan et al., arXiv:2104.04473, section 2.2).

`gpt2x.train.pipeline_step` runs an update in this order. `gpt2x.parallel.gradient_reduction` sums the gradient of a
tied embedding, which the first and the last stage both have.

Legend: b sequences of a micro batch, T tokens (a slice of them under sequence parallelism), D hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model.gpt2 import GPT2
from gpt2x.ops import DTYPES
from gpt2x.parallel.mesh import Mesh, PointToPoint
from gpt2x.parallel.placement import holds
from gpt2x.parallel.tensor import TensorParallelGPT2


def keep_stage(net: GPT2, model: ModelConfig, coordinates: Coordinates) -> None:
    """Remove the layers of other stages from `net`; the names of what stays are those of the whole model."""
    if coordinates.parallel.pipeline == 1:
        return
    layers = coordinates.layers(model.num_layers)
    names = {id(parameter): parameter.name for parameter in net.get_parameters()}
    net.h = nn.CellList([net.h[layer] for layer in layers], auto_prefix=False)
    for part in ("wte", "wpe", "ln_f", "lm_head"):
        if getattr(net, part) is not None and not holds(f"{part}.weight", model, coordinates):
            delattr(net, part)
            setattr(net, part, None)
    for parameter in net.get_parameters():
        parameter.name = names[id(parameter)]  # a list of cells renames its cells


class Stage(nn.Cell):
    """The layers of one stage: from token ids or the hidden states before it to the hidden states after it.

    Args:
        net: this process's part of the model.
        is_first: whether it begins with the embeddings.
        is_last: whether it ends with the last layer norm.
        has_blocks: whether it has the blocks in between; they can have graphs of their own
            (`gpt2x.parallel.block_graphs`).
    """

    def __init__(self, net: GPT2, is_first: bool, is_last: bool, has_blocks: bool = True):
        super().__init__(auto_prefix=False)
        self.net, self.is_first, self.is_last, self.has_blocks = net, is_first, is_last, has_blocks
        self.spreads = isinstance(net, TensorParallelGPT2)

    def construct(self, x, randomness, starts=None):
        """x: ids (b, T) int32 on the first stage, else (b, T, D) -> (b, T, D); the rest as in `GPT2.construct`."""
        if self.is_first:
            x = self.net.begin(x, randomness, starts)
        if self.has_blocks:
            segments = self.net.segments(starts)
            if self.spreads:
                randomness = self.net.spread(randomness, x.shape[0])
            for block in self.net.h:
                x = block(x, randomness, segments)
        if self.is_last:
            x = self.net.end(x)
        return x


def whole_stage(net: GPT2, coordinates: Coordinates) -> Stage:
    """Return all layers of a process's stage."""
    return Stage(net, coordinates.is_first_stage, coordinates.is_last_stage)


def one_forward_one_backward(stage: int, num_stages: int, num_micro_batches: int) -> Iterator[tuple[str, int]]:
    """Return the order in which a stage works: ("forward" or "backward", micro batch)."""
    ahead = min(num_stages - 1 - stage, num_micro_batches)
    for index in range(ahead):
        yield "forward", index
    for index in range(num_micro_batches - ahead):
        yield "forward", ahead + index
        yield "backward", index
    for index in range(num_micro_batches - ahead, num_micro_batches):
        yield "backward", index


def operations(stage: int, num_stages: int, num_micro_batches: int) -> Iterator[tuple[str, int]]:
    """Return all that a stage does in an update: (operation, micro batch).

    Operations: `forward` and `backward`, `receive_forward` and `send_backward` with the stage before, `send_forward`
    and `receive_backward` with the stage after. A send ends only when the receiver waits for it. So if both sides of a
    link send, they must agree on who is first: even stages send first, odd stages receive first.
    """
    is_first, is_last, sends_first = stage == 0, stage == num_stages - 1, stage % 2 == 0
    work = list(one_forward_one_backward(stage, num_stages, num_micro_batches))
    alternates = num_micro_batches > num_stages - 1 - stage  # forward and backward, between filling and draining
    if not is_first:
        yield "receive_forward", 0
    for (kind, index), (following, upcoming) in itertools.zip_longest(work, work[1:], fillvalue=("nothing", -1)):
        yield kind, index
        sends, receives = [], []
        if kind == "forward" and not is_last:
            sends = [("send_forward", index)]
        elif kind == "backward" and not is_first:
            sends = [("send_backward", index)]
        if following == "forward" and not is_first:
            receives = [("receive_forward", upcoming)]
        elif following == "backward" and not is_last:
            receives = [("receive_backward", upcoming)]
        # Both sides of a link send at once only while this stage alternates. Then they must agree on who is first.
        is_exchange = kind != following and alternates
        yield from sends + receives if sends_first or not is_exchange else receives + sends


class StageLinks:
    """The messages of a stage with the stages before and after it."""

    def __init__(self, mesh: Mesh, model: ModelConfig, hardware: HardwareConfig, batch_size: int, seq_len: int):
        coordinates = mesh.coordinates
        tokens = seq_len // coordinates.parallel.tensor if coordinates.parallel.sequence_parallel else seq_len
        self.shape, self.dtype = (batch_size, tokens, model.hidden_size), DTYPES[hardware.tensor_precision]
        self.messages = PointToPoint()
        self.before = None if coordinates.is_first_stage else coordinates.rank_at(stage=coordinates.stage - 1)
        self.after = None if coordinates.is_last_stage else coordinates.rank_at(stage=coordinates.stage + 1)

    def receive_forward(self) -> Tensor | None:
        """Return the hidden states from the stage before; None on the first stage."""
        return None if self.before is None else self.messages.receive(self.shape, self.dtype, self.before)

    def send_forward(self, x: Tensor) -> None:
        """Send hidden states to the stage after."""
        if self.after is not None:
            self.messages.send(x, self.after)

    def receive_backward(self) -> Tensor | None:
        """Return the gradient from the stage after; None on the last stage."""
        return None if self.after is None else self.messages.receive(self.shape, self.dtype, self.after)

    def send_backward(self, dx: Tensor) -> None:
        """Send a gradient to the stage before."""
        if self.before is not None:
            self.messages.send(dx, self.before)

    def example(self) -> Tensor:
        """Return a message of zeros, for compilation."""
        return Tensor(np.zeros(self.shape, ms.dtype_to_nptype(self.dtype)))
