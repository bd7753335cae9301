"""Every key states what it means, what it may be and what it changes; resume, kept graphs and help follow it."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gpt2x.commands.entry import run_in_process
from gpt2x.commands.hydra_entry import compose_config, register_schemas
from gpt2x.config.files import as_meant, load_config, to_typed
from gpt2x.config.help import help_text
from gpt2x.config.keys import check_values, flatten, groups, leaves
from gpt2x.config.metadata import Effect, group, key
from gpt2x.config.options import CONF, SCHEMAS, chosen_options, composed_defaults, experiments, options
from gpt2x.config.schema import TrainConfig, TrainerConfig
from gpt2x.errors import UserError
from gpt2x.train.compile_cache import values_in_graphs
from gpt2x.train.resume import best_is_of_other_rows, differences
from tests.support.small_runs import small

OLD_CONFIG = Path(__file__).parent / "support" / "old_config.yaml"  # of a run before keys had metadata
TRAIN = leaves(TrainConfig)
BOUNDED = [name for name, leaf in TRAIN.items() if leaf.facts.bounds()]
NAMED = [name for name, leaf in TRAIN.items() if leaf.facts.names()]


@cache
def complete() -> TrainConfig:
    """A configuration in which no key may be omitted when it is resumed."""
    adapters = ["lora=r8", "load=somewhere", "adapters=[a]"]
    return compose_config("train", [*adapters, "model.vocab_size=100", "model.labels=[a]", "plan=false"])


def changed(value: Any) -> Any:
    """A different value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return value | {"gamma": 0.5}
    return [*value, "x"] if isinstance(value, list) else f"{value}x"


def with_value(config: Any, name: str, value: Any) -> Any:
    """A copy of `config` in which the dotted key `name` has `value`."""
    first, _, rest = name.partition(".")
    return replace(config, **{first: with_value(getattr(config, first), rest, value) if rest else value})


def value_of(config: Any, name: str) -> Any:
    return flatten(asdict(config), type(config))[name]


# ---- what every key states


def dataclasses_of(root: type) -> set[type]:
    return {root}.union(*(dataclasses_of(nested) for nested in groups(root).values()))


ALL = sorted(set().union(*(dataclasses_of(root) for root in SCHEMAS.values())), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_key_states_its_meaning_and_its_effect(cls):
    assert cls.__doc__
    for leaf in leaves(cls).values():
        assert leaf.facts.meaning, leaf.name
        assert isinstance(leaf.facts.effect, Effect), leaf.name
        assert bool(leaf.facts.null) == ("None" in leaf.type), (
            f"{leaf.name}: say what null stands for, if it is allowed"
        )


def test_a_key_without_metadata_is_an_error():
    @dataclass
    class Bare:
        remark: str = ""

    with pytest.raises(KeyError):
        leaves(Bare)


# ---- single values


@pytest.mark.parametrize("name", BOUNDED)
def test_a_number_outside_its_bounds_is_rejected(name):
    facts = TRAIN[name].facts
    lowest, highest = facts.at_least, facts.at_most
    outside = [
        facts.above,
        facts.below,
        None if lowest is None else lowest - 1,
        None if highest is None else highest + 1,
    ]
    for number in [number for number in outside if number is not None]:
        with pytest.raises(UserError, match=rf"^{name}=.* must be {facts.bounds()}(; null means .*)?\.$"):
            check_values(with_value(complete(), name, number))
    for number in [number for number in (lowest, highest) if number is not None]:
        check_values(with_value(complete(), name, number))


@pytest.mark.parametrize("name", NAMED)
def test_a_word_that_is_no_choice_is_rejected(name):
    names = TRAIN[name].facts.names()
    with pytest.raises(UserError) as caught:
        check_values(with_value(complete(), name, f"{names[0]}x"))
    assert str(caught.value).startswith(f"{name}={names[0]}x does not exist; did you mean {names[0]}?")
    assert str(caught.value).endswith(f"choose one of: {', '.join(names)}.")
    for word in names:
        check_values(with_value(complete(), name, word))


def test_every_registry_of_extensions_has_names():
    packages = {name: leaf.facts for root in SCHEMAS.values() for name, leaf in leaves(root).items()}
    registries = {name: facts for name, facts in packages.items() if facts.extensions}
    assert {"dataset.corpus", "schedule.name", "optimizer.kind", "tracker.name", "task.objective"} <= set(registries)
    assert not [name for name, facts in registries.items() if not facts.names()]


def test_a_new_file_is_a_valid_name_at_once():
    folder = CONF.parent / "gpt2x" / "data" / "sources"
    new = folder / "zzz_new_source.py"
    new.write_text("", encoding="utf-8")
    try:
        check_values(with_value(complete(), "dataset.corpus", "zzz_new_source"))
    finally:
        new.unlink()
    with pytest.raises(UserError, match="zzz_new_source"):
        check_values(with_value(complete(), "dataset.corpus", "zzz_new_source"))


@pytest.mark.parametrize("name", [name for name in TRAIN if name.endswith(".settings")])
def test_a_group_takes_any_settings_which_its_extension_checks(name):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("train", [f"{name}.gamma=0.5", f"+{name}.mode=fast"])
    assert value_of(to_typed("train", values), name) == {"gamma": 0.5, "mode": "fast"}


# ---- resume


@pytest.mark.parametrize("name", TRAIN)
def test_a_changed_value_is_allowed_on_resume_as_its_key_says(name):
    config = complete()
    stored = asdict(with_value(config, name, changed(value_of(config, name))))
    lines = differences(config, stored)
    if TRAIN[name].facts.effect.may_change_on_resume:
        assert not lines
    else:
        assert [line.split(":")[0] for line in lines] == [name]


def test_an_equal_run_has_no_differences_after_its_file():
    config = complete()
    assert not differences(config, yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(config))))


