"""What is decided before a model is built: data, sizes, steps, where from and where to. All mistakes end here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpt2x import checkpoint
from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import validate_layout
from gpt2x.config.options import known_models
from gpt2x.config.patterns import scaling, trained_tensors
from gpt2x.config.rules import validate_warmup
from gpt2x.convert import Source, check_model_matches, check_weights, load_source
from gpt2x.data.mindrecord import Split
from gpt2x.data.prepare import PreparedData
from gpt2x.data.sampling import num_batches
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, check_base, check_fits, fingerprint, open_adapter
from gpt2x.lora.shapes import factor_shapes
from gpt2x.model import stats
from gpt2x.pretrained import check_vocabulary, source_tokenizer
from gpt2x.runtime import launch
from gpt2x.tasks.base import TASKS, Task
from gpt2x.train.finetune_checks import check_added_rows, check_changes, check_frozen
from gpt2x.train.resume import Resumption, find_resumption
from gpt2x.train.samples import sample_generation


@dataclass(frozen=True)
class Decision:
    """A run that can begin."""

    config: TrainConfig
    model: ModelConfig  # config.model with the vocabulary known, and what a loaded checkpoint decides
    data: PreparedData
    source: Source | None  # of load=
    resumption: Resumption | None
    run_dir: Path
    total_steps: int
    adapter: Adapter | None = None  # of adapters=, which training goes on from
    base_fingerprint: str = ""  # of the weights that lora= freezes; main processes have it

    @property
    def task(self) -> Task:
        """What the run trains for."""
        return TASKS[self.config.task.objective]

    @property
    def trained(self) -> list[str]:
        """Names of the model's tensors that are trained, where no adapters are."""
        return trained_tensors(self.config.trainer.frozen, stats.tensor_shapes(self.model))

    @property
    def num_added_rows(self) -> int:
        """Rows that the loaded tables of tokens get for tokenizer.extend."""
        return (self.model.vocab_size or 0) - (self.source.model.vocab_size or 0) if self.source else 0

    @property
    def train_split(self) -> Split:
        """The training blocks."""
        assert self.data.train is not None
        return self.data.train

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass over the training blocks."""
        return num_batches(self.train_split, self.config.trainer.global_batch_size, drop_last=True)

    @property
    def resolved(self) -> TrainConfig:
        """The configuration with the model's sizes and the checkpoint known, as config.yaml and the tracker show it."""
        resume = str(self.resumption.saved.path.absolute()) if self.resumption else None
        return replace(self.config, model=self.model, resume=resume)


def decide(config: TrainConfig, run_dir: Path) -> Decision:
    """Read what the configuration names and check that it fits together.

    Raises:
        UserError: for anything the user can put right; the run directory is still untouched.
    """
    check_changes(config)
    checkpoint.require_writable(Path(config.paths.outputs).expanduser())
    resumption = find_resumption(config, run_dir) if config.resume else None
    source = open_source(config, resumption)
    check_frozen(config, resumption.saved.model if resumption else source.model if source else None)
    data = prepare_data(config, source, resumption)
    check_same_data(config, data, resumption)
    model = resolve_model(config, data, source, resumption)
    validate_layout(config.parallel, model)
    if source:
        loaded = replace(model, labels=source.model.labels, vocab_size=source.model.vocab_size)
        check_weights(source.weights(), loaded, origin=f"load={config.load}")
        check_added_rows(config.trainer.frozen, model, source.model)
    sample_generation(config, model, data)
    total_steps = check_steps(config, data, resumption)
    adapter, fingerprint = check_adapters(config, model, source, resumption)
    run_dir = resumption.run_dir if resumption else run_dir
    return Decision(config, model, data, source, resumption, run_dir, total_steps, adapter, fingerprint)


def open_source(config: TrainConfig, resumption: Resumption | None) -> Source | None:
    """What `load=` names; resumed, the frozen weights of lora=, which its checkpoints only refer to."""
    if resumption is None:
        return load_source(config.load) if config.load else None
    if config.lora.rank is None:
        return None
    return load_source(config.load or resumption.saved.loop_state["base_path"])


def check_adapters(
    config: TrainConfig, model: ModelConfig, source: Source | None, resumption: Resumption | None
) -> tuple[Adapter | None, str]:
    """The adapter that training goes on from, and the fingerprint of the frozen weights.

    Raises:
        UserError: the weights are not those of a resumed run, or the adapter is not one that lora= would train.
    """
    if config.lora.rank is None:
        return None, ""
    assert source is not None
    found = fingerprint(source.weights()) if launch.worker_rank() == 0 else ""
    stored = resumption.saved.loop_state["base_fingerprint"] if resumption else found
    if found and found != stored:
        raise UserError(
            f"resume={config.resume}: the frozen weights at {source.path} are not those that the adapter was trained "
            f"beside (sha256 {stored[:12]}, here {found[:12]}): give load=DIR with the first ones"
        )
    if not config.adapters or resumption:
        return None, found
    adapter = open_adapter(config.adapters[0])
    check_fits(adapter, model, str(config.load))
    if launch.is_deciding():
        check_base(adapter, source.weights(), str(config.load))
    shapes = {name: values.shape for name, values in adapter.factors().items()}
    scales = {product.scale for product in adapter.products.values()}
    if shapes != factor_shapes(config.lora, model) or not all(map(partial(math.isclose, scaling(config.lora)), scales)):
        modules = sorted({module.split(".", 2)[2] for module in adapter.products})
        ranks = sorted({product.rank for product in adapter.products.values()})
        raise UserError(
            f"adapters=[{config.adapters[0]}] is not what lora= would train: it has rank {ranks} at scale "
            f"{sorted(scales)} on {', '.join(modules)}; give lora.rank, lora.alpha and lora.targets of it"
        )
    if adapter.head is not None and adapter.adapted(model).labels != model.labels:
        raise UserError(
            f"adapters=[{config.adapters[0]}] has a head for {', '.join(adapter.adapted(model).labels or [])}, but "
            f"task={config.task.name} on dataset={config.dataset.name} is for "
            f"{', '.join(model.labels or ['language modeling'])}; give a data set with these classes"
        )
    return adapter, found


