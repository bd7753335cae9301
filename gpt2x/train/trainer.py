"""The training loop: batches in, parameters updated, metrics, validation, samples and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gpt2x import checkpoint
from gpt2x.data.sampling import Batch, batches
from gpt2x.errors import UserError
from gpt2x.evaluate.validation import Validation
from gpt2x.generate import Generator
from gpt2x.model import stats
from gpt2x.model.gpt2 import GPT2, load_weights, logical_weights, with_padding
from gpt2x.optim.adamw import AdamW
from gpt2x.optim.loss_scale import LossScale
from gpt2x.optim.schedule import learning_rate
from gpt2x.runtime.console import Progress, StepReport, console
from gpt2x.runtime.memory import process_memory_gb
from gpt2x.tasks.language_modeling import WeightedLoss
from gpt2x.tracking import MetricsLog, Tracker
from gpt2x.train.samples import SAMPLE_HEAD, rewind_samples, sample_generation
from gpt2x.train.start import Start
from gpt2x.train.step import TrainStep


@dataclass
class LoopState:
    """Where a run stands; with weights and optimizer states it is all that a checkpoint needs."""

    step: int = 0  # updates tried
    num_updates: int = 0  # updates made: skipped ones do not count towards bias correction
    skipped_in_a_row: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    tokens_seen: int = 0
    loss_scale: LossScale = field(default_factory=lambda: LossScale(1.0, 1.0, 1))
    best_step: int | None = None
    best_loss: float | None = None
    data_fingerprint: str = ""  # of the blocks that `batch` counts

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """The state that `dataclasses.asdict` wrote."""
        return cls(**(values | {"loss_scale": LossScale(**values["loss_scale"])}))


def dropout_key(seed: int, step: int) -> int:
    """The int32 key of a step's dropout masks, a hash of (seed, step) alone (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0].view(np.int32))


