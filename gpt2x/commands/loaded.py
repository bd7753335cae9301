"""What a training run takes from `load=`, or from the checkpoint of `resume=`, instead of from the defaults.

`with_loaded` decides once which model a run has, before anything is validated. What is typed goes first: it is used if
it changes nothing that the weights compute, and rejected otherwise. docs/finetuning.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config import ModelConfig, TaskConfig, TrainConfig
from gpt2x.config.files import escaped
from gpt2x.config.keys import flatten, spell
from gpt2x.config.locations import expanded
from gpt2x.config.options import chosen_options, composed_defaults, options, read_option
from gpt2x.errors import UserError

if TYPE_CHECKING:
    from gpt2x.convert import WeightsSource

FREE = ("name", "dropout", "embedding_dropout", "attention_dropout", "initializer_range", "scale_residual_init",
        "pad_vocab_multiple", "labels")  # fmt: skip
"""Keys of the model that a run may choose: the weights compute the same with any value."""
SIZES = ("num_layers", "num_heads", "hidden_size", "max_seq_len", "vocab_size", "ffn_size")
"""Keys that each option of conf/model states. The others of an option are taken from the weights, unless typed."""
TAKEN = ("trainer.seq_len", "dataset.template")
"""Further keys that depend on what is loaded, beside the model and the task."""


class NotOpenedError(UserError):
    """What `load=` names cannot be opened, and no model is typed."""


def with_loaded(values: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a composed configuration of `train.py` with the model, the task and the template of what it loads.

    Args:
        values: as Hydra composed them.
        overrides: the arguments of the command line, of a sweep those of the job.

    Raises:
        NotOpenedError: `load=` cannot be opened.
        UserError: it is a different model than the typed one.
    """
    try:
        load, resume = (OmegaConf.select(values, key) for key in ("load", "resume"))
        if load is None and resume in (None, "auto"):
            return values
        typed = Typed(values, overrides)
        configured = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), values.model))
    except OmegaConfBaseException:
        return values  # what is wrong with a value is said by its validation
    if resume not in (None, "auto"):
        return with_resumed(values, resume, configured, typed)
    return with_source(values, str(load), configured, typed)


class Typed:
    """What the user has typed, on the command line or in the file of an experiment.

    A key is typed if it is an argument, or if its value is not that of the chosen option.

    Attributes:
        keys: dotted.
        option: the option of conf/model; None if it is the default.
    """

    def __init__(self, values: DictConfig, overrides: Sequence[str]) -> None:
        self.keys = {text.partition("=")[0].lstrip("+").partition("@")[0] for text in overrides}
        names = ("model", "task", "dataset", "trainer")
        flat = flatten({name: OmegaConf.to_container(values[name]) for name in names}, TrainConfig)
        arguments = dict(text.split("=", 1) for text in overrides if text.startswith("model="))
        name, default = flat["model.name"], chosen_options("train")["model"]  # each option states its name
        is_other = name != default and name in options("model")
        self.option: str | None = arguments.get("model", str(name) if is_other else None)
        usual = composed_defaults("train")
        if self.option in options("model"):  # not one of --config-dir
            usual |= flatten({"model": asdict(read_option("model", self.option, ModelConfig))}, TrainConfig)
        self.keys |= {key for key, value in flat.items() if value != usual.get(key)}
        if flat["task.name"] != usual["task.name"]:
            self.keys.add("task")

    def __contains__(self, key: str) -> bool:
        return key in self.keys


def with_resumed(values: DictConfig, resume: str, configured: ModelConfig, typed: Typed) -> DictConfig:
    """Return the configuration with what it takes from the checkpoint that is resumed.

    What is typed and differs is said when the checkpoint is compared with the whole configuration.
    """
    from gpt2x.checkpoint.store import list_checkpoints, open_checkpoint
    from gpt2x.train.stored import check_training

    try:
        path = Path(expanded(resume, "resume"))
        saved = open_checkpoint((list_checkpoints(path) or [path])[-1])
        check_training(saved)
    except UserError:
        return values  # said by its reader
    stored = flatten(saved.run_config, TrainConfig)
    changes = {key: stored[key] for key in TAKEN if key in stored and key not in typed}
    if "task" not in typed:
        changes |= {"task": saved.run_config["task"]}
    if not typed.option:
        kept = {key: getattr(configured, key) for key in asdict(saved.model) if f"model.{key}" in typed}
        changes["model"] = asdict(replace(saved.model, **kept))
    return updated(values, changes)


