"""Compile the graphs of parallel layouts for Ascends that are not there; `python -m tests.ascend.layouts CASE...`.

A case is one process of a layout, built by what `train.py` builds it by, of which no parameter has memory. Prints
JSON: the operators of each graph, what its collectives can overlap, what the parameters would take, the process' peak
memory so far, and seconds.

Proven and not proven: as in `tests.ascend.frontend`. The groups' members are answered by a stand-in for Huawei's
communication library; nothing is communicated.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2x.commands.hydra_entry import compose_config
from gpt2x.config import TrainConfig
from gpt2x.config.layout import Coordinates, micro_batch_size, world_size
from tests.ascend.frontend import compile_cases, compile_ir, count_operators, pretend_ascend
from tests.ascend.overlap import overlap

BATCH = 2  # sequences a forward pass


@dataclass(frozen=True)
class Case:
    """A process of a layout.

    Attributes:
        overrides: of `train.py`; `hardware=atlas_800t_a2` is one for all.
        data, tensor, stage: the coordinates of the process.
        decodes: compile the decoder, for a prompt and for one token, not the update.
        spoil: does harm to the net, which the frontend has to notice.
        message: the hidden size of the messages between stages, where it is not the model's.
    """

    overrides: str
    data: int = 0
    tensor: int = 0
    stage: int = 0
    decodes: bool = False
    spoil: Callable | None = None
    message: int | None = None


def configuration(overrides: str) -> TrainConfig:
    """The validated configuration of `train.py`."""
    return compose_config("train", ["hardware=atlas_800t_a2", *overrides.split()])


def update_graphs(config: TrainConfig, rank: int, case: Case):
    """The graphs of an update: (Cell, example inputs)."""
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.optim.optimizers.adamw import AdamW
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.parallel.pipeline import keep_stage
    from gpt2x.parallel.tensor import build_net
    from gpt2x.tasks.registry import task_of
    from gpt2x.train.build import build_step, trained_parameters
    from gpt2x.train.decision import Decision
    from gpt2x.train.step import StepInputs
    from gpt2x.trainable import trainable_of

    mesh = Mesh(config.parallel, "Ascend", rank)
    net = build_net(config.model, config.hardware, mesh)
    trainable = trainable_of(config, config.model)
    trainable.attach(net, mesh)
    keep_stage(net, config.model, mesh.coordinates)
    if case.spoil:
        case.spoil(net)
    held, blocks = trained_parameters(net, config.model, mesh, trainable)
    stacks = [stack.parameter for stack in blocks.trained] if blocks else []
    optimizer = AdamW(config.optimizer, [*(part.trained for part in held), *stacks], net.backend)
    decision = Decision(  # of which neither data nor source is asked
        config, task_of(config), Path(), None, None, None, config.model, trainable, None, None, None
    )
    step = build_step(decision, net, mesh, held, optimizer, blocks)
    if case.message:
        step.links.shape = (*step.links.shape[:-1], case.message)
    size, length = micro_batch_size(config.parallel, config.trainer), config.trainer.seq_len
    ids, weights = np.zeros((1, size, length + 1), np.int32), np.zeros((1, size, length), np.float32)
    key, scale = Tensor(0, ms.int32), Tensor(1.0, ms.float32)
    return step.graphs(StepInputs(ids, weights, key, scale, optimizer.scalars(1e-3, 1)))


def decoder_graphs(config: TrainConfig, rank: int, case: Case):
    """A step of the decoder: of a prompt, and of one token a row."""
    from mindspore import Tensor

    from gpt2x.generate.decoder import Decoder
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.parallel.tensor import build_net

    net = build_net(config.model, config.hardware, Mesh(config.parallel, "Ascend", rank))
    if case.spoil:
        case.spoil(net)
    decoder = Decoder(net, BATCH, config.trainer.seq_len)
    prompt, token = (Tensor(np.zeros((BATCH, length), np.int32)) for length in (8, 1))
    last = Tensor(np.zeros(BATCH, np.int32))
    return [(decoder, (prompt, prompt, last)), (decoder, (token, token, last))]


def report(case: Case) -> dict:
    """Compile every graph of a case."""
    config = configuration(case.overrides)
    rank = Coordinates(config.parallel, 0).rank_at(data=case.data, tensor=case.tensor, stage=case.stage)
    pretend_ascend(world_size(config.parallel), rank)
    from mindspore.nn.utils import no_init_parameters

    begin = time.monotonic()
    with no_init_parameters():
        graphs = (decoder_graphs if case.decodes else update_graphs)(config, rank, case)
    parameters = {id(parameter): parameter for cell, _ in graphs for parameter in cell.get_parameters()}
    found, overlaps = {}, {}
    for cell, inputs in graphs:
        name = type(cell).__name__
        name = f"{name} again" if name in found else name
        graph = compile_ir(cell, *inputs)
        found[name], overlaps[name] = count_operators(graph), overlap(graph)
    return {
        "operators": found,
        "overlaps": overlaps,
        "parameters_gb": round(sum(p.size * p.itemsize for p in parameters.values()) / 1e9, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "seconds": round(time.monotonic() - begin, 1),
    }


def claim_more_heads(net):
    """Tell flash attention of the first block of two heads more than the process has."""
    net.h[0].attn.attention.attend.num_heads += 2


def split_another_head(net):
    """Split the first block's queries, keys and values among one head more than the process has."""
    net.h[0].attn.attention.num_heads += 1


