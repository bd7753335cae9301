"""Where a loss or a gradient that is not finite comes from (trainer.stop_on_nonfinite).

The guard has left the parameters as they were, so the same update can be computed again and looked at: first the
weights, then the values of a forward pass in its order, then the gradients in the order of backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from gpt2x.model.gpt2 import GPT2, dropout_randomness
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.statistics.gradients import GradientMeter
from gpt2x.train.statistics.tensors import over_processes
from gpt2x.train.step import GraphStep, StepInputs

FOLDER = "nonfinite"  # within the run directory
PARTS = ("ln_1", "attn", "", "ln_2", "mlp", "")  # of a block, in order; "" is the residual stream after a half


class Forward(nn.Cell):
    """How many values of each activation of a micro batch are not finite, in the order of computation.

    Args:
        net: all layers and all tokens.
        has_dropout: whether the loss draws random numbers.
        row_length: as in `dropout_randomness`.
    """

    def __init__(self, net: GPT2, has_dropout: bool, row_length: int | None = None):
        super().__init__(auto_prefix=False)
        self.net, self.has_dropout, self.row_length = net, has_dropout, row_length
        labels = [f"h.{layer}.{part}".rstrip(".") for layer in range(len(net.h)) for part in PARTS]
        self.labels = ["embedding", *labels, "ln_f"]

    def construct(self, ids, starts, key, first_row):
        """Arguments of `Gradients` -> (len(labels),) fp32."""
        net, tokens = self.net, ids[:, :-1]
        randomness = dropout_randomness(self.has_dropout, key, first_row, *tokens.shape, self.row_length)
        x, segments = net.begin(tokens, randomness, starts), net.segments(starts)
        counts = (self.count(x),)
        for block in net.h:
            normed = block.ln_1(x)
            attended = block.attn(normed, randomness, segments)
            x = block.add(x, attended, block.attn_dropout, randomness)
            counts = (*counts, self.count(normed), self.count(attended), self.count(x))
            normed = block.ln_2(x)
            fed = block.mlp(normed, randomness)
            x = block.add(x, fed, block.mlp_dropout, randomness)
            counts = (*counts, self.count(normed), self.count(fed), self.count(x))
        return ops.stack((*counts, self.count(net.end(x))))

    def count(self, x):
        """Return the number of values that are not finite, scalar fp32."""
        return ops.reduce_sum(1.0 - ops.cast(ops.isfinite(ops.cast(x, ms.float32)), ms.float32))


class NonFinite:
    """Finds the origin of values that are not finite.

    Args:
        stored: the logical tensors of checkpoints.
        names: those that are trained.
        tensors: those of this process.
        mesh: the processes.
        gradients: of this process.
        forward: None if this process has not all layers and all tokens; then activations are not looked at.
    """

    def __init__(
        self,
        stored: list[str],
        names: list[str],
        tensors: RankTensors,
        mesh: Mesh,
        gradients: GradientMeter,
        forward: Forward | None,
    ):
        self.stored, self.names, self.tensors, self.mesh = stored, names, tensors, mesh
        self.gradients, self.forward = gradients, forward

    def origin(self, train_step: GraphStep, inputs: StepInputs, loss: float) -> str:
        """Return in words what is not finite first; every process calls this after the update that was left out.

        Args:
            train_step: the update.
            inputs: of the update that was left out.
            loss: of that update.
        """
        weights = self.wrong_weights()
        if weights:
            return f"the weights were not finite before the update: {listed(weights)}"
        first = self.first_activation(inputs)
        if first:
            return first
        if not np.isfinite(loss):
            looked = "all activations up to ln_f are finite, so" if self.forward else "this layout does not look at"
            what = "the head or the loss is not" if self.forward else "activations"
            return f"the loss is {loss}; {looked} {what}"
        wrong, largest = self.wrong_gradients(train_step, inputs)
        if not wrong:
            return f"each gradient is finite, but not their common norm; the largest is that of {largest}"
        return (
            f"the loss is finite, {len(wrong)} of {len(self.names)} gradients are not: the first in backward is that "
            f"of {wrong[0]}"
        )

    def wrong_weights(self) -> list[str]:
        """Return the tensors that have values that are not finite."""
        local = {
            name: float(sum((~np.isfinite(part)).sum() for _, part in sliced.parts))
            for name, sliced in self.tensors.weights().items()
        }
        counts = over_processes(self.mesh, self.stored, local)
        return [name for name, count in zip(self.stored, counts, strict=True) if count]

    def first_activation(self, inputs: StepInputs) -> str:
        """Return the first activation that is not finite, in words; '' if there is none, or if none is looked at."""
        if self.forward is None:
            return ""
        counts = np.zeros(len(self.forward.labels))
        for micro_batch in inputs.micro_batches():
            counts += self.forward(*micro_batch.of_hidden).asnumpy()
        counts = self.mesh.gather(counts).sum(axis=0)
        if not counts.any():
            return ""
        first = int(np.flatnonzero(counts)[0])
        where = describe(self.forward.labels[first])
        before = f"; {describe(self.forward.labels[first - 1])} is finite" if first else ""
        return f"the first activation that is not finite is {where}: {counts[first]:,.0f} values{before}"

    def wrong_gradients(self, train_step: GraphStep, inputs: StepInputs) -> tuple[list[str], str]:
        """Return the tensors whose gradients are not finite, in the order of backward, and the largest gradient."""
        local: dict[str, float] = {}
        train_step(inputs, lambda same: local.update(self.gradients.measure(same)))  # is left out again
        squares = over_processes(self.mesh, self.names, local)
        wrong = [name for name, value in zip(self.names, squares, strict=True) if not np.isfinite(value)]
        return backward_order(wrong), self.names[int(np.nanargmax(squares))]


def describe(label: str) -> str:
    """Return an activation in words."""
    return f"the residual stream after {label}" if label.count(".") == 1 else f"the output of {label}"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def backward_order(names: Sequence[str]) -> list[str]:
    """Return names of the model's order as backward computes their gradients; a table of tokens comes last."""
    return sorted(reversed(names), key=lambda name: name.startswith(("wte", "wpe")))


def save_inputs(run_dir: Path, step: int, rank: int, inputs: StepInputs) -> Path:
    """Write this process's inputs of an update as `nonfinite/step_N_rank_R.npz`; return the file."""
    path = run_dir / FOLDER / f"step_{step}_rank_{rank}.npz"
    path.parent.mkdir(exist_ok=True)
    arrays = {"ids": inputs.ids, "weights": inputs.weights, "key": inputs.key.asnumpy()}
    arrays |= {"loss_scale": inputs.loss_scale.asnumpy(), "first_row": np.array(inputs.first_row)}
    np.savez(path, **arrays if inputs.starts is None else arrays | {"starts": inputs.starts})
    return path
