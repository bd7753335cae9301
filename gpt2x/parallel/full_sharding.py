"""Full sharding (ZeRO-3: Rajbhandari et al., arXiv:1910.02054): blocks whose weights exist only while they compute.

Each process keeps its rows of every tensor of its blocks, in fp32: the weights, the sums of their gradients, and the
optimizer's states. The rows of one tensor in all blocks are one parameter, a stack. The model itself has two blocks
only, the slots. A graph computes one block in a slot, in the compute dtype, and meanwhile gathers the weights of the
next block into the other slot. So one forward and one backward graph per slot serve any number of blocks
(`gpt2x.parallel.block_graphs`).
docs/design/full_sharding.md explains the order of the communication, and what it costs.

Legend: L blocks of this process, r rows of a tensor on each of the processes that split it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.model.gpt2 import GPT2
from gpt2x.ops import Dropout
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Placement, is_copied_factor, is_of_tokens, owns, shard_rows

NUM_SLOTS = 2


@dataclass(frozen=True)
class Stack:
    """One tensor of all blocks of this process: its rows here, block after block.

    Attributes:
        names: of the logical tensors, one per block.
        placements: what a process that shares the tensor with no replica would have, one per block.
        rows: those of each placement that are kept here; the last ones can be beyond the tensor.
        parameter: (L * r, ...) fp32.
        is_trained: whether the tensor is updated.
        is_owned: whether this copy, of all within a replica, is counted in the norm and written to checkpoints.
        is_partial: as `gpt2x.parallel.gradient_reduction.LocalParameter.is_partial`.
    """

    names: tuple[str, ...]
    placements: tuple[Placement, ...]
    rows: range
    parameter: Parameter
    is_trained: bool
    is_owned: bool
    is_partial: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in a slot."""
        return self.placements[0].shape

    def kept(self, block: int) -> Placement:
        """Return the rows of a block's tensor that are kept here."""
        return self.placements[block].rows(self.rows.start, self.rows.stop)


@dataclass(frozen=True)
class Blocks:
    """The blocks of this process under full sharding.

    Attributes:
        net: the model, of whose blocks two are left: the slots.
        stacks: the trained ones first.
        slots: the parameters of each slot, in the order of `stacks`.
        sites: the dropouts of each slot.
        site_numbers: (L, S) int32, what tells the S dropouts of each block from all others.
        num_blocks: L.
    """

    net: GPT2
    stacks: tuple[Stack, ...]
    slots: tuple[tuple[Parameter, ...], ...]
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
    """Take the blocks' tensors out of `net`, which must have no values yet, and leave two slots in it.

    Args:
        net: this process's part of the model, with all blocks of its stage.
        model: its configuration.
        mesh: the processes.
        tensors: placements of all tensors of `net`, frozen ones and adapters included, by name.
        trained: names of those that are updated.

    Raises:
        UserError: the blocks are not alike, or there is only one.
    """
    layers = list(mesh.coordinates.layers(model.num_layers))
    if len(layers) < NUM_SLOTS:
        raise UserError(
            f"parallel.zero_stage=3 computes one block while it gathers the next, but a stage of parallel.pipeline="
            f"{mesh.coordinates.parallel.pipeline} has {len(layers)} of model.num_layers={model.num_layers}; use fewer "
            "stages, or parallel.zero_stage=2."
        )
    by_block = [
        {name.removeprefix(f"h.{layer}."): name for name in tensors if name.startswith(f"h.{layer}.")}
        for layer in layers
    ]
    kinds = {tuple((suffix, name in trained) for suffix, name in names.items()) for names in by_block}
    if len(kinds) > 1:
        raise UserError(
            "parallel.zero_stage=3 computes all blocks by the same graph, but lora.targets or trainer.frozen choose "
            "different tensors in different blocks; use parallel.zero_stage=2, or choose the same in all blocks."
        )
    suffixes = sorted(by_block[0], key=lambda suffix: by_block[0][suffix] not in trained)  # stable: trained ones first
    stacks = tuple(
        stack_of(tuple(names[suffix] for names in by_block), tensors, mesh, by_block[0][suffix] in trained)
        for suffix in suffixes
    )
    slots = [net.h[index] for index in range(NUM_SLOTS)]
    numbers = np.array([[dropout.site for dropout in dropouts_of(block)] for block in net.h], np.int64)
    net.h = nn.CellList(slots, auto_prefix=False)
    parameters = tuple(slot_parameters(slot, index, suffixes, stacks) for index, slot in enumerate(slots))
    sites = tuple(slot_sites(slot, index) for index, slot in enumerate(slots))
    net.sharded_blocks = Blocks(net, stacks, parameters, sites, numbers.astype(np.int32), len(layers))
    return net.sharded_blocks


def stack_of(names: tuple[str, ...], tensors: Mapping[str, Placement], mesh: Mesh, is_trained: bool) -> Stack:
    """Return the stack of one tensor of all blocks, without values."""
    placements, coordinates = tuple(tensors[name] for name in names), mesh.coordinates
    rows = shard_rows(placements[0].shape, coordinates, pads=True)
    assert rows is not None
    shape = (len(names) * len(rows), *placements[0].shape[1:])
    suffix = names[0].split(".", 2)[2]
    parameter = Parameter(initializer("zeros", shape, ms.float32), name=f"stack.{suffix}", requires_grad=False)
    is_partial = (coordinates.parallel.sequence_parallel and is_of_tokens(suffix)) or is_copied_factor(
        suffix, coordinates
    )
    return Stack(names, placements, rows, parameter, is_trained, owns(names[0], coordinates), is_partial)


def slot_parameters(slot: nn.Cell, index: int, suffixes: list[str], stacks: tuple[Stack, ...]) -> tuple[Parameter, ...]:
    """Give a slot parameters of its own: matrices in the compute dtype, vectors in fp32."""
    made = []
    for suffix, stack in zip(suffixes, stacks, strict=True):
        path, _, attribute = suffix.rpartition(".")
        cell = cell_at(slot, path)
        dtype = slot.mlp.c_fc.dtype if len(stack.shape) > 1 else ms.float32
        parameter = Parameter(
            initializer("zeros", stack.shape, dtype), name=f"slot.{index}.{suffix}", requires_grad=stack.is_trained
        )
        setattr(cell, attribute, parameter)
        made.append(parameter)
    return tuple(made)


def cell_at(slot: nn.Cell, path: str) -> nn.Cell:
    """Return the cell below a block that has the tensor whose name is `path` and an attribute."""
    cell = slot
    for name in path.split("."):
        cell = getattr(cell, name)
    return cell


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
