"""A decision: the four stages in their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.data.mindrecord import Split
from gpt2x.data.prepare import PreparedData
from gpt2x.optim.registry import OPTIMIZERS
from gpt2x.optim.schedule import SCHEDULES
from gpt2x.runtime.hub import pinned
from gpt2x.runtime.role import Role
from gpt2x.tasks.base import Task
from gpt2x.tasks.registry import task_of
from gpt2x.train.decision.data import Steps, decide_data
from gpt2x.train.decision.model import decide_model, decide_special_ids
from gpt2x.train.decision.source import RunSource, decide_source
from gpt2x.train.decision.trainable import FrozenBase, decide_trainable
from gpt2x.train.samples import Samples, plan_samples
from gpt2x.trainable import Trainable


@dataclass(frozen=True)
class Decision:
    """A run that can begin.

    Attributes:
        config: as composed and validated.
        task: what the run trains for.
        run_dir: where the run writes; of `resume=auto` that of the resumed run.
        source: where it starts from.
        data: the rows, and the tokenizer that made them.
        steps: how long it is.
        model: config.model with everything known.
        trainable: what is trained of it.
        base: the frozen weights that adapters stand beside; None if there are none.
        samples: the texts that the model completes while it trains.
        special_ids: what starts, ends and pads the model's texts.
    """

    config: TrainConfig
    task: Task
    run_dir: Path
    source: RunSource
    data: PreparedData
    steps: Steps
    model: ModelConfig
    trainable: Trainable
    base: FrozenBase | None
    samples: Samples
    special_ids: SpecialIds

    @property
    def train_split(self) -> Split:
        """The training rows."""
        assert self.data.train is not None
        return self.data.train

    @property
    def num_added_rows(self) -> int:
        """The rows that the loaded tables of tokens get for tokenizer.extend."""
        weights = self.source.weights
        return (self.model.vocab_size or 0) - (weights.model.vocab_size or 0) if weights else 0

    @cached_property
    def resolved(self) -> TrainConfig:
        """The configuration with the model and the resumed checkpoint known, as config.yaml and trackers show it.

        Of a repository of the hub, `load` names the commit.
        """
        resumption, load, weights = self.source.resumption, self.config.load, self.source.weights
        resume = str(resumption.saved.path.absolute()) if resumption else None
        load = pinned(load, weights.path) if load and weights else load
        return replace(self.config, model=self.model, resume=resume, load=load)


def decide(config: TrainConfig, run_dir: Path, role: Role = Role()) -> Decision:
    """Read what the configuration names and check that it fits together.

    Raises:
        UserError: for anything that the user can put right; the run directory is still untouched.
    """
    OPTIMIZERS.settings(config.optimizer.kind, config.optimizer.settings)
    SCHEDULES.settings(config.schedule.name, config.schedule.settings)
    task = task_of(config)
    source = decide_source(config, task, run_dir, role)
    data, steps = decide_data(config, task, source)
    model = decide_model(config, task, source, data)
    trainable, base = decide_trainable(config, source, model, role)
    run_dir = source.resumption.run_dir if source.resumption else run_dir
    samples = plan_samples(config, data.template, data.tokenizer, model.max_seq_len)
    ids = decide_special_ids(source, data, model)
    return Decision(config, task, run_dir, source, data, steps, model, trainable, base, samples, ids)
