"""`gpt2x doctor`: check a machine from its versions to a short training run, and write a report for an issue.

What is checked: versions of packages, driver and toolkit; each operator of the model against NumPy, with its gradient;
each collective between processes; the losses of 20 updates against those of gpt2x's developers; memory and speed
against the plan. The report is DIR/doctor.md and DIR/doctor.json; nothing is sent.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from gpt2x.commands.arguments import Parser, path
from gpt2x.commands.entry import run_in_process
from gpt2x.commands.hydra_entry import compose_config
from gpt2x.config import HardwareConfig, TrainConfig
from gpt2x.config.files import load_config
from gpt2x.config.options import options as names_of
from gpt2x.config.options import read_option
from gpt2x.doctor import collectives
from gpt2x.doctor.decoding import compare_decoding
from gpt2x.doctor.operators import operator_checks
from gpt2x.doctor.report import Check, CheckFailedError, NotHereError, Report, examine
from gpt2x.doctor.versions import machine_facts, version_checks
from gpt2x.errors import RunError, UserError
from gpt2x.planner.roofline import plan_run
from gpt2x.runtime.console import console
from gpt2x.runtime.device import has_device, set_up_device
from gpt2x.runtime.memory import peak_memory_gb

GOLDEN_STEPS = 20
# recorded on a CPU in fp32 with gpt2x's kernels
GOLDEN = (
    5.69312, 5.26218, 5.03363, 4.88412, 4.73524, 4.60385, 4.46388, 4.33234, 4.21650, 4.12314,
    4.03995, 3.96560, 3.91958, 3.88214, 3.83139, 3.80230, 3.76524, 3.75130, 3.74646, 3.72871,
)  # fmt: skip
GOLDEN_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}  # relative, of each loss
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "some", "dogs", "ran", "over", "this", "green", "hill")
# A plan of a public run is within a tenth (docs/planning.md); half of it, or a sixth more memory, is a fault
LEAST_SPEED, MOST_MEMORY = 0.5, 1.15
ADVICE = "send doctor.md with an issue"
PLAN_ADVICE = f"train with trainer.profile_steps to see which operators take the time; {ADVICE}"


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="gpt2x doctor", description=__doc__)
    parser.add_argument("--hardware", default="cpu", choices=names_of("hardware"), help="the option to check")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="instead of the option's")
    parser.add_argument("--processes", type=int, default=2, help="for collectives; 0 leaves them out")
    parser.add_argument("--output", type=path, default=Path("doctor"), metavar="DIR", help="where the report goes")
    return parser


def main(arguments: list[str]) -> None:
    """Run all checks, show them as a table, and write the report.

    Raises:
        RunError: a check failed; the table has been shown.
    """
    options = parser().parse_args(arguments)
    if options.processes % 2 or options.processes < 0:
        raise UserError(f"--processes={options.processes} must be even, since messages go from one to another; use 2.")
    hardware: HardwareConfig = read_option("hardware", options.hardware, HardwareConfig)
    if options.precision:
        hardware = replace(hardware, precision=options.precision)
    report = Report(machine_facts() | {"hardware": hardware.name, "precision": hardware.precision})
    for check in checks(hardware, options.processes, options.output.absolute(), report):
        report.findings.append(examine(check))
    report.write(options.output)
    console.table("gpt2x doctor", ("area", "check", "status", "found"), report.rows())
    for advice, names in report.advice().items():
        console.warn(f"{', '.join(names)}: {advice}")
    console.notice(f"{report.verdict()} Report: {options.output / 'doctor.md'}")
    if report.failed:
        raise RunError(status=1)


def checks(hardware: HardwareConfig, processes: int, folder: Path, report: Report) -> Iterator[Check]:
    """Yield the checks in their order; without a device, those that need it are not made."""

    def device() -> str:
        if not has_device(hardware.device_target):
            raise CheckFailedError(f"no {hardware.device_target} device: the driver's /dev/davinci* are missing")
        set_up_device(hardware)
        return hardware.device_target

    yield from version_checks(hardware.is_cpu)
    yield Check("device", hardware.device_target, device, "npu-smi info; or check another option with --hardware")
    if report.failed and report.findings[-1].area == "device":
        return
    yield from operator_checks(hardware)
    yield Check("operators", "decoding", lambda: compare_decoding(hardware), ADVICE)

    def exchange() -> str:
        if not processes:
            raise NotHereError("--processes=0")
        return collectives.exchange(hardware, processes, folder / "collectives")

    yield Check("collectives", "all groups", exchange, f"read {folder}/collectives/logs; {ADVICE}")
    yield Check("training", f"losses of {GOLDEN_STEPS} updates", lambda: golden(hardware, folder), ADVICE)
    yield Check("training", "speed and memory", lambda: speed(folder), ADVICE)
    yield Check("training", "GPT-2 small against its plan", lambda: against_plan(hardware, folder), PLAN_ADVICE)


def training_config(hardware: HardwareConfig, folder: Path) -> TrainConfig:
    """Return the configuration of 20 updates on generated text, which is the same on every machine."""
    overrides = [
        "model=gpt2_tiny", "model.num_layers=2", "model.hidden_size=128", "model.dropout=0.1", "model.max_seq_len=64",
        "trainer.seq_len=64", "trainer.global_batch_size=8",
    ]  # fmt: skip
    return with_text(hardware, folder, 6000, overrides)


def planned_config(hardware: HardwareConfig, folder: Path) -> TrainConfig:
    """Return the configuration of 20 updates of GPT-2 small with its vocabulary's size, large enough for a plan."""
    overrides = ["model=gpt2_small", "model.pad_vocab_multiple=50304", "trainer.seq_len=1024",
                 "trainer.global_batch_size=16"]  # fmt: skip
    return with_text(hardware, folder, 60_000, overrides)