SMALL = (
    "model.num_layers=1 model.num_heads=8 model.hidden_size=256 model.max_seq_len=128 model.vocab_size=500 "
    "model.pad_vocab_multiple=128 model.dropout=0 trainer.seq_len=64"
)
STAGES = {"first": 0, "middle": 7, "last": 15}
PRECISIONS = ("fp16", "bf16")


def layout(name: str, replicas: int, micro_batches: int = 1) -> str:
    """A shipped layout with BATCH sequences a forward pass."""
    batch = f"trainer.global_batch_size={replicas * micro_batches * BATCH} trainer.micro_batch_size={BATCH}"
    return f"parallel={name} {batch}"


def large(name: str, precision: str) -> str:
    """A shipped model at its full length."""
    length = {"gpt2_13b": 2048, "gpt2_52b": 1024}[name]
    return f"model={name} model.dropout=0 trainer.seq_len={length} hardware.precision={precision}"


def small(precision: str) -> str:
    return f"{SMALL} hardware.precision={precision}"


TENSOR = {"data": 1, "tensor": 5}  # neither the first of its groups nor the last
TP = f"{layout('dp4_tp8', 4)} parallel.zero_stage=1"
PP = f"{layout('dp8_pp16', 8, 64)} parallel.zero_stage=1 parallel.recompute=block"
SP = f"{TP} parallel.sequence_parallel=true"
HIDDEN_DROPOUT = "model.dropout=0.1 model.attention_dropout=0"
ADAPTERS = "model.num_layers=2 lora=r8 lora.targets=[q,v,c_proj,c_fc] load=base"  # the first block is a special one
CASES: dict[str, Case] = {
    "tp_fp16": Case(f"{small('fp16')} {TP}", **TENSOR),
    "tp_accumulated_bf16": Case(f"{small('bf16')} {layout('dp4_tp8', 4, 2)} parallel.zero_stage=1", **TENSOR),
    "tp_dropout_fp16": Case(f"{small('fp16')} {TP} {HIDDEN_DROPOUT}", **TENSOR),
    "tp_dropout_bf16": Case(f"{small('bf16')} {TP} {HIDDEN_DROPOUT}", **TENSOR),
    "sp_bf16": Case(f"{small('bf16')} {SP}", **TENSOR),
    "lora_tp_bf16": Case(f"{small('bf16')} {TP} {ADAPTERS}", **TENSOR),
    "dp_fp16": Case(f"{small('fp16')} {layout('dp8', 8)}", data=3),
    "full_sharding_bf16": Case(
        f"{small('bf16')} {layout('dp8', 8)} parallel.zero_stage=3 model.num_layers=3 model.dropout=0.1", data=3
    ),
    "zero_bf16": Case(f"{small('bf16')} {layout('dp8_zero', 8)} parallel.zero_stage=1", data=3),
    "decode_fp16": Case(f"{small('fp16')} parallel=tp8", tensor=5, decodes=True),
    "wrong_head_count": Case(f"{small('fp16')} {TP}", **TENSOR, spoil=claim_more_heads),
    "wrong_head_split": Case(f"{small('fp16')} parallel=tp8", tensor=5, decodes=True, spoil=split_another_head),
    "wrong_message": Case(f"{small('fp16')} {PP} model.num_layers=16", data=3, stage=7, message=320),
    "13b_sp_fp16": Case(f"{large('gpt2_13b', 'fp16')} {SP} model.num_layers=4", **TENSOR),
}
for _name, _precision in (("first", "bf16"), ("middle", "fp16"), ("last", "bf16")):
    _case = Case(f"{small(_precision)} {PP} model.num_layers=16", data=3, stage=STAGES[_name])
    CASES[f"pp_{_name}_{_precision}"] = _case
for _precision in PRECISIONS:
    _13b, _52b = large("gpt2_13b", _precision), large("gpt2_52b", _precision)
    CASES |= {
        f"13b_dp4_tp8_{_precision}": Case(f"{_13b} {TP}", **TENSOR),
        f"13b_dp8_{_precision}": Case(f"{_13b} {layout('dp8', 8)} parallel.zero_stage=0", data=3),
        f"13b_dp8_full_sharding_{_precision}": Case(f"{_13b} {layout('dp8', 8)} parallel.zero_stage=3", data=3),
        f"13b_dp8_zero_{_precision}": Case(f"{_13b} {layout('dp8_zero', 8)} parallel.zero_stage=1", data=3),
        f"13b_decode_tp8_{_precision}": Case(f"{_13b} parallel=tp8", tensor=5, decodes=True),
    }
    for _name, _stage in STAGES.items():
        CASES[f"52b_{_name}_{_precision}"] = Case(f"{_52b} {PP}", data=3, stage=_stage)
        CASES[f"52b_{_name}_full_sharding_{_precision}"] = Case(
            f"{_52b} {layout('dp8_pp16', 8, 64)} parallel.zero_stage=3", data=3, stage=_stage
        )


if __name__ == "__main__":
    sys.exit(compile_cases(lambda name: report(CASES[name]), sys.argv[1:]))
