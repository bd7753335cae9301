"""The runs of layouts that tests read: what is run, in how many processes, and from which other runs it starts.

`tests/support/layout_runs.py` runs them. All train 2 layers of 64, unless the question needs another shape.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.tokenizers import grown_tokenizer
from tests.support.zoo import CLASSIFIER, INSTRUCTIONS, write_instructions, write_texts

STEPS, SAVED = 6, 3  # updates of a run; the first checkpoint, where evaluations are as well


@dataclass(frozen=True)
class Job:
    """One run of an entry point.

    Attributes:
        processes: how many it has.
        overrides: of the command line; `{folder}` is the session's directory, `{NAME}` another job's run
            directory.
        entry: train, evaluate or predict.
        is_typed: runs as its own command, as a user types it, not in a launch that several jobs share.
        before: prepares what the overrides name, in the session's directory; run by one process.
        is_ascend: the CPU computes by the backend `ascend`, with references for its operators.
    """

    processes: int
    overrides: tuple[str, ...]
    entry: str = "train"
    is_typed: bool = False
    before: Callable[[Path], None] | None = None
    is_ascend: bool = False

    @property
    def needs(self) -> list[str]:
        """The jobs that have to run first."""
        return [name for name in re.findall(r"\{(.+?)\}", " ".join(self.overrides)) if name != "folder"]

    def arguments(self, folder: Path) -> list[str]:
        """Return the overrides, with directories in place of names."""
        directories = {"folder": folder} | {name: run_dir(folder, name) for name in self.needs}
        return [re.sub(r"\{(.+?)\}", lambda match: str(directories[match[1]]), text) for text in self.overrides]


def run_dir(folder: Path, name: str) -> Path:
    """Return where a job writes."""
    return folder / "outputs" / "runs" / re.sub(r"\W+", "_", name)


WRITTEN = ("paths.outputs={folder}/outputs", "paths.cache={folder}/cache")
PATHS = (*WRITTEN, "tracker=none")
TINY = ("model=gpt2_tiny", "model.num_layers=2", "model.hidden_size=64", "model.max_seq_len=32", "model.dropout=0",
        "dataset=text", "dataset.path={folder}/corpus.txt", "tokenizer.vocab_size=300", "trainer.seq_len=32",
        "trainer.global_batch_size=8", f"trainer.max_steps={STEPS}", f"trainer.eval_every_steps={SAVED}",
        f"trainer.checkpoint_every_steps={SAVED}", "trainer.keep_last=9", "trainer.keep_best=false",
        "trainer.sample_prompts=[]", "hardware.peak_tflops=0.1", *PATHS)  # fmt: skip
MIXED = ("model.num_layers=3", "model.tie_embeddings=false", "model.dropout=0.1")
PYNATIVE = "hardware.mode=pynative"
FP16_STEPS = 20  # of which the first ones are skipped, until the scale is small enough
FP16 = ("hardware.precision=fp16", "trainer.loss_scale_init=1e12", "trainer.loss_scale_factor=16",
        f"trainer.max_steps={FP16_STEPS}")  # fmt: skip
JOBS: dict[str, Job] = {}
REFERENCES: dict[str, str] = {}  # of a layout's job: the job of one process that it has to equal


def add(name: str, processes: int, *overrides: str, **attributes) -> str:
    """Add a job; return its name."""
    assert name not in JOBS
    JOBS[name] = Job(processes, overrides, **attributes)
    return name


def variant(name: str, reference: str, processes: int, *overrides: str, **attributes) -> str:
    """Add a job that does in a layout what the job `reference` does in one process; return its name."""
    REFERENCES[name] = reference
    return add(name, processes, *JOBS[reference].overrides, *overrides, entry=JOBS[reference].entry, **attributes)


# ---- training

add("single", 1, *TINY)
add("mixed", 1, *TINY, *MIXED)
add("4 layers", 1, *TINY, "model.num_layers=4")
add("fp16", 1, *TINY, *FP16)
# the layouts of the resume ring
PROCESSES = {"single": 1, "dp2": 2, "tp2": 2, "pp2": 2, "zero2": 2, "dp2_zero3": 2, "dp2_tp2": 4, "dp2_tp2_pp2": 8}
TRAINED = [
    variant("dp2", "single", 2, "parallel=dp2", is_typed=True),
    variant("tp2", "single", 2, "parallel=tp2"),
    variant("pp2", "single", 2, "parallel=pp2"),
    variant("zero2", "single", 2, "parallel=zero2"),
    variant("dp2_zero3", "single", 2, "parallel=dp2_zero3"),
    variant("dp2_tp2_pp2", "single", 8, "parallel=dp2_tp2_pp2", is_typed=True),
    # several features at once
    variant("tp2_pp2 of uneven stages, with sequence parallelism, recomputation and padding", "mixed", 4,
            "parallel=tp2_pp2", "parallel.sequence_parallel=true", "parallel.recompute=block",
            "model.pad_vocab_multiple=512"),
    variant("four replicas with accumulation, two of which share states", "mixed", 4,
            "parallel=dp4", "parallel.zero_stage=2", "parallel.optimizer_shards=2", "trainer.micro_batch_size=1"),
    variant("tp2 with whole vocabularies", "mixed", 2,
            "parallel=tp2", "parallel.vocab_parallel=false", "parallel.recompute=attention"),
    variant("more stages than micro batches", "4 layers", 4,
            "parallel=pp2", "parallel.pipeline=4", "parallel.micro_batches=2"),
    # weights split over replicas
    variant("dp2_tp2 with zero_stage=3 and sequence parallelism", "mixed", 4,
            "parallel=dp2_tp2", "parallel.zero_stage=3", "parallel.sequence_parallel=true",
            "model.pad_vocab_multiple=512"),
    variant("dp2_pp2 with zero_stage=3", "4 layers", 4, "parallel=dp2_pp2", "parallel.zero_stage=3"),
    variant("zero_stage=3 within each of two pairs of replicas, ahead, with accumulation", "mixed", 4,
            "parallel=dp4", "parallel.zero_stage=3", "parallel.optimizer_shards=2", "parallel.gather_ahead=true",
            "trainer.micro_batch_size=1"),
    # one operator after the other
    variant("PyNative", "mixed", 1, PYNATIVE, "parallel.recompute=attention"),
    variant("dp2_zero3 in PyNative", "mixed", 2, PYNATIVE, "parallel=dp2_zero3", "parallel.recompute=block"),
    variant("pp2 in PyNative", "mixed", 2, PYNATIVE, "parallel=pp2"),
    variant("dp2_tp2", "single", 4, "parallel=dp2_tp2"),
    variant("dp2_pp2", "single", 4, "parallel=dp2_pp2"),
    variant("tp2_pp2", "single", 4, "parallel=tp2_pp2"),
]  # fmt: skip
TRAINED_EXHAUSTIVE = [
    variant("tp2 with sequence parallelism", "single", 2, "parallel=tp2", "parallel.sequence_parallel=true"),
    variant("tp4 with a rank of nothing but padding, and sequence parallelism", "single", 4,
            "parallel=tp4", "parallel.sequence_parallel=true", "model.pad_vocab_multiple=512"),
    variant("tp2 with sequence parallelism, whole vocabularies, accumulation", "mixed", 2,
            "parallel=tp2", "parallel.sequence_parallel=true", "parallel.vocab_parallel=false",
            "trainer.micro_batch_size=4"),
    variant("all at once", "mixed", 8,
            "parallel=dp2_tp2_pp2", "parallel.optimizer_shards=2", "parallel.sequence_parallel=true",
            "parallel.recompute=block", "model.pad_vocab_multiple=512"),
]  # fmt: skip

# ---- statistics, per tensor; those of activations where a process has all of them

WITHOUT_ACTIVATIONS = "trainer.stats=[weights,gradients,updates]"
add("measured", 1, *TINY, "trainer.max_steps=2", "trainer.stats_every_steps=2", "trainer.stats_per=tensor",
    "trainer.max_eval_rows=8")  # fmt: skip
MEASURED = [
    variant("measured in zero2, by accumulation", "measured", 2, "parallel=zero2", "trainer.micro_batch_size=2"),
    variant("measured in pp2", "measured", 2, "parallel=pp2", WITHOUT_ACTIVATIONS),
]
MEASURED_EXHAUSTIVE = [
    variant("measured in dp2", "measured", 2, "parallel=dp2"),
    variant("measured in tp2", "measured", 2, "parallel=tp2"),
    variant("measured in dp2_zero3", "measured", 2, "parallel=dp2_zero3", WITHOUT_ACTIVATIONS),
    variant("measured in dp2_tp2_pp2", "measured", 8, "parallel=dp2_tp2_pp2", WITHOUT_ACTIVATIONS),
]

variant("fp16 in tp2_pp2", "fp16", 4, "parallel=tp2_pp2")
variant("fp16 in dp2", "fp16", 2, "parallel=dp2")
variant("fp16 in dp2_zero3", "fp16", 2, "parallel=dp2_zero3")
# of two stages only the last has the loss, and both leave out the same updates
add("spikes", 1, *TINY, "trainer.spike_window=2", "trainer.spike_sigma=0.2", f"trainer.max_steps={2 * STEPS}")
variant("spikes in pp2", "spikes", 2, "parallel=pp2")


# ---- the same weights validated: an update by a rate that changes none of their bits

add("validated", 1, *TINY, "load={single}", "dataset.val_path={folder}/corpus.txt", "trainer.max_steps=1",
    "trainer.global_batch_size=12", "trainer.max_eval_rows=23", "optimizer.learning_rate=1e-30",
    "optimizer.weight_decay=0")  # fmt: skip
VALIDATED = [
    variant("validated by micro batches of 4", "validated", 1, "trainer.micro_batch_size=4"),
    variant("validated in dp2", "validated", 2, "parallel=dp2"),
    variant("validated in dp2 by micro batches of 2", "validated", 2, "parallel=dp2", "trainer.micro_batch_size=2"),
    variant("validated in tp2", "validated", 2, "parallel=tp2", "trainer.micro_batch_size=3"),
    variant("validated in pp2", "validated", 2, "parallel=pp2", "trainer.micro_batch_size=3"),
    variant("validated in dp2_zero3", "validated", 2, "parallel=dp2_zero3", "trainer.micro_batch_size=2"),
]


# ---- the Ascend branch, by references for its operators

FLASH = ("hardware.flash_attention=true",)
add("fp16 with dropout", 1, *TINY, "hardware.precision=fp16", "model.dropout=0.1")
ASCEND = [
    variant("fp16 by Ascend's branch in tp2", "fp16 with dropout", 2, *FLASH, "parallel=tp2", is_ascend=True),
    variant("fp16 by Ascend's branch in dp2_zero3", "fp16 with dropout", 2, *FLASH, "parallel=dp2_zero3",
            is_ascend=True),
]  # fmt: skip
ASCEND_EXHAUSTIVE = [
    variant("fp16 by Ascend's branch in zero2", "fp16 with dropout", 2, *FLASH, "parallel=zero2", is_ascend=True),
    variant("fp32 by Ascend's branch in tp2", "mixed", 2, "parallel=tp2", is_ascend=True),
    variant("fp32 by Ascend's branch in dp2_zero3", "mixed", 2, "parallel=dp2_zero3", is_ascend=True),
    variant("fp16 by Ascend's branch in dp2_tp2", "fp16 with dropout", 4, *FLASH, "parallel=dp2_tp2",
            "parallel.zero_stage=3", "parallel.sequence_parallel=true", is_ascend=True),
    variant("fp16 by Ascend's branch in pp2", "fp16 with dropout", 2, *FLASH, "parallel=pp2", is_ascend=True),
]  # fmt: skip


# ---- resuming


def resumed(first: str, second: str) -> str:
    """Return the job that continues the run of the layout `first` in the layout `second`."""
    return f"{first} continued by {second}"


for _first, _second in itertools.product(PROCESSES, PROCESSES):
    _padding = ["model.pad_vocab_multiple=128"] if _second == "tp2" else []  # of the layout, not of the run
    variant(resumed(_first, _second), "single", PROCESSES[_second], f"parallel={_second}", *_padding,
            f"resume={{{_first}}}/checkpoints/step_{SAVED}")  # fmt: skip


# ---- adapters, on column and row linears, whole and in thirds

LORA = ("lora=r8", "load={single}")
ADAPTED: list[str] = []
ADAPTED_EXHAUSTIVE: list[str] = []
for _targets, _layouts in {
    "[q,v,c_proj,c_fc]": {
        "pp2": (2, "parallel=pp2"),
        "dp2_zero3": (2, "parallel=dp2_zero3"),
        "dp2_tp2 with sequence parallelism, two replicas of which share states":
            (4, "parallel=dp2_tp2", "parallel.optimizer_shards=2", "parallel.sequence_parallel=true"),
        "dp2_tp2_pp2 with sequence parallelism, two replicas of which share states":
            (8, "parallel=dp2_tp2_pp2", "parallel.optimizer_shards=2", "parallel.sequence_parallel=true"),
    },
    "[c_attn,c_fc]": {"tp2 with recomputation": (2, "parallel=tp2", "parallel.recompute=block")},
}.items():  # fmt: skip
    _reference = add(f"adapters of {_targets}", 1, *TINY, *LORA, f"lora.targets={_targets}")
    for _name, (_processes, *_overrides) in _layouts.items():
        (ADAPTED if _processes < 8 else ADAPTED_EXHAUSTIVE).append(
            variant(f"{_reference} in {_name}", _reference, _processes, *_overrides)
        )


# ---- fine-tuning: some tensors are frozen, rates decay over the layers, and the embedding has two rows more

TUNED_STEPS = 4
ADDED_TOKENS = ("<|user|>", "<|assistant|>")


def grow_tokenizer(folder: Path) -> None:
    """Add tokens to the tokenizer of the job `single`."""
    source, target = run_dir(folder, "single") / "checkpoints" / f"step_{STEPS}" / "tokenizer", folder / "tokenizer"
    if not target.exists():
        grown_tokenizer(source, target, ADDED_TOKENS)


add("tuned", 1, *TINY, "optimizer.layer_decay=0.7", "tokenizer.extend=true", "load={single}",
    "trainer.frozen=[wpe.weight,'h.0.*','mlp.c_fc.*']", "tokenizer.path={folder}/tokenizer",
    f"trainer.max_steps={TUNED_STEPS}", "trainer.eval_every_steps=2", before=grow_tokenizer)  # fmt: skip
TUNED = [
    variant("tuned in zero2", "tuned", 2, "parallel=zero2"),
    variant("tuned in tp2", "tuned", 2, "parallel=tp2"),
    variant("tuned in pp2", "tuned", 2, "parallel=pp2"),
]


# ---- other tasks


def write_class_texts(folder: Path) -> None:
    """Write the labelled texts once."""
    if not (folder / "texts").exists():
        write_texts(folder / "texts")


def write_instruction_rows(folder: Path) -> None:
    """Write the instructions and their template once."""
    if not (folder / "instructions").exists():
        (folder / "instructions").mkdir()
        write_instructions(folder / "instructions")


CLASS_STEPS, INSTRUCTION_STEPS = 10, 4
add("classes", 1, *CLASSIFIER, *WRITTEN, "dataset.path={folder}/texts",
    f"trainer.stop_after_steps={CLASS_STEPS}", before=write_class_texts)  # fmt: skip
CLASSIFIED = [
    variant("classes in dp2", "classes", 2, "parallel=dp2"),
    variant("classes in zero2", "classes", 2, "parallel=zero2"),
    variant("classes in dp2_zero3", "classes", 2, "parallel=dp2_zero3"),
]
add("classes with dropout", 1, *JOBS["classes"].overrides, "model.dropout=0.2", before=write_class_texts)
CLASSIFIED.append(variant("classes with dropout in dp2", "classes with dropout", 2, "parallel=dp2"))
for _packing, _form in (("true", "packed"), ("false", "padded")):
    add(f"{_form} instructions", 1, *INSTRUCTIONS, *WRITTEN, "dataset.path={folder}/instructions",
        "dataset.template={folder}/instructions/template.yaml", f"dataset.packing={_packing}",
        "trainer.sample_prompts=[]", "trainer.global_batch_size=8", f"trainer.max_steps={INSTRUCTION_STEPS}",
        "trainer.eval_every_steps=2", before=write_instruction_rows)  # fmt: skip
INSTRUCTED = [
    variant("packed instructions in zero2", "packed instructions", 2, "parallel=zero2", "trainer.micro_batch_size=2"),
    variant("padded instructions in zero2", "padded instructions", 2, "parallel=zero2", "trainer.micro_batch_size=2"),
    variant("packed instructions in tp2 with sequence parallelism", "packed instructions", 2, "parallel=tp2",
            "parallel.sequence_parallel=true", "model.pad_vocab_multiple=2"),
    variant("packed instructions in pp2", "packed instructions", 2, "parallel=pp2"),
    variant("packed instructions in dp2_zero3", "packed instructions", 2, "parallel=dp2_zero3"),
    variant("padded instructions in dp2_zero3", "padded instructions", 2, "parallel=dp2_zero3"),
]  # fmt: skip


# ---- inference

PROMPTS = ["the cat sat on", "", "then some dogs ran over this green hill and", "a mat", "the"]
LOAD = ("load={odd vocabulary}", *PATHS)
UNTRACKED = ("load={odd vocabulary}", *WRITTEN)  # predict has no tracker
PREDICTION = (f"prompts={json.dumps(PROMPTS)}", "generation.max_new_tokens=10", "generation.batch_size=2")

# an odd vocabulary has to be padded for two processes
add("odd vocabulary", 1, *TINY, "model.hidden_size=32", "model.num_heads=2", "tokenizer.vocab_size=291",
    "trainer.max_steps=40", "trainer.eval_every_steps=40", "trainer.checkpoint_every_steps=40",
    "optimizer.learning_rate=3e-3", "trainer.micro_batch_size=4")  # fmt: skip
add("evaluated", 1, *LOAD, "output={folder}/evaluated.json", "dataset=text", "dataset.val_path={folder}/corpus.txt",
    "evaluation.batch_size=4", entry="evaluate")  # fmt: skip
EVALUATED = [
    variant("evaluated in dp2", "evaluated", 2, "parallel=dp2", "output={folder}/evaluated_dp2.json"),
    variant("evaluated in tp2", "evaluated", 2, "parallel=tp2", "output={folder}/evaluated_tp2.json", is_typed=True),
    variant("evaluated in dp2_tp2", "evaluated", 4, "parallel=dp2_tp2", "output={folder}/evaluated_dp2_tp2.json"),
]
add("greedy", 1, *UNTRACKED, *PREDICTION, "generation.repetition_penalty=1.2", "output={folder}/greedy.jsonl",
    entry="predict")  # fmt: skip
add("sampled", 1, *UNTRACKED, *PREDICTION, "generation.temperature=1.0", "generation.top_p=0.95",
    "generation.min_new_tokens=3", "seed=3", "output={folder}/sampled.jsonl", entry="predict")  # fmt: skip
PREDICTED = [
    variant("greedy in tp2", "greedy", 2, "parallel=tp2", "output={folder}/greedy_tp2.jsonl", is_typed=True),
    variant("greedy in dp2", "greedy", 2, "parallel=dp2", "output={folder}/greedy_dp2.jsonl"),
    variant("sampled in dp2_tp2", "sampled", 4, "parallel=dp2_tp2", "output={folder}/sampled_dp2_tp2.jsonl"),
]
