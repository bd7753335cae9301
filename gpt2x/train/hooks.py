"""What the loop does after each update, in this order: show, evaluate, sample, record, prune, save.

A checkpoint comes last, so that a run which continues from it has all metrics and samples up to there.

A hook sees the trainer after an update and the metrics of that update, to which it may add. To add one, write a class
with `is_due` and `run`, and put it into `default_hooks` where its turn is.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol

from gpt2x.errors import UserError
from gpt2x.generate import Generator
from gpt2x.parallel.poll import Poll
from gpt2x.runtime import interrupt
from gpt2x.runtime.console import Progress, StepReport, console
from gpt2x.tasks.base import Validates
from gpt2x.tracking import Tracker
from gpt2x.train.pruning import Prune
from gpt2x.train.records import Records
from gpt2x.train.samples import SAMPLE_HEAD, can_sample

if TYPE_CHECKING:
    from gpt2x.train.trainer import Trainer

Metrics = dict[str, float]


class Hook(Protocol):
    """Something that the loop does after an update, on every rank."""

    def is_due(self, trainer: Trainer) -> bool:
        """Return True if `run` is to be called after this update; the same on every rank."""

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Do it; `metrics` are those of the update, and may be added to.

        Raises:
            CutShortError: a signal asked the run to end; this hook and those after it run when the run continues.
        """


class CutShortError(Exception):
    """A hook stopped in the middle, because a signal asked the run to end; it has changed nothing."""


class ShowStep:
    """Redraw the bar, or print a line every trainer.log_every_steps."""

    def is_due(self, trainer: Trainer) -> bool:
        """Return True: `Progress` chooses the steps for which it prints a line."""
        return True

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Show the step, and after the first one how long it took from the start to here."""
        progress.update(step_report(trainer, metrics))
        if "perf/startup_time_s" in metrics:
            took, compiling = metrics["perf/startup_time_s"], metrics["perf/compile_time_s"]
            console.notice(f"first step {took:.1f} s after the start; compiling took {compiling:.1f} s of it")


class Evaluate:
    """Validate every trainer.eval_every_steps and at the end, and remember the best value of each metric.

    Args:
        validation: of the task, computed by all ranks; None if there are no validation rows.
    """

    def __init__(self, validation: Validates | None):
        self.validation = validation

    def is_due(self, trainer: Trainer) -> bool:
        """Return True every trainer.eval_every_steps and after the last step, if there are validation rows."""
        return self.validation is not None and trainer.is_due(trainer.config.trainer.eval_every_steps)

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Add the validation's metrics, and the best value so far of each with its step."""
        assert self.validation is not None
        poll = Poll(trainer.mesh)

        def before_round() -> None:
            if any(poll(interrupt.requested())):
                raise CutShortError

        with progress.busy("evaluating"):
            values = self.validation.run(before_round)
        trainer.has_evaluated = True
        progress.evaluation(trainer.state.step, values)
        remember(trainer, values)
        metrics |= values | best_so_far(trainer.state.bests)


class Record:
    """Write a line of metrics.jsonl and mirror it to the tracker, on the main rank."""

    def __init__(self, records: Records, tracker: Tracker):
        self.records, self.tracker = records, tracker

    def is_due(self, trainer: Trainer) -> bool:
        """Return True after every update."""
        return trainer.mesh.is_main

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Write the line."""
        self.tracker.log_metrics(*self.records.metrics.append(trainer.state.step, metrics))


class SaveCheckpoint:
    """Write `checkpoints/step_N` when it is due, when the run stops, and for the best evaluation."""

    def __init__(self) -> None:
        self.is_late = False  # a checkpoint waits for a loss that has exploded to fall

    def is_due(self, trainer: Trainer) -> bool:
        """Return True every trainer.checkpoint_every_steps, when the run stops, and for a new best evaluation.

        While the loss has exploded, only the end of the run is due: a resumed run could not recover from such weights.
        """
        options, state = trainer.config.trainer, trainer.state
        is_best = options.keep_best and state.best_step == state.step
        is_due = is_best or self.is_late or trainer.is_due(options.checkpoint_every_steps)
        self.is_late = is_due and state.exploded_in_a_row > 0
        return trainer.is_stopping or (is_due and not self.is_late)

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Begin to write it; the last one is complete, or has failed, when this returns."""
        with progress.busy("saving"):
            trainer.saving.save(is_last=trainer.is_stopping or bool(trainer.signalled))
        trainer.saved_step, trainer.saved_at = trainer.state.step, time.monotonic()


