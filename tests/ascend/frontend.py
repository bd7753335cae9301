"""Compile graphs of gpt2x for an Ascend that is not there; `python -m tests.ascend.frontend CASE...`.

MindSpore's frontend turns a Cell into a typed graph before any device code is involved: it parses, infers types and
shapes, derives the backward graph and applies its graph passes. Which device it does so for is a name in its
context. This module registers an empty device under the name "Ascend", so that the frontend takes the Ascend branch
of the project and of MindSpore itself.

Proven by a case that compiles: parsing, types, shapes, autograd, operators that only Ascend has.
Not proven: that a kernel exists for an operator with these types, that it runs, its values, its speed or memory.

The registration goes through symbols of MindSpore 2.10.0's core library for x86-64 Linux and lasts as long as the
process, hence processes of their own (`tests/ascend/runs.py`). docs/ascend.md says the rest.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gpt2x.config import HardwareConfig, ModelConfig, OptimizerConfig

REGISTER = "_ZN9mindspore9MsContext16RegisterInitFuncERKSsPFvPS0_E"  # MsContext::RegisterInitFunc(string, void(*)(...))
REFRESH = "_ZN9mindspore9MsContext7RefreshEv"  # MsContext::Refresh(), a function of the right type that does no harm
ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 2, 64
SMALL = ModelConfig(
    name="test", num_layers=1, num_heads=4, hidden_size=64, max_seq_len=128, vocab_size=500, dropout=0.0,
    pad_vocab_multiple=128,
)  # fmt: skip


def unsupported() -> str | None:
    """Why this machine cannot pretend, or None."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"the symbols are known for Linux x86_64 only, this is {machine}"
    version = importlib.metadata.version("mindspore")
    return None if version == "2.10.0" else f"the symbols are known for MindSpore 2.10.0 only, this is {version}"


class OldString:
    """A `std::string` as MindSpore's library lays it out: one pointer to characters that a header stands before."""

    class Layout(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_size_t),
            ("capacity", ctypes.c_size_t),
            ("references", ctypes.c_ssize_t),
            ("characters", ctypes.c_char * 64),
        )

    def __init__(self, text: str):
        many = 1 << 30  # references: the library never frees it
        self.layout = self.Layout(len(text), 63, many, text.encode())
        self.pointer = ctypes.c_void_p(ctypes.addressof(self.layout) + self.Layout.characters.offset)

    def address(self) -> int:
        return ctypes.addressof(self.pointer)


NAME = OldString("Ascend")  # must outlive the registration


def pretend_ascend(num_devices: int = 1, rank: int = 0) -> None:
    """Make MindSpore's frontend compile for Ascend from here on, as one of many devices; before a case builds Cells."""
    os.environ.update(MS_SIMULATION_LEVEL="0", RANK_SIZE=str(num_devices), RANK_ID=str(rank), GLOG_v="3")
    register_ascend()
    if num_devices > 1:
        pretend_groups(num_devices, rank)


@cache
def register_ascend() -> None:
    """Register the empty device, once per process, and choose it."""
    import mindspore as ms
    from mindspore._c_expression import MSContext

    core = ctypes.CDLL(str(Path(ms.__file__).parent / "lib" / "libmindspore_core.so"))
    register = getattr(core, REGISTER)
    register.argtypes, register.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    register(NAME.address(), ctypes.cast(getattr(core, REFRESH), ctypes.c_void_p))
    MSContext.get_instance().set_device_target_inner("Ascend")
    ms.set_context(mode=ms.GRAPH_MODE)


class Groups:
    """What MindSpore asks of Huawei's communication library about groups, as its own simulation module answers."""

    def __init__(self, num_devices: int, rank: int):
        self.rank, self.ranks = rank, {"hccl_world_group": list(range(num_devices))}

    def create_group(self, name, size, ranks):
        assert size == len(ranks)
        assert self.rank in ranks
        self.ranks[name] = ranks

    def get_rank_size(self, name):
        return len(self.ranks[name])

    def get_rank_id(self, name):
        return self.ranks[name].index(self.rank)


