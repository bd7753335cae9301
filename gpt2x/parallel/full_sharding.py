"""Full sharding (ZeRO-3: Rajbhandari et al., arXiv:1910.02054): blocks whose weights exist only while they compute.

Each process keeps its rows of every tensor of its blocks, in fp32: the weights, the sums of their gradients, and the
optimizer's states. Those of all blocks are a few parameters, the stacks. The model itself has two blocks only, the
slots, or one. A graph computes one block in a slot, in the compute dtype, and meanwhile gathers the weights of the
next block into the other slot. So one forward and one backward graph per slot serve any number of blocks
(`gpt2x.parallel.block_graphs`).
docs/design/full_sharding.md explains the order of the communication, and what it costs.

Legend: L blocks of this process, K values of a block in a stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2
from gpt2x.ops import Dropout
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Placement, has_partial_gradient, owns, shard_rows


@dataclass(frozen=True)
class Member:
    """One tensor of every block, as a part of a stack.

    Attributes:
        suffix: of the names of the logical tensors, after `h.LAYER.`.
        names: of the logical tensors, one per block.
        placements: what a process that shares the tensor with no replica would have, one per block.
        rows: those that are kept here; the last ones can be beyond the tensor.
    """

    suffix: str
    names: tuple[str, ...]
    placements: tuple[Placement, ...]
    rows: range

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in a slot."""
        return self.placements[0].shape

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """The shape of the rows that are kept here."""
        return (len(self.rows), *self.shape[1:])

    @property
    def size(self) -> int:
        """The number of values that are kept here of each block."""
        return math.prod(self.kept_shape)

    def padding(self, num_shards: int) -> int:
        """Return how many rows beyond the tensor `num_shards` processes keep together."""
        return len(self.rows) * num_shards - self.shape[0]

    def kept(self, block: int) -> Placement:
        """Return the rows of a block's tensor that are kept here."""
        return self.placements[block].rows(self.rows.start, self.rows.stop)


@dataclass(frozen=True)
class Stack:
    """Tensors of all blocks that are treated alike: what this process keeps of them, block after block.

    Attributes:
        members: the tensors.
        parameter: (L, K) fp32 of matrices, (L K,) of vectors, so that the optimizer tells them apart by their dims.
        is_trained: whether they are updated.
        is_owned: whether this copy, of all within a replica, is counted in the norm and written to checkpoints.
        is_partial: as `gpt2x.parallel.gradient_reduction.LocalParameter.is_partial`.
    """

    members: tuple[Member, ...]
    parameter: Parameter
    is_trained: bool
    is_owned: bool
    is_partial: bool

    @property
    def num_values(self) -> int:
        """Return K."""
        return sum(member.size for member in self.members)

    @property
    def num_blocks(self) -> int:
        """Return L."""
        return len(self.members[0].names)


@dataclass(frozen=True)
class Blocks:
    """The blocks of this process under full sharding.

    Attributes:
        net: the model, of whose blocks only the slots are left.
        stacks: the trained ones first.
        slots: the parameters of each slot: of each stack, of each member.
        sites: the parameters of each slot that its dropouts read their site from.
        site_numbers: (L, S) int32, what tells the S dropouts of each block from all others.
        num_blocks: L.
    """

    net: GPT2
    stacks: tuple[Stack, ...]
    slots: tuple[tuple[tuple[Parameter, ...], ...], ...]
    sites: tuple[tuple[Parameter, ...], ...]
    site_numbers: np.ndarray
    num_blocks: int

    @property
    def trained(self) -> tuple[Stack, ...]:
        """The stacks that are updated."""
        return tuple(stack for stack in self.stacks if stack.is_trained)


def shard_blocks(
    net: GPT2, model: ModelConfig, mesh: Mesh, tensors: Mapping[str, Placement], trained: set[str]
) -> Blocks:
    """Take the blocks' tensors out of `net`, which must have no values yet, and leave slots in it.

    The blocks are alike, and at least as many as slots: `gpt2x.planner.limits` chooses another stage otherwise.

    Args:
        net: this process's part of the model, with all blocks of its stage.
        model: its configuration.
        mesh: the processes.
        tensors: placements of all tensors of `net`, frozen ones and adapters included, by name.
        trained: names of those that are updated.
    """
    coordinates, num_slots = mesh.coordinates, mesh.coordinates.parallel.num_slots(mesh.device_target == "CPU")
    layers = list(coordinates.layers(model.num_layers))
    by_block = [
        {name.removeprefix(f"h.{layer}."): name for name in tensors if name.startswith(f"h.{layer}.")}
        for layer in layers
    ]
    kinds = {tuple((suffix, name in trained) for suffix, name in names.items()) for names in by_block}
    assert len(kinds) == 1
    assert len(layers) >= num_slots
    members = [member_of(suffix, [names[suffix] for names in by_block], tensors, mesh) for suffix in by_block[0]]
    stacks = stacks_of(members, mesh, trained)
    slots = [net.h[index] for index in range(num_slots)]
    numbers = np.array([[dropout.site for dropout in dropouts_of(block)] for block in net.h], np.int64)
    parameters = tuple(slot_parameters(slot, index, stacks) for index, slot in enumerate(slots))
    net.h = nn.CellList(slots, auto_prefix=False)
    for parameter, name in zip(flat(parameters), slot_names(stacks, num_slots), strict=True):
        parameter.name = name  # a list of cells renames its cells
    sites = tuple(slot_sites(slot, index) for index, slot in enumerate(slots))
    net.sharded_blocks = Blocks(net, stacks, parameters, sites, numbers.astype(np.int32), len(layers))
    return net.sharded_blocks