def with_source(values: DictConfig, load: str, configured: ModelConfig, typed: Typed) -> DictConfig:
    """Return the configuration with what it takes from the weights of `load=`.

    Raises:
        UserError: as `with_loaded`.
    """
    from gpt2x.convert import load_source

    try:
        source = load_source(expanded(load, "load"), verify=False)
    except UserError as error:
        if typed.option:  # a plan of that model needs no weights; a run says it when it opens them
            return values
        raise NotOpenedError(str(error)) from error
    model = model_of_run(source.model, configured, typed, load)
    changes: dict[str, Any] = {}
    if "task" not in typed:
        changes["task"] = asdict(task_for(source.model, values.task.name))
    objective = (changes.get("task") or values.task)["objective"]
    if objective == "classification" and "model.labels" not in typed:
        model = replace(model, labels=source.model.labels)
    changes["model"] = asdict(model)
    if "trainer.seq_len" not in typed:
        changes["trainer.seq_len"] = min(values.trainer.seq_len, model.max_seq_len)
    if objective == "instruction" and "dataset.template" not in typed:
        changes["dataset.template"] = template_of(source, values.dataset.template)
    return updated(values, changes)


def model_of_run(loaded: ModelConfig, configured: ModelConfig, typed: Typed, load: str) -> ModelConfig:
    """Return the model that a run trains: the loaded one, with the typed keys that change nothing it computes.

    Args:
        loaded: as the directory states it.
        configured: as composed.
        typed: what the user has typed.
        load: the directory, for the message.

    Raises:
        UserError: naming the keys that differ, and what to drop.
    """
    wrong, chosen = [], {}
    for key in asdict(loaded):
        is_typed = f"model.{key}" in typed
        if key in FREE:
            if is_typed or typed.option or key in ("pad_vocab_multiple", "labels"):
                chosen[key] = getattr(configured, key)
        elif (is_typed or (typed.option and key in SIZES)) and differs(key, configured, loaded):
            wrong.append(key)
    if wrong:
        stated = ", ".join(
            f"model.{key}={spell(getattr(configured, key))} (loaded: {spell(getattr(loaded, key))})" for key in wrong
        )
        option = [f"model={typed.option}"] if typed.option and set(wrong) & set(SIZES) else []
        drop = " ".join([*option, *(f"model.{key}" for key in wrong if f"model.{key}" in typed)])
        raise UserError(
            f"load={load} is a different model than {option[0] if option else 'the typed one'}: {stated}. "
            f"Drop {drop}: the model is taken from load=."
        )
    if "model.dropout" in typed:  # it is that of embeddings and attention too
        chosen = {"embedding_dropout": None, "attention_dropout": None} | chosen
    return replace(loaded, **chosen)


def differs(key: str, configured: ModelConfig, loaded: ModelConfig) -> bool:
    """Return whether a key makes the configured model compute something else than the loaded one."""
    from gpt2x.model.stats import ffn_size

    ours, theirs = getattr(configured, key), getattr(loaded, key)
    if key == "ffn_size" and ours != theirs:  # two nulls follow from hidden_size, which is compared
        return ffn_size(configured) != ffn_size(loaded)
    if key == "vocab_size" and ours is None:  # the tokenizer's size, which is compared with the loaded model's
        return False
    if isinstance(ours, float):
        return abs(ours - theirs) > 1e-6 * abs(theirs)
    return bool(ours != theirs)


def task_for(model: ModelConfig, default: str) -> TaskConfig:
    """Return the default task, or the first that serves a loaded model which the default one does not."""
    from gpt2x.tasks.registry import TASKS

    names = [default, *(name for name in options("task") if name != default)]
    tasks = [read_option("task", name, TaskConfig) for name in names]
    return next((task for task in tasks if TASKS.load(task.objective).inference.serves(model)), tasks[0])


def template_of(source: WeightsSource, default: str) -> str:
    """Return the template with which a loaded model was trained, as a file; the default one if that is the same."""
    from gpt2x.data.template import FILE, load_template, stored_template

    stored = stored_template(source.tokenizer_dir)
    if stored is None or stored == load_template(default, "dataset.template"):
        return default
    assert source.tokenizer_dir is not None
    return str((source.tokenizer_dir / FILE).absolute())


def updated(values: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    """Return a copy of the values with some that are replaced."""
    values = values.copy()
    OmegaConf.set_readonly(values, False)
    with open_dict(values):
        for key, value in changes.items():
            OmegaConf.update(values, key, escaped(value))
    return values


def with_any_positions(values: DictConfig) -> DictConfig:
    """Return the configuration of a run whose model is not known, with positions for any `trainer.seq_len`."""
    return updated(values, {"model.max_seq_len": max(values.model.max_seq_len, values.trainer.seq_len)})


def run_folder(*, _root_: DictConfig) -> str:
    """Return TASK/MODEL for the directory of a run of `train.py`; a resolver of OmegaConf."""
    try:
        values = with_loaded(_root_, _root_.hydra.overrides.task)
    except UserError:  # said when the run begins
        values = _root_
    return f"{values.task.name}/{values.model.name}"