def pretend_groups(num_devices: int, rank: int) -> None:
    """Make MindSpore believe that it has joined the processes of as many devices."""
    from mindspore.communication import _comm_helper as helper

    helper._ExistingGroup.ITEMS.clear()  # of the case before
    helper._ExistingGroup.GROUP_RANKS.clear()
    helper.hccl = Groups(num_devices, rank)
    helper._HCCL_TEST_AVAILABLE = True
    helper.GlobalComm.INITED = True
    helper.GlobalComm.BACKEND = helper.Backend("hccl")


phases = (f"frontend_{number}" for number in itertools.count())


def compile_graph(cell, *inputs) -> Counter[str]:
    """Run the frontend on `cell` with example inputs; return how often each operator is in the validated graph."""
    return count_operators(compile_ir(cell, *inputs))


def count_operators(graph: str) -> Counter[str]:
    """Return how often each operator is in the text of a graph."""
    return Counter(re.findall(r"\) = (?:PrimFunc_)?(\w+)\(", graph))


def compile_ir(cell, *inputs) -> str:
    """Run the frontend on `cell` with example inputs; return the text of the validated graph.

    A graph that MindSpore took from an earlier case would leave no file in this folder; a new phase makes sure that it
    takes none. Raises what the frontend rejects.
    """
    from mindspore.graph.api import _cell_graph_executor

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=folder, MS_DEV_DUMP_IR_PASSES="validate")
        _cell_graph_executor.compile(cell, *inputs, phase=next(phases))
        (file,) = Path(folder).glob("*_validate_*.ir")
        return file.read_text(encoding="utf-8")


