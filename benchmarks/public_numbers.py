"""Predict what others have published about GPT-2 on Ascend: `python benchmarks/public_numbers.py`.

A public run is of another program than gpt2x. `PyTorchProgram` and `MINDFORMERS_STEP` say what such a program moves and
keeps besides its matrix products, operator by operator, counted from its source. Its products, its links and the
figures of the device are the planner's. `benchmarks/plan.py` writes the tables to docs/planning.md.

Legend: b sequences per die, T tokens per sequence, D hidden size, N heads, H head size, S positions of a cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpt2x.commands.hydra_entry import compose_config  # noqa: E402
from gpt2x.config import TrainConfig  # noqa: E402
from gpt2x.planner.communication import Communication  # noqa: E402
from gpt2x.planner.inference import Decoding, plan_inference  # noqa: E402
from gpt2x.planner.report import Table  # noqa: E402
from gpt2x.planner.roofline import Plan, plan_run  # noqa: E402
from gpt2x.planner.search import tokens_per_s  # noqa: E402
from gpt2x.planner.work import EAGER_LAUNCH_S, GRAPH_LAUNCH_S  # noqa: E402

MIB = 2**20
NODE_13B = (
    "model=gpt2_13b trainer.seq_len=2048 parallel=dp8 trainer.global_batch_size=16 model.attention_dropout=0 hardware="
)
DIES_124M = (
    "model=gpt2_small model.vocab_size=50257 model.dropout=0 hardware=atlas_900_a3 parallel=dp8 parallel.data=16 "
    "trainer.seq_len=1024 trainer.global_batch_size=512"
)

# ---- GPT-2 124M on 16 dies of 910C, by torch_npu without graphs: modded-nanogpt-npu


@dataclass(frozen=True)
class PyTorchProgram:
    """What a program moves and keeps besides its matrix products.

    Attributes:
        forward: bytes moved per value of b T D in a forward pass of a block, by operator.
        backward: in its backward pass.
        kept: bytes that wait for the backward pass, per value of b T D and block.
        outside: bytes moved per value of b T D by embeddings and the last norm, forward and backward.
        logit: bytes moved per logit.
        kept_logit: bytes per logit at the peak.
        parameter: bytes moved per parameter in an update.
        vocab_size: rows of the head that are computed.
        launches: operators per block, forward and backward.
    """

    forward: dict[str, float]
    backward: dict[str, float]
    kept: dict[str, float]
    outside: float
    logit: dict[str, float]
    kept_logit: float
    parameter: dict[str, float]
    vocab_size: int = 50257
    launches: int = 95


# The residual stream is fp32, because the embedding's output is; linears cast their input to bf16 (autocast).
BASE_FORWARD = {
    "two norms in fp32: square, mean, product": 2 * 20.0,
    "casts of their outputs to bf16": 2 * 6.0,
    "queries, keys and values made contiguous": 12.0,
    "attention output transposed": 4.0,
    "attention output scaled": 4.0,
    "GELU of 4 D": 16.0,
    "two residual sums, bf16 to fp32": 2 * 10.0,
}
BASE_BACKWARD = {
    "casts of the residual's gradient to bf16": 2 * 6.0,
    "GELU": 24.0,
    "casts of the norms' gradients to fp32": 2 * 6.0,
    "two norms: product 8, factor 16, mean 4, square 28": 2 * 56.0,
    "three gradients of each norm's input added": 2 * 24.0,
    "attention output scaled": 4.0,
    "attention output transposed": 4.0,
    "queries, keys and values made contiguous": 12.0,
    "their gradients transposed and concatenated": 24.0,
}
BASE_KEPT = {
    "inputs of two norms, fp32": 2 * 4.0,
    "their outputs, bf16": 2 * 2.0,
    "queries, keys and values": 6.0,
    "attention output, before and after transposing": 2 * 2.0,
    "maximum and sum of the softmax: 8 x fp32 each per head and token": 2 * 8 * 4 / 64,  # H = 64
    "input and output of GELU": 16.0,
}
BASE_LOGIT = {
    "cast to fp32": 6.0,
    "log-softmax; a row is longer than the vector unit's memory, so it is read three times": 16.0,
    "zeros for the loss's gradient": 4.0,
    "gradient of the log-softmax": 16.0,
    "cast to bf16": 6.0,
}
BASE_PARAMETER = {
    "cast to bf16, and its gradient back": 12.0,
    "buckets of DistributedDataParallel, copied in and out": 16.0,
    "norm and clipping of gradients": 12.0,
    "AdamW operator by operator (foreach)": 80.0,
}
# fp32 weights, gradients in buckets and two moments, and bf16 copies of weights
KEPT_PARAMETER = 4 + 4 + 8 + 2
KEPT_OUTSIDE = 6  # per value of b T D: input and output of the last norm

RECORD_1 = PyTorchProgram(
    BASE_FORWARD, BASE_BACKWARD, BASE_KEPT, outside=140, logit=BASE_LOGIT, kept_logit=10, parameter=BASE_PARAMETER
)
RECORD_2 = PyTorchProgram(  # rotary embeddings by slices, products in fp32 and a concatenation
    BASE_FORWARD | {"queries and keys rotated, cast to bf16": 2 * 38.0},
    BASE_BACKWARD | {"queries and keys rotated": 2 * 54.0},
    BASE_KEPT | {"rotated queries and keys": 4.0},
    outside=112,
    logit=BASE_LOGIT,
    kept_logit=10,
    parameter=BASE_PARAMETER,
)
RECORD_2_FUSED = PyTorchProgram(  # fused norm, rotation, cross entropy in bf16 and AdamW; 50432 rows of the vocabulary
    {
        "two fused norms of fp32": 2 * 8.0,
        "casts of their outputs to bf16": 2 * 6.0,
        "queries and keys made contiguous and rotated, values made contiguous": 2 * 8.0 + 4,
        "attention output scaled": 4.0,
        "GELU of 4 D": 16.0,
        "two residual sums, bf16 to fp32": 2 * 10.0,
    },
    {
        "casts of the residual's gradient to bf16": 2 * 6.0,
        "GELU": 24.0,
        "casts of the norms' gradients to fp32": 2 * 6.0,
        "two fused norms": 2 * 12.0,
        "two gradients of each norm's input added": 2 * 12.0,
        "attention output scaled": 4.0,
        "queries and keys rotated": 2 * 6.0,
        "gradients of queries, keys and values concatenated": 12.0,
    },
    {
        "inputs of two norms, fp32": 2 * 4.0,
        "their outputs, bf16": 2 * 2.0,
        "queries, keys and values": 6.0,
        "rotated queries and keys": 4.0,
        "attention output": 2.0,
        "maximum and sum of the softmax": 2 * 8 * 4 / 64,
        "input and output of GELU": 16.0,
    },
    outside=60,
    logit={"loss, which reads a row twice and writes log-probabilities": 6.0, "its gradient": 4.0},
    kept_logit=4,
    parameter={
        "cast to bf16, and its gradient back": 12.0,
        "buckets of DistributedDataParallel, copied in and out": 16.0,
        "norm of gradients, which are divided by it": 12.0,
        "fused AdamW": 28.0,
    },
    vocab_size=50432,
    launches=60,
)


@dataclass(frozen=True)
class Prediction:
    """Seconds of an update or a token, and GB per device."""

    seconds: float
    gb: float | None = None


def predicted_124m(program: PyTorchProgram) -> Prediction:
    """Predict an update of 16 x 32 x 1024 tokens, and the peak that torch_npu counts.

    The all-reduce of DistributedDataParallel passes during the backward pass, but for the last bucket: the embedding's.
    """
    config = composed(DIES_124M.replace("50257", f"{program.vocab_size}"))
    plan, hardware = plan_run(config), config.hardware
    rank = plan.fullest
    tokens = plan.micro_batch_size * config.trainer.seq_len
    values, logits = tokens * plan.model.hidden_size, tokens * program.vocab_size
    moved = values * rank.layers * sum([*program.forward.values(), *program.backward.values()])
    moved += values * program.outside + logits * sum(program.logit.values())
    moved += rank.values.parameters * sum(program.parameter.values())
    seconds = product_s(plan) + moved / (bandwidth(plan) * 1e9)
    seconds = max(seconds, rank.layers * program.launches * EAGER_LAUNCH_S)
    communication = Communication(plan.model, plan.parallel, hardware, tokens)
    last = communication.collective("data", "embedding", range(plan.parallel.data), 4 * rank.values.head, 2)
    assert last.seconds is not None
    kept = values * (rank.layers * sum(program.kept.values()) + KEPT_OUTSIDE)
    kept += rank.values.parameters * KEPT_PARAMETER + logits * program.kept_logit
    return Prediction(seconds + last.seconds, kept / 1e9)


def product_s(plan: Plan) -> float:
    """Return the seconds of an update's matrix products."""
    peak, efficiency = plan.hardware.peak_tflops, plan.hardware.efficiency
    assert peak
    assert efficiency
    return plan.fullest.flops / (peak * 1e12 * efficiency)