class DrawSamples:
    """Complete trainer.sample_prompts, and write the samples to the terminal and to samples.txt."""

    def __init__(self, trainer: Trainer):
        decision = trainer.decision
        self.generator = Generator(
            trainer.net,
            decision.model,
            decision.config.hardware,
            decision.data.tokenizer,
            special_ids=decision.special_ids,
        )
        self.samples = decision.samples
        self.file = trainer.records.samples
        self.is_whole = trainer.mesh.tensor is None

    def is_due(self, trainer: Trainer) -> bool:
        """Return True if samples are due and can be drawn."""
        options = trainer.config.trainer
        return (
            trainer.is_due(options.sample_every_steps or options.eval_every_steps)
            and bool(self.samples.prompts)
            and can_sample(trainer.task, trainer.config.parallel)
        )

    def run(self, trainer: Trainer, metrics: Metrics, progress: Progress) -> None:
        """Complete the prompts on the first replica, for which the others wait.

        Raises:
            CutShortError: on every rank, if one of them was told to end.
        """
        is_complete = True
        with progress.busy("sampling"):
            if trainer.mesh.coordinates.data == 0:
                try:
                    self.draw(trainer)
                except CutShortError:
                    is_complete = False
        if not trainer.mesh.agree(is_complete):
            raise CutShortError

    def go_on(self, index: int, text: str) -> None:
        """Break off if a signal asks for it; processes that split a model's layers would have to do so together.

        Raises:
            CutShortError: it does.
        """
        if self.is_whole and interrupt.requested():
            raise CutShortError

    def draw(self, trainer: Trainer) -> None:
        """Write the samples of one step."""
        step = trainer.state.step
        try:
            completions = self.generator.complete(
                self.samples.prompts, self.samples.generation, self.samples.seed, on_text=self.go_on
            )
        except UserError as error:  # logits that are not finite do not end the run
            console.warn(f"step {step}: no samples: {error}")
            return
        if not trainer.mesh.is_main:
            return
        texts = [(completion.prompt, completion.completion) for completion in completions]
        console.samples(step, texts)
        content = "".join(f"{SAMPLE_HEAD.format(step)}{prompt}{text}\n\n" for prompt, text in texts)
        self.file.append(content.encode("utf-8", "replace"))


def default_hooks(trainer: Trainer, tracker: Tracker) -> list[Hook]:
    """Return the hooks of a run in the order in which they are called."""
    decision = trainer.decision
    validation = decision.task.validation(decision, trainer.net, trainer.mesh) if decision.data.val else None
    pruning = [Prune(trainer)] if decision.config.sweep.pruner else []
    return [
        ShowStep(),
        Evaluate(validation),
        DrawSamples(trainer),
        Record(trainer.records, tracker),
        *pruning,
        SaveCheckpoint(),
    ]


def remember(trainer: Trainer, values: Metrics) -> None:
    """Note which values of an evaluation are the best so far, in the directions of the task."""
    state, metric = trainer.state, trainer.config.trainer.best_metric
    for name in trainer.task.metrics:
        if name not in values:  # bits per byte, of a tokenizer without exact bytes
            continue
        value, best = values[name], state.bests.get(name)
        if math.isfinite(value) and (best is None or trainer.task.is_better(name, value, best[0])):
            state.bests[name] = value, state.step
    value, is_first = values[metric], state.best_value is None
    if math.isfinite(value) and (is_first or trainer.task.is_better(metric, value, state.best_value)):
        state.best_step, state.best_value, state.evaluations_without_gain = state.step, value, 0
    else:
        state.evaluations_without_gain += 1


def best_so_far(bests: dict[str, tuple[float, int]]) -> Metrics:
    """Return `best/METRIC` and `best/METRIC_step` of each metric."""
    return {
        name: float(number)
        for metric, (value, step) in bests.items()
        for name, number in ((f"best/{metric}", value), (f"best/{metric}_step", step))
    }


def step_report(trainer: Trainer, metrics: Metrics) -> StepReport:
    """Return a step as it is shown."""
    state = trainer.state
    return StepReport(
        step=state.step,
        loss=metrics["train/loss"],
        lr=metrics["train/lr"],
        grad_norm=metrics["train/grad_norm"],
        epoch=metrics["train/epoch"],
        loss_scale=metrics.get("train/loss_scale"),
        tokens_per_s=metrics.get("perf/tokens_per_s"),
        mfu=metrics.get("perf/mfu"),
        memory_gb=metrics["perf/memory_gb"],
        device_memory_gb=metrics.get("perf/device_memory_peak_gb"),
        skipped_steps=state.step - state.num_updates,
        is_per_token=trainer.task.unit == "token",
    )