def test_values_are_compared_whole():
    patterns = [f"h.{layer}.attn.c_attn.weight" for layer in range(40)]
    config = with_value(complete(), "trainer.frozen", patterns)
    stored = asdict(with_value(config, "trainer.frozen", [*patterns[:-1], "h.39.mlp.c_fc.weight"]))
    assert [line.split(":")[0] for line in differences(config, stored)] == ["trainer.frozen"]


def test_a_configuration_from_before_a_key_existed_is_read_and_resumed():
    """A new key needs a default that stands for what runs did before: this file lacks all later keys."""
    config = load_config("train", OLD_CONFIG)
    assert not differences(config, yaml.safe_load(OLD_CONFIG.read_text(encoding="utf-8")))
    assert not differences(compose_config("train"), yaml.safe_load(OLD_CONFIG.read_text(encoding="utf-8")))


@pytest.mark.parametrize("typed", ["trainer.max_eval_batches=20", "+trainer.max_eval_batches=20"])
def test_a_replaced_key_is_answered_with_the_one_to_type(typed):
    with pytest.raises(UserError) as caught:
        compose_config("train", [typed])
    assert str(caught.value).startswith("trainer.max_eval_batches counted micro batches")
    assert "give trainer.max_eval_rows=N" in str(caught.value)


def test_a_stored_value_of_a_replaced_key_is_left_out(tmp_path):
    stored = yaml.safe_load(OLD_CONFIG.read_text(encoding="utf-8"))
    assert not best_is_of_other_rows(load_config("train", OLD_CONFIG), stored)
    stored["trainer"]["max_eval_batches"] = 20
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    config = load_config("train", tmp_path / "config.yaml")
    assert not differences(config, stored)
    assert best_is_of_other_rows(config, stored).startswith("trainer.max_eval_batches=20")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("trainer.max_eval_rows", 8, "trainer.max_eval_rows=8, now null"),
        ("trainer.best_metric", "val/ppl", "trainer.best_metric=val/ppl, now val/loss"),
        ("trainer.micro_batch_size", 1, ""),
    ],
)
def test_values_of_two_validations_compare_if_rows_and_metric_are_the_same(name, value, line):
    assert best_is_of_other_rows(complete(), asdict(with_value(complete(), name, value))) == line


@dataclass
class NewTrainerConfig(TrainerConfig):
    remark: str = key("a key that older checkpoints lack", Effect.STEP, "")
    note: str = key("another one", Effect.HOST, "")


@dataclass
class NewTrainConfig(TrainConfig):
    trainer: NewTrainerConfig = group(NewTrainerConfig)  # noqa: RUF009