def prepare_data(config: TrainConfig, source: Source | None, resumption: Resumption | None) -> PreparedData:
    """The task's data by the run's own tokenizer: a checkpoint's, where there is one."""
    own: Tokenizer | None = None
    if resumption:
        assert resumption.saved.tokenizer_dir is not None
        own = Tokenizer.load(resumption.saved.tokenizer_dir)
    elif source:
        own = source_tokenizer(source, config.tokenizer)
        if not config.tokenizer.extend:
            check_vocabulary(own, source.model, f"load={config.load}")
    return TASKS[config.task.objective].prepare(config, own)


def check_same_data(config: TrainConfig, data: PreparedData, resumption: Resumption | None) -> None:
    """Refuse to resume on other blocks than the checkpoint's position counts, unless the configuration says so too."""
    if resumption and not resumption.differences:
        stored = resumption.saved.loop_state.get("data_fingerprint")
        if stored != data.fingerprint:
            raise UserError(
                f"resume={config.resume}: dataset={config.dataset.name} gives other blocks than at "
                f"{resumption.saved.path} (fingerprint {str(stored)[:12]} -> {data.fingerprint[:12]}), though the "
                "configuration is the same: its files have changed. Bring them back, or start a new run from the "
                f"weights with load={resumption.saved.path}"
            )


def resolve_model(
    config: TrainConfig, data: PreparedData, source: Source | None, resumption: Resumption | None
) -> ModelConfig:
    """The model with its vocabulary and its task's head known.

    Sizes must be a loaded checkpoint's. Activation, eps and tying follow it, since its weights were trained with
    them; dropout and padding are the run's to choose.
    """
    model = config.model
    if resumption:  # the padding is of the layout, and not saved
        return replace(resumption.saved.model, pad_vocab_multiple=model.pad_vocab_multiple)
    tokenizer = data.tokenizer
    if source:
        found = source.model
        if config.tokenizer.extend:  # the tokenizer decides, whatever the model says
            found = replace(found, vocab_size=max(found.vocab_size or 0, tokenizer.vocab_size))
            model = replace(model, vocab_size=None)
        model = replace(
            model, activation=found.activation, layer_norm_eps=found.layer_norm_eps, tie_embeddings=found.tie_embeddings
        )
        check_model_matches(model, found, str(config.load), known_models())
        model = replace(model, vocab_size=found.vocab_size)
    if model.vocab_size is None:
        model = replace(model, vocab_size=tokenizer.vocab_size)
    check_vocabulary(tokenizer, model, f"tokenizer={config.tokenizer.name}")
    return TASKS[config.task.objective].fit_model(model, data, source.model if source else None)


def check_steps(config: TrainConfig, data: PreparedData, resumption: Resumption | None) -> int:
    """The run's total steps; refuses a corpus below one batch, a warmup beyond the end, a stop behind the start."""
    trainer = config.trainer
    assert data.train is not None
    if trainer.early_stopping_patience is not None and data.val is None:
        raise UserError(
            f"trainer.early_stopping_patience={trainer.early_stopping_patience}: dataset={config.dataset.name} has no "
            "validation part; give dataset.val_path, or trainer.early_stopping_patience=null"
        )
    per_epoch = num_batches(data.train, trainer.global_batch_size, drop_last=True)
    if per_epoch == 0:
        raise UserError(
            f"trainer.global_batch_size={trainer.global_batch_size} exceeds the {data.train.num_blocks} training "
            f"blocks of {trainer.seq_len} tokens: use a smaller batch, a shorter trainer.seq_len or more text"
        )
    total_steps = trainer.max_steps or per_epoch * (trainer.max_epochs or 1)
    validate_warmup(config.schedule, total_steps)
    if resumption:
        done, stop = resumption.saved.loop_state["step"], min(total_steps, trainer.stop_after_steps or total_steps)
        longer = "trainer.stop_after_steps" if stop < total_steps else "trainer.max_steps or trainer.max_epochs"
        if done >= stop:
            raise UserError(
                f"resume={config.resume}: nothing to resume, since {resumption.saved.path} is at step {done} and the "
                f"run ends at step {stop}; give resume={resumption.saved.path} and raise {longer}"
            )
    return total_steps