def member_of(suffix: str, names: list[str], tensors: Mapping[str, Placement], mesh: Mesh) -> Member:
    """Return one tensor of every block."""
    placements = tuple(tensors[name] for name in names)
    rows = shard_rows(placements[0].shape, mesh.coordinates, pads=True)
    assert rows is not None
    return Member(suffix, tuple(names), placements, rows)


def stacks_of(members: list[Member], mesh: Mesh, trained: set[str]) -> tuple[Stack, ...]:
    """Return stacks without values, of tensors that are treated alike."""
    coordinates = mesh.coordinates
    groups: dict[tuple[bool, bool, bool, bool], list[Member]] = {}
    for member in members:
        name = member.names[0]
        is_partial, is_owned = has_partial_gradient(name, coordinates), owns(name, coordinates)
        alike = (name in trained, len(member.shape) > 1, is_owned, is_partial)
        groups.setdefault(alike, []).append(member)
    stacks = []
    # processes that gather together have one place on the tensor axis, so that they own alike and form the same stacks
    for (is_trained, is_matrix, is_owned, is_partial), alike_members in groups.items():
        size = sum(member.size for member in alike_members)
        num_blocks = len(alike_members[0].names)
        shape = (num_blocks, size) if is_matrix else (num_blocks * size,)
        name = f"stack.{len(stacks)}"
        parameter = Parameter(initializer("zeros", shape, ms.float32), name=name, requires_grad=False)
        stacks.append(Stack(tuple(alike_members), parameter, is_trained, is_owned, is_partial))
    return tuple(sorted(stacks, key=lambda stack: not stack.is_trained))


def slot_parameters(slot: nn.Cell, index: int, stacks: tuple[Stack, ...]) -> tuple[tuple[Parameter, ...], ...]:
    """Give the cells of a slot new parameters: matrices in the compute dtype, vectors in fp32."""
    places = {
        parameter.name: (cell, attribute)
        for _, cell in slot.cells_and_names()
        for attribute, parameter in cell.parameters_and_names(expand=False)
    }
    parameters = []
    for stack in stacks:
        of_stack = []
        for member in stack.members:
            cell, attribute = places[member.names[index]]
            dtype = slot.mlp.c_fc.dtype if len(member.shape) > 1 else ms.float32
            parameter = Parameter(
                initializer("zeros", member.shape, dtype),
                requires_grad=stack.is_trained,
            )
            setattr(cell, attribute, parameter)
            of_stack.append(parameter)
        parameters.append(tuple(of_stack))
    return tuple(parameters)


def flat(slots: tuple[tuple[tuple[Parameter, ...], ...], ...]) -> list[Parameter]:
    """Return the parameters of all slots, slot after slot and stack after stack."""
    return [parameter for of_slot in slots for of_stack in of_slot for parameter in of_stack]


def slot_names(stacks: tuple[Stack, ...], num_slots: int) -> list[str]:
    """Return names for `flat`."""
    suffixes = [member.suffix for stack in stacks for member in stack.members]
    return [f"slot.{index}.{suffix}" for index in range(num_slots) for suffix in suffixes]


def dropouts_of(block: nn.Cell) -> list[Dropout]:
    """Return the dropouts of a block in the order of its cells."""
    return [cell for _, cell in block.cells_and_names() if isinstance(cell, Dropout)]


def slot_sites(slot: nn.Cell, index: int) -> tuple[Parameter, ...]:
    """Let the dropouts of a slot read their site, which differs from block to block, from a parameter."""
    sites = []
    for number, dropout in enumerate(dropouts_of(slot)):
        site = Parameter(Tensor([0], ms.int32), name=f"slot.{index}.site.{number}", requires_grad=False)
        dropout.read_site(site)
        sites.append(site)
    return tuple(sites)