def test_a_new_key_neither_breaks_equal_runs_nor_is_ignored():
    config = complete()
    shared = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    new = NewTrainConfig(**shared | {"trainer": NewTrainerConfig(**asdict(config.trainer))})
    stored = asdict(config)
    assert not differences(new, stored)
    assert not differences(with_value(new, "trainer.note", "x"), stored)
    assert differences(with_value(new, "trainer.remark", "x"), stored) == ["trainer.remark:  -> x"]
    assert values_in_graphs(with_value(new, "trainer.note", "x")) == values_in_graphs(new)
    assert values_in_graphs(with_value(new, "trainer.remark", "x")) != values_in_graphs(new)


# ---- kept graphs


@pytest.mark.parametrize("name", TRAIN)
def test_kept_graphs_depend_on_a_value_as_its_key_says(name):
    config = complete()
    other = with_value(config, name, changed(value_of(config, name)))
    assert (values_in_graphs(other) != values_in_graphs(config)) == TRAIN[name].facts.effect.part_of_graph


GRAPHS = ("gpt2x.model.", "gpt2x.ops.", "gpt2x.lora.cells", "gpt2x.optim.", "gpt2x.train.step",
          "gpt2x.train.build", "gpt2x.parallel.tensor")  # fmt: skip


def recorded(config: Any, prefix: str, reads: set[str]) -> Any:
    """A copy of `config` that notes which keys the modules that build graphs read."""
    nested = groups(type(config))

    def read(self, name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith(GRAPHS) and not caller.startswith("gpt2x.optim.schedule") and name in names:
            reads.add(prefix + name)
        return object.__getattribute__(self, name)

    names = {entry.name for entry in fields(config)} - set(nested)
    copied = copy.copy(config)
    for name in nested:
        setattr(copied, name, recorded(getattr(config, name), f"{prefix}{name}.", reads))
    copied.__class__ = type(type(config).__name__, (type(config),), {"__getattribute__": read})
    return copied


@pytest.mark.run
def test_what_is_read_while_graphs_are_built_counts_for_kept_graphs(tmp_path):
    reads: set[str] = set()
    steps = ["trainer.max_steps=1", "trainer.compile_cache=false", "trainer.keep_best=false", "model.dropout=0.1"]
    config = compose_config("train", [*small(tmp_path), *steps])
    run_in_process("train", recorded(config, "", reads), tmp_path / "run")
    assert {"model.dropout", "trainer.grad_clip", "optimizer.beta2"} <= reads
    assert not {name for name in reads if not TRAIN[name].facts.effect.part_of_graph}


# ---- help


@pytest.mark.parametrize("entry", SCHEMAS)
def test_help_shows_the_keys_and_experiments_of_its_entry_point_only(entry):
    text = help_text(entry, 80, color=False)
    keys = {line.strip().split("=")[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    everything = {name for root in SCHEMAS.values() for name in leaves(root)}
    assert keys & everything == {name for name in leaves(SCHEMAS[entry]) if not name.endswith(".name")}
    shown = set(text.split())
    foreign = set(options("experiment")) - set(experiments(entry))
    assert not foreign & shown
    assert set(experiments(entry) if "experiment" in chosen_options(entry) else []) <= shown
    assert "schema" not in shown
    assert max(map(len, text.splitlines())) <= 80
    assert "\033[1m" in help_text(entry, 80, color=True)


def test_every_experiment_belongs_to_one_entry_point():
    assert sorted(name for entry in SCHEMAS for name in experiments(entry)) == options("experiment")


def test_help_of_one_group():
    text = help_text("train", 80, color=False, group="optimizer")
    assert "optimizer.beta2=0.95" in text
    assert "adamw_reference" in text
    assert "trainer." not in text
    with pytest.raises(UserError, match="did you mean optimizer"):
        help_text("train", 80, color=False, group="optimiser")


@pytest.mark.parametrize("entry", SCHEMAS)
def test_defaults_are_those_that_hydra_composes(entry):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = flatten(OmegaConf.to_container(compose(entry), resolve=False), SCHEMAS[entry])
    keys = leaves(SCHEMAS[entry])
    values = {name: as_meant(keys[name], value) for name, value in values.items() if value != "???"}
    assert composed_defaults(entry) == values


@pytest.mark.launch
def test_help_imports_neither_hydra_nor_mindspore():
    code = (
        "import sys; from gpt2x.config.help import help_text; help_text('train', 80, False);"
        "heavy = {'hydra', 'mindspore', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