def bandwidth(plan: Plan) -> float:
    """Return the GB per second of the device's memory."""
    assert plan.hardware.memory_gb_per_s
    return plan.hardware.memory_gb_per_s


# ---- decoding 13B with MindFormers 1.3 on an Atlas 800T A2

# One token of one text with a cache of 2048 positions (`use_past`, `TransformerEncoderLayer`), by passes over the
# cached keys, or values, of all positions: each step writes the whole cache.
CACHE_PASSES = {
    "reset, multiplied": 2 + 2,
    "reset, assigned": 2 + 2,
    "new key or value repeated for every position": 1 + 1,
    "multiplied by one-hot": 2 + 2,
    "added": 3 + 3,
    "keys divided by the root of H": 2,
    "attention": 1 + 1,
    "assigned": 2 + 2,
}
DECODED_OPERATORS = 60  # of a block, each launched by itself (`jit_level` O0, the default for prediction)


def predicted_decoding() -> Prediction:
    """Predict a token: the larger of what is moved over bandwidth, and all launches."""
    config = composed(f"{NODE_13B}atlas_800t_a2 parallel=single")
    plan = plan_run(config)
    model, values = plan.model, plan.fullest.values
    cache = config.trainer.seq_len * model.hidden_size * model.num_layers  # keys or values of one text
    moved = 2 * values.block_matrices * model.num_layers  # fp16
    moved += (4 + 2 + 2) * values.head  # the embedding is fp32, and cast for the head
    moved += 2 * cache * sum(CACHE_PASSES.values())
    return Prediction(max(moved / (bandwidth(plan) * 1e9), model.num_layers * DECODED_OPERATORS * GRAPH_LAUNCH_S))


