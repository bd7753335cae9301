"""The training loop: batches in, parameters updated, metrics, validation, samples and checkpoints out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from gpt2x import checkpoint
from gpt2x.config.layout import num_micro_batches
from gpt2x.data.sampling import Batch, batches
from gpt2x.errors import UserError
from gpt2x.generate import Generator
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.layer_decay import layer_rate_factors
from gpt2x.optim.loss_scale import LossScale
from gpt2x.optim.registry import create_optimizer
from gpt2x.optim.schedule import learning_rate
from gpt2x.parallel.gradient_reduction import local_parameters
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable, owns, read_ahead
from gpt2x.runtime.console import Progress, StepReport, console
from gpt2x.runtime.memory import process_age_s, process_memory_gb
from gpt2x.tracking import MetricsLog, Tracker
from gpt2x.train.compile_cache import kept_graphs
from gpt2x.train.decision import Decision
from gpt2x.train.layout_builders import build_step, samples_are_drawn
from gpt2x.train.samples import SAMPLE_HEAD, rewind_samples, sample_generation, sample_prompts
from gpt2x.train.step import StepInputs


@dataclass
class LoopState:
    """Where a run stands; with weights and optimizer states it is all that a checkpoint needs."""

    step: int = 0  # updates tried
    num_updates: int = 0  # updates made: skipped ones do not count towards bias correction
    skipped_in_a_row: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    units_seen: int = 0  # that counted in the loss: tokens, or a classifier's texts
    loss_scale: LossScale = field(default_factory=lambda: LossScale(1.0, 1.0, 1))
    best_step: int | None = None
    best_value: float | None = None  # of trainer.best_metric
    evaluations_without_gain: int = 0  # in a row
    data_fingerprint: str = ""  # of the blocks that `batch` counts
    base_path: str | None = None  # of the frozen weights that adapters stand beside
    base_fingerprint: str = ""  # of those weights

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """The state that `dataclasses.asdict` wrote."""
        return cls(**(values | {"loss_scale": LossScale(**values["loss_scale"])}))


def dropout_key(seed: int, step: int) -> int:
    """The int32 key of a step's dropout masks, a hash of (seed, step) alone (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0].view(np.int32))