def with_text(hardware: HardwareConfig, folder: Path, num_words: int, overrides: list[str]) -> TrainConfig:
    """Return a configuration of `GOLDEN_STEPS` updates on generated text of so many words."""
    text = folder / f"corpus_{num_words}.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    words = np.random.default_rng(0).choice(WORDS, size=num_words)
    text.write_text("\n".join(" ".join(words[at : at + 12]) for at in range(0, len(words), 12)), encoding="utf-8")
    overrides = [
        *overrides, "dataset=text", f"dataset.path={text}", "tokenizer.vocab_size=300",
        f"trainer.max_steps={GOLDEN_STEPS}", "trainer.sample_prompts=[]", "trainer.checkpoint_every_steps=null",
        "trainer.keep_best=false", "trainer.eval_every_steps=null", "trainer.compile_cache=false", "tracker=none",
        "seed=0", f"paths.outputs={folder}", f"paths.cache={folder}/cache",
    ]  # fmt: skip
    return replace(compose_config("train", overrides), hardware=hardware)


def train(config: TrainConfig, run_dir: Path) -> list[dict]:
    """Train quietly into a new directory; return the lines of its metrics.jsonl.

    Raises:
        CheckFailedError: the run ended early.
    """
    shutil.rmtree(run_dir, ignore_errors=True)  # of an earlier check
    run_dir.mkdir(parents=True)
    with (
        (run_dir / "log.txt").open("w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        run_in_process("train", config, run_dir)
    lines = metrics(run_dir)
    if len(lines) != GOLDEN_STEPS:
        raise CheckFailedError(f"{len(lines)} of {GOLDEN_STEPS} updates; see {run_dir}/log.txt")
    return lines


def metrics(run_dir: Path) -> list[dict]:
    """Return the lines of metrics.jsonl of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def golden(hardware: HardwareConfig, folder: Path) -> str:
    """Train, and compare each loss with `GOLDEN`.

    Raises:
        CheckFailedError: one differs by more than `GOLDEN_TOLERANCE`.
    """
    losses = [line["train/loss"] for line in train(training_config(hardware, folder), folder / "training")]
    difference = max(abs(loss - expected) / expected for loss, expected in zip(losses, GOLDEN, strict=True))
    text = f"losses {losses[0]:.4f} to {losses[-1]:.4f}, at most {difference:.0e} from those recorded"
    if not difference <= GOLDEN_TOLERANCE[hardware.precision]:
        raise CheckFailedError(f"{text} (allowed {GOLDEN_TOLERANCE[hardware.precision]:.0e})")
    return text


def speed(folder: Path) -> str:
    """Return speed and memory of the 20 updates beside those of their plan, for the reader to judge.

    A model this small waits for launches, and its memory is that of the interpreter: `against_plan` judges.
    """
    measured = measure(load_config("train", folder / "training" / "config.yaml"), metrics(folder / "training"))
    return measured.text()


@dataclass(frozen=True)
class Measured:
    """Speed and memory of a run beside its plan.

    Attributes:
        tokens_per_s: the median of all updates but the first; `planned_tokens_per_s` is None if nothing is planned.
        memory_gb: the device's peak; on the CPU, the process's.
    """

    tokens_per_s: float
    planned_tokens_per_s: float | None
    memory_gb: float
    planned_memory_gb: float

    def text(self) -> str:
        """Return all four as a sentence."""
        planned = "not planned" if self.planned_tokens_per_s is None else f"{self.planned_tokens_per_s:,.0f}"
        return (
            f"{self.tokens_per_s:,.0f} tokens/s (plan: {planned}); peak {self.memory_gb:.2f} GB (plan of the update: "
            f"{self.planned_memory_gb:.2f} GB)"
        )

    def judge(self) -> str:
        """Return `text`.

        Raises:
            CheckFailedError: slower than `LEAST_SPEED` of the plan, or more memory than `MOST_MEMORY` of it.
        """
        if self.planned_tokens_per_s is not None and self.tokens_per_s < LEAST_SPEED * self.planned_tokens_per_s:
            raise CheckFailedError(f"{self.text()}: less than {LEAST_SPEED:.0%} of the planned speed")
        if self.memory_gb > MOST_MEMORY * self.planned_memory_gb:
            raise CheckFailedError(f"{self.text()}: more than {MOST_MEMORY:.0%} of the planned memory")
        return self.text()


def measure(config: TrainConfig, lines: list[dict]) -> Measured:
    """Return what the metrics of a run say, and its plan."""
    plan = plan_run(config)
    planned = plan.speed.tokens_per_s if plan.speed else None
    rate = median(line["perf/tokens_per_s"] for line in lines[1:])
    return Measured(rate, planned, peak_memory_gb(), plan.fullest.memory.total / 1e9)


def against_plan(hardware: HardwareConfig, folder: Path) -> str:
    """Train GPT-2 small on a device, and compare speed and memory with the plan.

    Raises:
        NotHereError: the device is the CPU, whose speed is not planned.
        CheckFailedError: as `Measured.judge`.
    """
    if hardware.is_cpu:
        raise NotHereError("the device is the CPU, whose speed is not planned")
    config = planned_config(hardware, folder)
    return measure(config, train(config, folder / "planned")).judge()