class Trainer:
    """One run on one device.

    Args:
        start: what was decided before.
        net: with its weights loaded.
        tracker: mirrors the metrics.
        peak_tflops: of the device at the precision used, for MFU.
    """

    def __init__(self, start: Start, net: GPT2, tracker: Tracker, peak_tflops: float):
        self.config, self.model, self.data = start.config, start.model, start.data
        self.train_split, self.run_dir, self.total_steps = start.train_split, start.run_dir, start.total_steps
        self.steps_per_epoch = start.steps_per_epoch
        self.net, self.tracker, self.peak_tflops = net, tracker, peak_tflops
        config, model, data = start.config, start.model, start.data
        trainer = config.trainer
        self.num_micro_batches = trainer.global_batch_size // trainer.micro_batch_size
        self.optimizer = AdamW(config.optimizer, net.trainable_params())
        has_dropout = any((model.dropout, model.embedding_dropout, model.attention_dropout))
        self.train_step = TrainStep(
            WeightedLoss(net), self.optimizer, self.num_micro_batches, trainer.grad_clip, has_dropout
        )
        self.validation = None
        if data.val is not None:
            self.validation = Validation(
                net, data.val, min(trainer.micro_batch_size, data.val.num_blocks), max_batches=trainer.max_eval_batches
            )
        self.generator = Generator(net, model, config.hardware, data.tokenizer)
        self.generation = sample_generation(config, model, data.tokenizer)
        self.state = LoopState(data_fingerprint=data.fingerprint)
        if config.hardware.precision == "fp16":
            self.state.loss_scale = LossScale(
                trainer.loss_scale_init, trainer.loss_scale_factor, trainer.loss_scale_window
            )
        self.flops_per_token = stats.train_flops_per_token(model, trainer.seq_len)
        self.metrics = MetricsLog(self.run_dir / "metrics.jsonl")

    # ---- state

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: weights, optimizer, position in the data, schedule, loss scale."""
        load_weights(self.net, saved.tensors("weights"))
        states = saved.tensors("optimizer")
        for parameter in (*self.optimizer.mean, *self.optimizer.square):
            parameter.set_data(Tensor(with_padding(states[parameter.name], parameter.shape)))
        fresh, self.state = self.state, LoopState.from_dict(saved.loop_state)
        self.state.data_fingerprint = fresh.data_fingerprint
        if saved.run_config["hardware"]["precision"] != self.config.hardware.precision:
            self.state.loss_scale = fresh.loss_scale
        if saved.path.parent.parent != self.run_dir:  # a branch has its own best
            self.state.best_step = self.state.best_loss = None
        self.metrics.rewind(self.state.step)
        rewind_samples(self.run_dir / "samples.txt", self.state.step)

    def save_checkpoint(self) -> Path:
        """Write `checkpoints/step_N`, then remove what keep_last and keep_best do not keep."""
        directory = self.run_dir / "checkpoints" / f"step_{self.state.step}"
        shapes = stats.tensor_shapes(self.model)
        states = {
            parameter.name: parameter.asnumpy()[: shapes[parameter.name.split(".", 1)[1]][0]]
            for parameter in (*self.optimizer.mean, *self.optimizer.square)
        }
        checkpoint.save(
            directory,
            tensors={"weights": logical_weights(self.net, self.model), "optimizer": states},
            model=self.model,
            run_config=asdict(self.config),
            loop_state=asdict(self.state),
            tokenizer_dir_writer=self.data.tokenizer.save,
        )
        best = self.state.best_step if self.config.trainer.keep_best else None
        checkpoint.prune(self.run_dir, self.config.trainer.keep_last, best)
        return directory

    # ---- data

    def batches(self) -> Iterator[Batch]:
        """Global batches from where the state stands, epoch after epoch; keeps the state's position."""
        while True:
            for batch in batches(
                self.train_split,
                batch_size=self.config.trainer.global_batch_size,
                seed=self.config.seed,
                epoch=self.state.epoch,
                shuffle=True,
                start_batch=self.state.batch,
                drop_last=True,
            ):
                self.state.batch += 1
                yield batch
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def step_inputs(self, batch: Batch, rate: float) -> tuple[Any, ...]:
        """The arguments of `TrainStep` for a global batch."""
        shape = (self.num_micro_batches, self.config.trainer.micro_batch_size, -1)
        counted = batch["attention_mask"][:, 1:].astype(np.float32)
        weights = counted / np.float32(max(1.0, counted.sum()))
        key = dropout_key(self.config.seed, self.state.step)
        return (
            batch["input_ids"].reshape(shape),
            weights.reshape(shape),
            Tensor(key, ms.int32),
            Tensor(self.state.loss_scale.scale, ms.float32),
            *self.optimizer.scalars(rate, self.state.num_updates + 1),
        )

    # ---- loop

    def fit(self) -> None:
        """Train to the last step, or to stop_after_steps."""
        trainer, state = self.config.trainer, self.state
        stop = min(self.total_steps, trainer.stop_after_steps or self.total_steps)
        with Progress(self.total_steps, state.step, trainer.log_every_steps) as progress:
            source = self.batches()
            while state.step < stop:
                started = time.perf_counter()
                metrics = self.update(next(source), progress)
                elapsed = time.perf_counter() - started - metrics.get("perf/compile_time_s", 0.0)
                tokens_per_s = trainer.global_batch_size * trainer.seq_len / elapsed
                metrics["perf/tokens_per_s"] = tokens_per_s
                metrics["perf/mfu"] = tokens_per_s * self.flops_per_token / (self.peak_tflops * 1e12)
                metrics["perf/step_time_s"] = elapsed
                metrics["perf/memory_gb"] = process_memory_gb()
                progress.update(self.report(metrics))
                self.after_update(metrics, progress, is_last=state.step == self.total_steps, is_stop=state.step == stop)
            source.close()

    def update(self, batch: Batch, progress: Progress) -> dict[str, float]:
        """One optimizer update; the metrics of it."""
        state, metrics = self.state, {}
        rate = learning_rate(
            self.config.schedule, self.config.optimizer.learning_rate, state.step + 1, self.total_steps
        )
        inputs = self.step_inputs(batch, rate)
        if not self.train_step.is_compiled:
            started = time.perf_counter()
            with progress.busy("compiling"):
                self.train_step.compile(*inputs)
            metrics["perf/compile_time_s"] = time.perf_counter() - started
        scale = state.loss_scale.scale
        loss, norm, finite = self.train_step(*inputs)
        state.step += 1
        state.tokens_seen += int(batch["attention_mask"][:, 1:].sum())
        state.loss_scale.update(finite)
        if finite:
            state.num_updates, state.skipped_in_a_row = state.num_updates + 1, 0
        else:
            self.skip(norm, scale)
        metrics |= {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}
        if self.config.hardware.precision == "fp16":
            metrics["train/loss_scale"] = scale
        metrics["train/epoch"] = state.epoch + state.batch / self.steps_per_epoch
        metrics["train/tokens"] = float(state.tokens_seen)
        return metrics

    def skip(self, norm: float, scale: float) -> None:
        """Say that an update was left out; end the run when too many in a row were."""
        self.state.skipped_in_a_row += 1
        console.warn(f"step {self.state.step}: gradient norm {norm} at loss scale {scale:g}, update skipped")
        limit = self.config.trainer.max_skipped_steps
        if self.state.skipped_in_a_row > limit:
            raise UserError(
                f"{self.state.skipped_in_a_row} updates in a row had non-finite gradients (trainer.max_skipped_steps="
                f"{limit}): the run has diverged; lower optimizer.learning_rate={self.config.optimizer.learning_rate}"
            )

    def report(self, metrics: dict[str, float]) -> StepReport:
        """A step as it is shown."""
        return StepReport(
            step=self.state.step,
            loss=metrics["train/loss"],
            lr=metrics["train/lr"],
            grad_norm=metrics["train/grad_norm"],
            epoch=metrics["train/epoch"],
            loss_scale=metrics.get("train/loss_scale"),
            tokens_per_s=metrics["perf/tokens_per_s"],
            mfu=metrics["perf/mfu"],
            memory_gb=metrics["perf/memory_gb"],
            skipped_steps=self.state.step - self.state.num_updates,
        )

    def after_update(self, metrics: dict[str, float], progress: Progress, *, is_last: bool, is_stop: bool) -> None:
        """Validation, the metrics line, a checkpoint and samples, where they are due; in this order."""
        trainer, step = self.config.trainer, self.state.step

        def is_due(every: int | None) -> bool:
            return is_last or (every is not None and step % every == 0)

        if self.validation is not None and is_due(trainer.eval_every_steps):
            with progress.busy("evaluating"):
                found = self.validation.run()
            metrics |= found
            progress.evaluation(step, found)
            if math.isfinite(found["val/loss"]) and found["val/loss"] < (self.state.best_loss or math.inf):
                self.state.best_step, self.state.best_loss = step, found["val/loss"]
        written = self.metrics.append(step, metrics)
        self.tracker.log_metrics(step, written, metrics)
        is_best = trainer.keep_best and self.state.best_step == step
        if is_stop or is_best or is_due(trainer.checkpoint_every_steps):
            with progress.busy("saving"):
                self.save_checkpoint()
        if is_due(trainer.sample_every_steps or trainer.eval_every_steps):
            with progress.busy("sampling"):
                self.write_samples()

    def write_samples(self) -> None:
        """Let the model complete trainer.sample_prompts, onto the terminal and into samples.txt."""
        prompts = self.config.trainer.sample_prompts
        if not prompts:
            return
        seed = self.config.seed if self.config.generation.seed is None else self.config.generation.seed
        try:
            completions = self.generator.complete(prompts, self.generation, seed)
        except UserError as error:  # logits that are not finite: no reason to end the run
            console.warn(f"step {self.state.step}: no samples, {error}")
            return
        texts = [(completion.prompt, completion.completion) for completion in completions]
        console.samples(self.state.step, texts)
        with (self.run_dir / "samples.txt").open("a", encoding="utf-8") as file:
            for prompt, text in texts:
                file.write(f"{SAMPLE_HEAD.format(self.state.step)}{prompt}{text}\n\n")