class Trainer:
    """One process of a run.

    Args:
        start: what was decided before.
        net: this process' part of the model, without values.
        mesh: the processes.
        tracker: mirrors the metrics.
        peak_tflops: of a device at the precision used, for MFU.
    """

    def __init__(self, decision: Decision, net: GPT2, mesh: Mesh, tracker: Tracker, peak_tflops: float):
        self.config, self.model, self.data = decision.config, decision.model, decision.data
        self.train_split, self.run_dir, self.total_steps = decision.train_split, decision.run_dir, decision.steps.total
        self.steps_per_epoch = decision.steps.per_epoch
        self.net, self.mesh, self.tracker, self.peak_tflops = net, mesh, tracker, peak_tflops
        config, model, data = decision.config, decision.model, decision.data
        trainer, parallel = config.trainer, config.parallel
        self.num_micro_batches = num_micro_batches(parallel, trainer)
        self.trainable = decision.trainable
        self.parts = self.trainable.stored_placements(mesh.coordinates)
        self.held = local_parameters(net, model, mesh, self.trainable.trained_placements(mesh.coordinates))
        self.parameters = {p.name: p for p in net.get_parameters() if p.name in self.parts}
        rate_factors = layer_rate_factors(config.optimizer, [held.name for held in self.held], model.num_layers)
        self.optimizer = create_optimizer(
            config.optimizer, [held.trained for held in self.held], net.backend, rate_factors
        )
        self.train_step = build_step(decision, net, mesh, self.held, self.optimizer)
        self.task = decision.task
        self.validation = None if data.val is None else self.task.validation(decision, net, mesh)
        self.generator = Generator(net, model, config.hardware, data.tokenizer)
        self.generation = sample_generation(config, model, data)
        self.state = LoopState(data_fingerprint=data.fingerprint)
        if decision.base:
            self.state.base_path, self.state.base_fingerprint = decision.base.path, decision.base.fingerprint
        if config.hardware.precision == "fp16":
            self.state.loss_scale = LossScale(
                trainer.loss_scale_init, trainer.loss_scale_factor, trainer.loss_scale_window
            )
        self.flops_per_token = self.trainable.flops_per_token(trainer.seq_len)
        self.batch_units = self.task.global_units(config)
        self.metrics = MetricsLog(self.run_dir / "metrics.jsonl")

    # ---- state

    def load(self, weights: Readable) -> None:
        """Set what this process keeps in checkpoints, trained or frozen, from logical tensors."""
        shared = {held.name: held for held in self.held if held.rows is not None}
        for name, values in read_ahead(self.parts, weights):
            self.set_values(self.parameters[name], values)
            if name in shared:
                rows = shared[name].rows
                self.set_values(shared[name].trained, values[rows.start : rows.stop])

    def set_values(self, parameter: Parameter, values: np.ndarray) -> None:
        """Give a parameter other values; once a graph has run, `set_data` no longer reaches it (MindSpore 2.10)."""
        if self.train_step.is_compiled:
            ops.assign(parameter, Tensor(values))
        else:
            parameter.set_data(Tensor(values))

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: weights, optimizer, position in the data, schedule, loss scale."""
        self.load(saved.tensors(self.trainable.checkpoint_group))
        states = saved.tensors("optimizer")
        for state_name, parameters in self.optimizer.states.items():
            for held, parameter in zip(self.held, parameters, strict=True):
                self.set_values(parameter, held.trained_placement.read(states, f"{state_name}.{held.name}"))
        fresh, self.state = self.state, LoopState.from_dict(saved.loop_state)
        self.state.data_fingerprint = fresh.data_fingerprint
        self.state.base_path, self.state.base_fingerprint = fresh.base_path, fresh.base_fingerprint
        if saved.run_config["hardware"]["precision"] != self.config.hardware.precision:
            self.state.loss_scale = fresh.loss_scale
        if saved.path.parent.parent != self.run_dir:  # a branch has its own best
            self.state.best_step = self.state.best_value = None
            self.state.evaluations_without_gain = 0
        if self.mesh.is_main:
            self.metrics.rewind(self.state.step)
            rewind_samples(self.run_dir / "samples.txt", self.state.step)

    def owned_tensors(self) -> dict[str, dict[str, checkpoint.Sliced]]:
        """Tensors, and optimizer states of the trained ones, that this process writes: each value is one process'."""
        coordinates, shards = self.mesh.coordinates, self.config.parallel.optimizer_shards
        weights, states = {}, {}
        for name, part in self.parts.items():
            if owns(name, coordinates) and coordinates.data == 0:
                values = part.parts(self.parameters[name].asnumpy())
                weights[name] = checkpoint.Sliced(part.logical_shape, values)
        for index, held in enumerate(self.held):
            shape = held.placement.logical_shape
            if held.is_owned and coordinates.data < (1 if held.rows is None else shards):
                for state_name, parameters in self.optimizer.states.items():
                    parts = held.trained_placement.parts(parameters[index].asnumpy())
                    states[f"{state_name}.{held.name}"] = checkpoint.Sliced(shape, parts)
        return {self.trainable.checkpoint_group: weights, "optimizer": states}

    def save_checkpoint(self) -> Path:
        """Write `checkpoints/step_N`, then remove what keep_last and keep_best do not keep."""
        directory = self.run_dir / "checkpoints" / f"step_{self.state.step}"
        checkpoint.save(
            directory,
            tensors=self.owned_tensors(),
            model=self.model,
            run_config=asdict(self.config),
            loop_state=asdict(self.state),
            tokenizer_dir_writer=self.data.save_tokenizer,
            rank=self.mesh.rank,
            world_size=self.mesh.size,
            agree=self.mesh.agree,
        )
        if not self.mesh.is_main:
            return directory
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
                replica=(self.mesh.coordinates.data, self.config.parallel.data),
            ):
                self.state.batch += 1
                yield batch
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0

    def step_inputs(self, batch: Batch, rate: float) -> StepInputs:
        """Return the inputs of an update for this process's rows of a global batch."""
        ids, counted = self.task.inputs(self.config, batch)
        shape = (self.num_micro_batches, len(counted) // self.num_micro_batches, -1)
        key = dropout_key(self.config.seed, self.state.step)
        return StepInputs(
            ids.reshape(shape),
            (counted / np.float32(self.batch_units)).reshape(shape),
            Tensor(key, ms.int32),
            Tensor(self.state.loss_scale.scale, ms.float32),
            self.optimizer.scalars(rate, self.state.num_updates + 1),
            first_row=self.mesh.coordinates.data * len(counted),
            counted_fraction=float(counted.sum(dtype=np.float64) / self.batch_units),
        )

    # ---- loop

    def fit(self) -> None:
        """Train to the last step, or to stop_after_steps."""
        trainer, state = self.config.trainer, self.state
        stop = min(self.total_steps, trainer.stop_after_steps or self.total_steps)
        with Progress(self.total_steps, state.step, trainer.log_every_steps) as progress:
            source = self.batches()
            while state.step < stop and not self.has_stopped_early:
                started = time.perf_counter()
                metrics, num_tokens = self.update(next(source), progress)
                elapsed = time.perf_counter() - started - metrics.get("perf/compile_time_s", 0.0)
                tokens_per_s = num_tokens / elapsed
                metrics["perf/tokens_per_s"] = tokens_per_s
                peak = self.mesh.size * self.peak_tflops * 1e12
                metrics["perf/mfu"] = tokens_per_s * self.flops_per_token / peak
                metrics["perf/step_time_s"] = elapsed
                metrics["perf/memory_gb"] = process_memory_gb()
                progress.update(self.report(metrics))
                if "perf/compile_time_s" in metrics:
                    self.report_startup(metrics)
                self.after_update(metrics, progress, is_last=state.step == self.total_steps, is_stop=state.step == stop)
            source.close()

    def report_startup(self, metrics: dict[str, float]) -> None:
        """Measure and say how long it took from the command to the end of the first step."""
        started = os.getppid() if self.mesh.role.is_launched else os.getpid()
        took = metrics["perf/startup_time_s"] = process_age_s(started)
        compiling = metrics["perf/compile_time_s"]
        console.notice(f"first step {took:.1f} s after the command; compiling took {compiling:.1f} s of it")

    @property
    def has_stopped_early(self) -> bool:
        """Whether the last evaluations brought nothing better."""
        patience = self.config.trainer.early_stopping_patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def update(self, batch: Batch, progress: Progress) -> tuple[dict[str, float], int]:
        """One optimizer update; the metrics of it, and the tokens that went through the model, padding included."""
        state, metrics = self.state, {}
        rate = learning_rate(
            self.config.schedule, self.config.optimizer.learning_rate, state.step + 1, self.total_steps
        )
        inputs = self.step_inputs(batch, rate)
        if not self.train_step.is_compiled:
            started = time.perf_counter()
            with progress.busy("compiling"):
                graphs = self.train_step.graphs(inputs)
                with kept_graphs(self.config, self.model, self.mesh, graphs):
                    self.train_step.compile(inputs)
            metrics["perf/compile_time_s"] = time.perf_counter() - started
        scale = state.loss_scale.scale
        loss, norm, finite, counted_fraction = self.train_step(inputs)
        state.step += 1
        state.units_seen += round(counted_fraction * self.batch_units)
        state.loss_scale.update(finite)
        if finite:
            state.num_updates, state.skipped_in_a_row = state.num_updates + 1, 0
        else:
            self.skip(norm, scale)
        metrics |= {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm}
        if self.config.hardware.precision == "fp16":
            metrics["train/loss_scale"] = scale
        metrics["train/epoch"] = state.epoch + state.batch / self.steps_per_epoch
        metrics[f"train/{self.task.unit}s"] = float(state.units_seen)
        return metrics, self.config.trainer.global_batch_size * inputs.weights.shape[-1]

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
            is_per_token=self.task.unit == "token",
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
            self.remember(found[trainer.best_metric])
            is_stop = is_stop or self.has_stopped_early
        if self.mesh.is_main:
            written = self.metrics.append(step, metrics)
            self.tracker.log_metrics(step, written, metrics)
        is_best = trainer.keep_best and self.state.best_step == step
        if is_stop or is_best or is_due(trainer.checkpoint_every_steps):
            with progress.busy("saving"):
                self.save_checkpoint()
        if is_due(trainer.sample_every_steps or trainer.eval_every_steps):
            with progress.busy("sampling"):
                self.write_samples()

    def remember(self, value: float) -> None:
        """Note an evaluation's best_metric, and whether it is the best so far in the task's direction."""
        state, best = self.state, self.state.best_value
        metric = self.config.trainer.best_metric
        if math.isfinite(value) and (best is None or self.task.is_better(metric, value, best)):
            state.best_step, state.best_value, state.evaluations_without_gain = state.step, value, 0
        else:
            state.evaluations_without_gain += 1

    def write_samples(self) -> None:
        """Let the model complete trainer.sample_prompts, onto the terminal and into samples.txt."""
        prompts, coordinates = sample_prompts(self.config, self.data), self.mesh.coordinates
        if not prompts or not samples_are_drawn(self.task, self.config.parallel) or coordinates.data > 0:
            return  # the other replicas wait in the next update
        seed = self.config.seed if self.config.generation.seed is None else self.config.generation.seed
        try:
            completions = self.generator.complete(prompts, self.generation, seed)
        except UserError as error:  # logits that are not finite: no reason to end the run
            console.warn(f"step {self.state.step}: no samples, {error}")
            return
        if not self.mesh.is_main:
            return
        texts = [(completion.prompt, completion.completion) for completion in completions]
        console.samples(self.state.step, texts)
        with (self.run_dir / "samples.txt").open("a", encoding="utf-8") as file:
            for prompt, text in texts:
                file.write(f"{SAMPLE_HEAD.format(self.state.step)}{prompt}{text}\n\n")