def hardware(**changes) -> HardwareConfig:
    """The shipped `hardware=atlas_800t_a2`."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "hardware" / "atlas_800t_a2.yaml"))
    return HardwareConfig(**(values | changes))


def train(
    model: ModelConfig, precision: str, *, recompute="none", micro_batches=2, num_targets=LENGTH, break_net=None,
    packed=False,
):  # fmt: skip
    """The whole update: forward, backward, accumulation, clipping, guard, AdamW."""
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.model.gpt2 import GPT2
    from gpt2x.model.losses.language_modeling import WeightedLoss
    from gpt2x.optim.optimizers.adamw import AdamW
    from gpt2x.train.step import StepInputs, TrainStep

    net = GPT2(model, hardware(precision=precision), recompute)
    if break_net:
        break_net(net)
    optimizer = AdamW(OptimizerConfig(name="adamw", learning_rate=1e-3), net.trainable_params(), net.backend)
    step = TrainStep(
        WeightedLoss(net), net.trainable_params(), optimizer, micro_batches, 1.0, has_dropout=model.dropout > 0
    )
    ids = np.zeros((micro_batches, BATCH, LENGTH + 1), np.int32)
    weights = np.zeros((micro_batches, BATCH, num_targets), np.float32)
    starts = np.zeros((micro_batches, BATCH, LENGTH), np.int32) if packed else None
    key, scale = Tensor(0, ms.int32), Tensor(1.0, ms.float32)
    inputs = StepInputs(ids, weights, key, scale, optimizer.scalars(1e-3, 1), starts=starts)
    return sum((compile_graph(cell, *example) for cell, example in step.graphs(inputs)), Counter())


def evaluate(model: ModelConfig, precision: str):
    """The loss of each token, without a gradient."""
    from mindspore import Tensor

    from gpt2x.model.gpt2 import GPT2
    from gpt2x.model.losses.language_modeling import TokenLosses

    losses = TokenLosses(GPT2(model, hardware(precision=precision)))
    return compile_graph(losses, Tensor(np.zeros((BATCH, LENGTH + 1), np.int32)), None)


def score_greedily(model: ModelConfig, precision: str):
    """The loss of each token, and the likeliest one."""
    from mindspore import Tensor

    from gpt2x.evaluate.scoring import GreedyScorer
    from gpt2x.model.gpt2 import GPT2

    scorer = GreedyScorer(GPT2(model, hardware(precision=precision)), BATCH)
    scorer.is_exact = False
    return compile_graph(scorer, Tensor(np.zeros((BATCH, LENGTH + 1), np.int32)))


def decode(model: ModelConfig, precision: str, num_tokens: int):
    """A step of the decoder: of a prompt, or of one token a row."""
    from mindspore import Tensor

    from gpt2x.generate.decoder import Decoder
    from gpt2x.model.gpt2 import GPT2

    device = hardware(precision=precision)
    decoder = Decoder(GPT2(model, device), BATCH, LENGTH)
    ids = Tensor(np.zeros((BATCH, num_tokens), np.int32))
    return compile_graph(decoder, ids, ids, Tensor(np.zeros(BATCH, np.int32)))


def shipped(name: str, **changes) -> ModelConfig:
    """A shipped model."""
    from omegaconf import OmegaConf

    model = ModelConfig(**OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")))
    return replace(model, **changes)


def unallocated(compile_model: Callable[..., Counter[str]], model: ModelConfig, *arguments, **options) -> Counter[str]:
    """Compile without allocating any parameter."""
    from mindspore.nn.utils import no_init_parameters

    with no_init_parameters():
        return compile_model(model, *arguments, **options)


def train_13b(precision: str, num_layers: int = 40):
    """An update of the shipped 13B model on one device."""
    model = shipped("gpt2_13b", dropout=0.0, num_layers=num_layers)
    return unallocated(train, model, precision, recompute="block", micro_batches=1)


def claim_another_head(net):
    """Tell flash attention of one head more than its tensors have."""
    net.h[0].attn.attention.attend.num_heads += 1


DROPOUT = replace(SMALL, dropout=0.1)
CASES: dict[str, Callable[[], Counter[str]]] = {
    "train_fp16": lambda: train(SMALL, "fp16"),
    "train_bf16": lambda: train(replace(SMALL, activation="gelu"), "bf16", micro_batches=1),
    "train_fp16_dropout": lambda: train(DROPOUT, "fp16", micro_batches=1),
    "train_fp16_recompute": lambda: train(SMALL, "fp16", recompute="block", micro_batches=1),
    "train_bf16_dropout_recompute": lambda: train(
        replace(DROPOUT, activation="gelu"), "bf16", recompute="block", micro_batches=1
    ),
    "train_bf16_accumulation_recompute": lambda: train(SMALL, "bf16", recompute="block"),
    "train_fp32": lambda: train(replace(SMALL, activation="fast_gelu"), "fp32", micro_batches=1),
    "train_bf16_packed_recompute": lambda: train(SMALL, "bf16", recompute="block", packed=True),
    "train_fp16_dropout_packed": lambda: train(DROPOUT, "fp16", micro_batches=1, packed=True),
    "train_13b": lambda: train_13b("fp16"),
    "train_13b_1_layer": lambda: train_13b("bf16", 1),
    "train_13b_2_layers": lambda: train_13b("bf16", 2),
    "train_small": lambda: unallocated(train, shipped("gpt2_small", dropout=0.0), "bf16", micro_batches=1),
    "train_small_dropout": lambda: unallocated(train, shipped("gpt2_small"), "bf16", micro_batches=1),
    "decode_small": lambda: unallocated(decode, shipped("gpt2_small"), "bf16", 1),
    "evaluate_fp16": lambda: evaluate(SMALL, "fp16"),
    "score_greedily_fp16": lambda: score_greedily(SMALL, "fp16"),
    "decode_prompt_bf16": lambda: decode(SMALL, "bf16", 8),
    "decode_token_fp16": lambda: decode(SMALL, "fp16", 1),
    "wrong_head_count": lambda: train(SMALL, "fp16", micro_batches=1, break_net=claim_another_head),
    "wrong_target_length": lambda: train(SMALL, "fp16", micro_batches=1, num_targets=LENGTH - 1),
}


def compile_cases(compile_case: Callable[[str], object], names: list[str]) -> int:
    """Print a line of JSON for each case: {"case", "report"}, or {"case", "rejected"} with the frontend's message.

    The process ends after the first case that the frontend rejects, since what MindSpore leaves is not known.
    """
    for name in names:
        try:
            line = {"case": name, "report": compile_case(name)}
        except (RuntimeError, TypeError, ValueError) as error:
            line = {"case": name, "rejected": str(error)}
        print(json.dumps(line), flush=True)
        if "rejected" in line:
            return 1
        gc.collect()  # graphs hang in circles of cells
    return 0


def compile_case(name: str) -> Counter[str]:
    """Return the operators of a case."""
    pretend_ascend()
    return CASES[name]()


if __name__ == "__main__":
    sys.exit(compile_cases(compile_case, sys.argv[1:]))