# ---- the tables


@dataclass(frozen=True)
class PublicNumber:
    """A number that others have measured.

    Attributes:
        what: the run.
        where: who published it, and the device.
        role: what it calibrates; "held out" if nothing.
        unit: tokens/s per device, or GB.
        predicted: by the planner's constants.
        published: by the source.
    """

    what: str
    where: str
    role: str
    unit: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        """The relative error of the prediction."""
        return self.predicted / self.published - 1


NANOGPT = "modded-nanogpt-npu, a die of 910C"
RECORDS = [  # name, program, milliseconds of an update, MiB, what the speed calibrates
    ("124M, record 1 (llm.c's recipe)", RECORD_1, 321.1, 29267, "efficiency, memory_gb_per_s"),
    ("124M, record 2 with fused operators", RECORD_2_FUSED, 245.1, 21063, "efficiency, memory_gb_per_s"),
    ("124M, record 2 (rotary embeddings)", RECORD_2, 379.8, 30413, "held out"),
]


def public_numbers() -> list[PublicNumber]:
    """Return every public number with its prediction."""
    numbers = [
        PublicNumber(
            "13B, training, 16 x 2048 tokens", f"MindFormers, {device}", "efficiency", "tokens/s",
            tokens_per_s(plan_run(composed(f"{NODE_13B}{option}"))), published,
        )
        for device, option, published in (
            ("Atlas 800T A2", "atlas_800t_a2", 1376),
            ("Atlas 900 A2 PoDc", "atlas_900_a2_podc", 1286),
        )
    ]  # fmt: skip
    numbers.append(
        PublicNumber("13B, decoding one text", "MindFormers, Atlas 800T A2", "memory_gb_per_s", "tokens/s",
                     1 / predicted_decoding().seconds, 21)
    )  # fmt: skip
    for name, program, milliseconds, mebibytes, role in RECORDS:
        prediction = predicted_124m(program)
        assert prediction.gb is not None
        tokens = 32 * 1024
        numbers.append(
            PublicNumber(name, NANOGPT, role, "tokens/s", tokens / prediction.seconds, tokens / (milliseconds / 1e3))
        )
        numbers.append(PublicNumber(name, NANOGPT, "held out", "GB", prediction.gb, mebibytes * MIB / 1e9))
    return numbers


def public_table() -> Table:
    """Return predictions beside public numbers."""
    rows = [
        [
            number.what, number.where, number.unit, shown(number.predicted), shown(number.published),
            f"{number.error:+.1%}", number.role,
        ]
        for number in public_numbers()
    ]  # fmt: skip
    columns = ["what", "published for", "unit, per device", "predicted", "published", "error", "calibrates"]
    return Table("predictions and public numbers", columns, rows)


def own_table() -> Table:
    """Return what is predicted for gpt2x's own program on the devices of public runs; nobody has measured it."""
    rows = []
    for what, overrides in {
        "13B, training, 16 x 2048 tokens": f"{NODE_13B}atlas_800t_a2",
        "124M, llm.c's recipe": DIES_124M,
    }.items():
        plan = plan_run(composed(overrides))
        memory = f"{plan.fullest.memory.total / 1e9:.1f}"
        rows.append([what, plan.hardware.name, shown(tokens_per_s(plan)), memory])
    config = composed(f"{NODE_13B}atlas_800t_a2 parallel=single")
    decoding = plan_inference(config.model, config.parallel, config.hardware, Decoding(1, 2048, 32))
    memory = f"{decoding.memory.total / 1e9:.1f}"
    rows.append(["13B, decoding one text", config.hardware.name, shown(decoding.tokens_per_s or 0.0), memory])
    columns = ["what", "hardware", "predicted, tokens/s per device", "GB per device"]
    return Table("gpt2x on the same devices", columns, rows)


def shown(value: float) -> str:
    """Return three or more digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def composed(overrides: str, plan: str = "true") -> TrainConfig:
    """Return the configuration of a plan, or of a search."""
    return compose_config("train", [*overrides.split(), f"plan={plan}"])


if __name__ == "__main__":
    for table in (public_table(), own_table()):
        print(table.text())
