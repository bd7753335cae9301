"""The training loop: batches in, parameters updated, metrics out; what follows an update is `gpt2x.train.hooks`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gpt2x.checkpoint import Checkpoint, list_checkpoints
from gpt2x.config.layout import num_micro_batches
from gpt2x.data.sampling import Batch, batches, num_tokens
from gpt2x.errors import UserError
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.base import Optimizer
from gpt2x.optim.schedule import learning_rate
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable
from gpt2x.parallel.poll import Poll
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.runtime import clock, heartbeat, interrupt, json_text
from gpt2x.runtime.console import Progress
from gpt2x.runtime.memory import device_memory_gb, process_memory_gb
from gpt2x.tracking import Tracker, jsonl
from gpt2x.tracking.units import perplexity
from gpt2x.train.compile_cache import kept_graphs
from gpt2x.train.decision import Decision
from gpt2x.train.guard import Guard
from gpt2x.train.hooks import CutShortError, SaveCheckpoint, default_hooks
from gpt2x.train.mfu import Peak
from gpt2x.train.nonfinite import NonFinite, save_inputs
from gpt2x.train.profiling import FOLDER, ProfileWindow
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.records import KEY as RECORDS
from gpt2x.train.records import Records
from gpt2x.train.resume import best_is_of_other_rows, recorded_step
from gpt2x.train.saving import FOLDER as CHECKPOINTS
from gpt2x.train.saving import Saving
from gpt2x.train.state import initial_state, resumed_state
from gpt2x.train.statistics.measure import TIME as STATS_TIME
from gpt2x.train.statistics.measure import Statistics
from gpt2x.train.step import GraphStep, StepInputs, UpdateResult


class Trainer:
    """The loop of one process of a run; `gpt2x.train.build` creates it.

    Args:
        decision: everything that is known before.
        net: this process's part of the model.
        mesh: the processes.
        optimizer: updates the trained parameters of this process in place.
        tensors: what this process holds of the checkpoint; without values yet.
        train_step: the update.
        tracker: mirrors the metrics.
        peak_tflops: of one device at the precision used, for MFU.
        statistics: measures some of the updates; None: none.
        nonfinite: says why an update is left out, and ends the run; None: training continues.
    """

    def __init__(
        self,
        decision: Decision,
        net: GPT2,
        mesh: Mesh,
        optimizer: Optimizer,
        tensors: RankTensors,
        train_step: GraphStep,
        tracker: Tracker,
        peak_tflops: float,
        statistics: Statistics | None = None,
        nonfinite: NonFinite | None = None,
    ):
        config = decision.config
        self.decision, self.config, self.task, self.run_dir = decision, config, decision.task, decision.run_dir
        self.net, self.mesh, self.peak = net, mesh, Peak(peak_tflops)
        self.optimizer, self.tensors, self.train_step = optimizer, tensors, train_step
        self.total_steps = decision.steps.total
        self.stop_step = min(self.total_steps, config.trainer.stop_after_steps or self.total_steps)
        self.num_micro_batches = num_micro_batches(config.parallel, config.trainer)
        self.batch_units = self.task.global_units(config)
        groups = [f"{axis} {ranks}" for axis, ranks in mesh.groups.items() if axis != "world"]
        self.communication = f" (collectives over {', '.join(groups)})" if groups else ""
        self.statistics, self.nonfinite = statistics, nonfinite
        self.flops_per_token = decision.trainable.flops_per_token(config.trainer.seq_len)
        self.state = initial_state(decision)
        self.rate: Callable[[int], float] = self.scheduled_rate  # of an update, counted from 1
        self.first_loss: float | None = None  # of this start
        self.last_loss: float | None = None
        self.is_pruned = self.has_evaluated = False  # a job of a sweep that ends early; the last update was evaluated
        self.records = Records(self.run_dir)
        self.guard = Guard(config, decision.model)
        self.inputs: StepInputs | None = None  # of the last update
        self.saving = Saving(self, tracker)
        self.hooks = default_hooks(self, tracker)
        self.save = SaveCheckpoint()
        self.poll = Poll(mesh)
        self.signalled = 0  # the signal for which all processes stop after the same update; 0: none
        self.saved_step, self.saved_at = 0, time.monotonic()  # of the newest checkpoint, or of the start
        profile = config.trainer.profile_steps, self.run_dir / FOLDER
        self.profile = ProfileWindow(*profile, mesh.rank, config.hardware.is_cpu)

    # ---- values

    def load(self, tensors: Readable) -> None:
        """Set the values that training begins with, from logical tensors."""
        self.tensors.load(tensors)
        if self.mesh.is_main:
            self.records.begin(0)

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint: weights, optimizer states, position in the data, schedule, loss scale."""
        self.tensors.load(saved.tensors(self.tensors.group))
        self.tensors.load_states(saved.tensors("optimizer"))
        self.saved_step = saved.loop_state["step"]
        is_branch = saved.path.parent.parent != self.run_dir
        is_comparable = not best_is_of_other_rows(self.config, saved.run_config)
        self.state = resumed_state(self.decision, saved.loop_state, saved.run_config, is_branch, is_comparable)
        if self.mesh.is_main:
            self.records.begin(recorded_step(saved.loop_state), saved.loop_state.get(RECORDS), is_branch=is_branch)

    # ---- position

    def is_due(self, every: int | None) -> bool:
        """Return True every `every` steps and after the last step of the run; None: only then."""
        step = self.state.step
        return step == self.total_steps or (every is not None and step % every == 0)

    @property
    def has_stopped_early(self) -> bool:
        """True if none of the last trainer.early_stopping_patience evaluations was better."""
        patience = self.config.trainer.early_stopping_patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    @property
    def has_reached_loss(self) -> bool:
        """True if the last update's loss was trainer.required_loss or less."""
        required = self.config.trainer.required_loss
        return required is not None and self.last_loss is not None and self.last_loss <= required

    @property
    def is_stopping(self) -> bool:
        """True after the last step, at stop_after_steps, or if the run ends before: early, pruned, or at its loss."""
        ends_before = self.has_stopped_early or self.has_reached_loss or self.is_pruned
        return self.state.step >= self.stop_step or ends_before

    @property
    def is_broken_off(self) -> bool:
        """True if a signal ended the loop and there is something left to do."""
        return bool(self.signalled) and (bool(self.state.open_hook) or not self.is_stopping)

    # ---- loop

    def fit(self) -> None:
        """Train to the last step, to stop_after_steps, until it stops early, or until a signal asks for the end."""
        every = self.config.trainer.log_every_steps
        with self.saving, Progress(self.total_steps, self.state.step, every) as progress:
            source = self.batches()
            if self.state.open_hook:
                self.follow(json_text.decoded(self.state.open_metrics), progress, self.state.open_hook)
            while not (self.is_stopping or self.signalled):
                heartbeat.does(f"reading the batch of update {self.state.step + 1}")
                with self.profile.update(self.state.step + 1, progress):
                    metrics = self.timed_update(source, progress)
                self.has_evaluated = False
                self.follow(metrics, progress)
                self.require_converging()
            self.profile.close()
            source.close()

    def follow(self, metrics: dict[str, float], progress: Progress, first_hook: str = "") -> None:
        """Run the hooks after an update, and save if time or a signal asks for it.

        Args:
            metrics: of the update.
            progress: shows what is done.
            first_hook: the one to begin with, by its class; "": all.
        """
        names = [type(hook).__name__ for hook in self.hooks]
        self.state.open_hook, self.state.open_metrics = "", {}
        for hook, name in list(zip(self.hooks, names, strict=True))[names.index(first_hook) if first_hook else 0 :]:
            if hook.is_due(self):
                heartbeat.does(f"{name} after update {self.state.step}")
                try:
                    hook.run(self, metrics, progress)
                except CutShortError:
                    self.state.open_hook, self.state.open_metrics = name, jsonl.encoded(metrics)
                    break
        signalled, is_late = self.poll(interrupt.requested(), self.is_late, now=self.is_long)
        self.signalled = int(signalled)
        if (signalled or (is_late and not self.state.exploded_in_a_row)) and self.saved_step != self.state.step:
            self.save.run(self, metrics, progress)

    @property
    def is_late(self) -> bool:
        """True on the main process if the newest checkpoint is older than trainer.checkpoint_every_minutes."""
        minutes = self.config.trainer.checkpoint_every_minutes
        return minutes is not None and self.mesh.is_main and time.monotonic() - self.saved_at >= 60 * minutes

    @property
    def is_long(self) -> bool:
        """True after an update that was followed by what may take long, or may have been cut short on one process."""
        options = self.config.trainer
        return self.is_due(options.eval_every_steps) or self.is_due(options.sample_every_steps)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's rows of global batches from the position of the state, epoch after epoch."""
        while True:
            for batch in batches(
                self.decision.train_split,
                batch_size=self.config.trainer.batch,
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

    def timed_update(self, source: Iterator[Batch], progress: Progress) -> dict[str, float]:
        """Read a batch and make an optimizer update; return its metrics, with its speed."""
        started = time.perf_counter()
        metrics, num_tokens = self.update(next(source), progress)
        seconds = time.perf_counter() - started
        seconds -= metrics.get("perf/compile_time_s", 0.0) + metrics.get(STATS_TIME, 0.0)
        metrics |= self.speed(num_tokens / seconds, seconds)
        if stall_s := self.saving.take_stall_s():
            metrics["perf/checkpoint_stall_s"] = stall_s
        metrics["perf/memory_gb"] = process_memory_gb()
        metrics |= {f"perf/device_memory_{name}_gb": size for name, size in device_memory_gb().items()}
        if "perf/compile_time_s" in metrics:
            metrics["perf/startup_time_s"] = clock.age_s()
        return metrics

    def speed(self, tokens_per_s: float, seconds: float) -> dict[str, float]:
        """Return the metrics of an update's speed; a profiled update has only its time, under a different name."""
        if self.profile.covers(self.state.step):
            return {"perf/profiled_step_time_s": seconds}
        mfu = self.peak.mfu(tokens_per_s * self.flops_per_token / self.mesh.size / 1e12)
        return {"perf/tokens_per_s": tokens_per_s, "perf/mfu": mfu, "perf/step_time_s": seconds}

    def scheduled_rate(self, step: int) -> float:
        """Return the schedule's learning rate of update `step`, counted from 1."""
        return learning_rate(self.config.schedule, self.config.optimizer.learning_rate, step, self.total_steps)

    def update(self, batch: Batch, progress: Progress) -> tuple[dict[str, float], int]:
        """Make an optimizer update.

        Returns:
            Its metrics, and the tokens of the global batch, without padding.
        """
        state, metrics, limits = self.state, {}, self.guard.limits(self.state)
        rate = self.rate(state.step + 1)
        self.inputs = inputs = self.step_inputs(batch, rate)._replace(limits=limits)
        if not self.train_step.is_compiled:
            metrics["perf/compile_time_s"] = self.compile(inputs, progress)
        scale = state.loss_scale.scale
        heartbeat.meets(f"update {state.step + 1}{self.communication}")
        if self.statistics is not None and self.statistics.is_due(state.step + 1):
            result, measured = self.statistics.update(self.train_step, inputs, batch)
            metrics |= measured
        else:
            result = self.train_step(inputs)
        loss, norm, _, counted_fraction = result
        is_finite = math.isfinite(norm)
        if self.nonfinite is not None and not is_finite and not (math.isfinite(loss) and scale > 1):
            self.end_nonfinite(self.nonfinite, inputs, result)
        state.step += 1
        state.units_seen += round(counted_fraction * self.batch_units)
        self.guard.count(state, result, limits)
        state.loss_scale.update(is_finite)
        self.first_loss, self.last_loss = loss if self.first_loss is None else self.first_loss, loss
        metrics["train/loss"] = loss
        if self.task.unit == "token":
            metrics["train/ppl"] = perplexity(loss)
        metrics |= {"train/lr": rate, "train/grad_norm": norm}
        if self.config.hardware.precision == "fp16":
            metrics["train/loss_scale"] = scale
        metrics["train/epoch"] = state.epoch + state.batch / self.decision.steps.per_epoch
        metrics[f"train/{self.task.unit}s"] = float(state.units_seen)
        return metrics, self.num_tokens(batch)

    def num_tokens(self, batch: Batch) -> int:
        """Return the tokens of a global batch, of which this rank has `batch`, without padding.

        They depend on neither the layout nor the length that a replica pads its rows to. Every rank calls this.
        """
        trainer = self.config.trainer
        if self.task.row_form(self.config).has_full_rows:
            return trainer.batch * trainer.seq_len
        return int(ReplicaBatches(self.mesh).total(float(num_tokens(batch, trainer.seq_len))))

    def step_inputs(self, batch: Batch, rate: float) -> StepInputs:
        """Return the inputs of an update for this rank's rows of a global batch."""
        ids, counted, starts = self.task.inputs(self.config, batch)
        shape = (self.num_micro_batches, len(counted) // self.num_micro_batches, -1)
        return StepInputs(
            ids.reshape(shape),
            (counted / np.float32(self.batch_units)).reshape(shape),
            Tensor(dropout_key(self.config.seed, self.state.step), ms.int32),
            Tensor(self.state.loss_scale.scale, ms.float32),
            self.optimizer.scalars(rate, self.state.num_updates + 1),
            first_row=self.mesh.coordinates.data * len(counted),
            counted_fraction=float(counted.sum(dtype=np.float64) / self.batch_units),
            starts=None if starts is None else starts.reshape(shape),
        )

    def compile(self, inputs: StepInputs, progress: Progress) -> float:
        """Compile the update, or take it from the compile cache; return the seconds."""
        started = time.perf_counter()
        heartbeat.does("compiling")
        with progress.busy("compiling"), interrupt.prompt():
            graphs = self.train_step.graphs(inputs)
            with kept_graphs(self.config, self.decision.model, self.mesh, graphs):
                self.train_step.compile(inputs)
        self.tensors.has_run = True
        return time.perf_counter() - started

    def end_nonfinite(self, nonfinite: NonFinite, inputs: StepInputs, result: UpdateResult) -> NoReturn:
        """Say why an update was left out, and keep its inputs and the checkpoint before it.

        Raises:
            UserError: always.
        """
        number = self.state.step + 1
        origin = nonfinite.origin(self.train_step, inputs, result.loss)
        self.state.batch -= 1  # it was read for this update
        path = save_inputs(self.run_dir, number, self.mesh.rank, inputs)
        folder = self.run_dir / CHECKPOINTS / f"step_{self.state.step}"
        self.saving.wait(is_last=True)
        if self.mesh.agree(not folder.exists()):
            self.saving.save(is_last=True)
        raise UserError(
            f"update {number}: loss {result.loss:g}, gradient norm {result.norm:g}: {origin}.\n"
            f"  its batch: {path}\n  the run before it, which repeats it: resume={folder}"
        )

    def require_converging(self) -> None:
        """Keep the inputs of the last update if the run has diverged.

        Raises:
            UserError: it has.
        """
        reason = self.guard.divergence(self.state)
        if reason is None:
            return
        assert self.inputs is not None
        path = save_inputs(self.run_dir, self.state.step, self.mesh.rank, self.inputs)
        saved = list_checkpoints(self.run_dir)
        before = f"\n  the newest checkpoint before: resume={saved[-1]}" if saved else ""
        rate = self.config.optimizer.learning_rate
        raise UserError(
            f"{reason}. Lower optimizer.learning_rate={rate}; with the same one a resumed run diverges again.\n"
            f"  the last batch: {path}{before}"
        )


def dropout_key(seed: int, step: int) -> int:
    """Return the int32 key of a step's dropout masks, a hash of (seed, step) only (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0].view(np.int32))
