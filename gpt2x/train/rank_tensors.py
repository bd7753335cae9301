"""The tensors that one rank keeps in checkpoints: set from logical tensors, and sliced for writing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor, ops

from gpt2x.checkpoint import Sliced
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.base import Optimizer
from gpt2x.parallel.full_sharding import Blocks, Stack
from gpt2x.parallel.gradient_reduction import LocalParameter
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable, owns, read_ahead
from gpt2x.trainable import Trainable


class RankTensors:
    """The weights or adapters and the optimizer states of this rank.

    Args:
        net: this rank's part of the model.
        trainable: what is trained.
        local_parameters: the trained parameters of this rank, in the order of `optimizer`.
        optimizer: owns the states.
        mesh: the processes.
        blocks: those of this rank under full sharding; their trained stacks follow `local_parameters` in `optimizer`.
    """

    def __init__(
        self,
        net: GPT2,
        trainable: Trainable,
        local_parameters: list[LocalParameter],
        optimizer: Optimizer,
        mesh: Mesh,
        blocks: Blocks | None = None,
    ):
        self.blocks = blocks
        self.group = trainable.checkpoint_group
        self.placements = trainable.stored_placements(mesh.coordinates)
        self.parameters = {p.name: p for p in net.get_parameters() if p.name in self.placements}
        self.local_parameters, self.optimizer, self.coordinates = local_parameters, optimizer, mesh.coordinates
        self.has_run = False  # set by the loop once a graph has run

    def load(self, tensors: Readable) -> None:
        """Set the weights or adapters, trained or frozen, from logical tensors."""
        sharded = {local.name: local for local in self.local_parameters if local.rows is not None}
        outer = {name: part for name, part in self.placements.items() if name in self.parameters}
        for stack in self.stacks:
            if stack.members[0].names[0] in self.placements:
                self.load_stack(stack, stack.parameter, tensors, "")
        for name, values in read_ahead(outer, tensors):
            self._set(self.parameters[name], values)
            if name in sharded:
                rows = sharded[name].rows
                self._set(sharded[name].trained, values[rows.start : rows.stop])

    def load_states(self, states: Readable) -> None:
        """Set the optimizer states from logical tensors named STATE.TENSOR."""
        for state_name, parameters in self.optimizer.states.items():
            outer, of_stacks = parameters[: len(self.local_parameters)], parameters[len(self.local_parameters) :]
            for local, parameter in zip(self.local_parameters, outer, strict=True):
                self._set(parameter, local.trained_placement.read(states, f"{state_name}.{local.name}"))
            for stack, parameter in zip(self.trained_stacks, of_stacks, strict=True):
                self.load_stack(stack, parameter, states, f"{state_name}.")

    def load_frozen(self, tensors: Readable) -> None:
        """Set the stacks of the frozen weights that adapters stand beside."""
        for stack in self.stacks:
            if stack.members[0].names[0] not in self.placements:
                self.load_stack(stack, stack.parameter, tensors, "")

    def load_stack(self, stack: Stack, parameter: Parameter, tensors: Readable, prefix: str) -> None:
        """Set a parameter of a stack's shape from logical tensors of its names after `prefix`."""
        values, start = np.zeros((stack.num_blocks, stack.num_values), np.float32), 0
        for member in stack.members:
            parts = {f"{prefix}{name}": member.kept(block) for block, name in enumerate(member.names)}
            for block, (_, kept) in enumerate(read_ahead(parts, tensors)):
                values[block, start : start + member.size] = kept.reshape(-1)
            start += member.size
        self._set(parameter, values.reshape(parameter.shape))

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of all blocks; none unless the weights are split."""
        return self.blocks.stacks if self.blocks else ()

    @property
    def trained_stacks(self) -> tuple[Stack, ...]:
        """Those that the optimizer updates."""
        return self.blocks.trained if self.blocks else ()

    def slices(self) -> dict[str, Mapping[str, Sliced]]:
        """Return the weights or adapters and the optimizer states that this rank writes.

        Each value is written by exactly one rank of the layout.
        """
        return {self.group: self.weights(), "optimizer": self.states()}

    def weights(self) -> dict[str, Sliced]:
        """Return the weights or adapters that this rank writes."""
        coordinates, weights = self.coordinates, {}
        for name, placement in self.placements.items():
            if name in self.parameters and owns(name, coordinates) and coordinates.data == 0:
                boxes = placement.parts(self.parameters[name].asnumpy())
                weights[name] = Sliced(placement.logical_shape, boxes)
        for stack in self.stacks:
            if stack.members[0].names[0] in self.placements:
                weights |= self.stack_slices(stack, stack.parameter, "")
        return weights

    def states(self) -> dict[str, Sliced]:
        """Return the optimizer states that this rank writes."""
        coordinates, shards, states = self.coordinates, self.coordinates.parallel.shards, {}
        for index, local in enumerate(self.local_parameters):
            shape = local.placement.logical_shape
            if local.is_owned and coordinates.data < (1 if local.rows is None else shards):
                for state_name, parameters in self.optimizer.states.items():
                    boxes = local.trained_placement.parts(parameters[index].asnumpy())
                    states[f"{state_name}.{local.name}"] = Sliced(shape, boxes)
        for index, stack in enumerate(self.trained_stacks, start=len(self.local_parameters)):
            for state_name, parameters in self.optimizer.states.items():
                states |= self.stack_slices(stack, parameters[index], f"{state_name}.")
        return states

    def stack_slices(self, stack: Stack, parameter: Parameter, prefix: str) -> dict[str, Sliced]:
        """Return what this rank writes of a stack: its rows of each block, once among the replicas."""
        if not stack.is_owned or self.coordinates.data >= self.coordinates.parallel.shards:
            return {}
        values, slices, start = parameter.asnumpy().reshape(stack.num_blocks, -1), {}, 0
        for member in stack.members:
            for block, name in enumerate(member.names):
                kept = values[block, start : start + member.size].reshape(member.kept_shape)
                slices[f"{prefix}{name}"] = Sliced(
                    member.placements[block].logical_shape, member.kept(block).parts(kept)
                )
            start += member.size
        return slices

    def _set(self, parameter: Parameter, values: np.ndarray) -> None:
        """Set the values of a parameter; once a graph has run, `set_data` has no effect on it (MindSpore 2.10)."""
        if self.has_run:
            ops.assign(parameter, Tensor(values))
        else:
            parameter.set_data(Tensor(values))
