"""The contract of a task: stated in full, found by its file's name, asked before any work."""

from types import SimpleNamespace

import pytest

from gpt2x.commands.hydra_entry import compose_config
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.tasks import registry
from gpt2x.tasks.base import Inference, Task, members
from gpt2x.tasks.classification import Classification, ClassifierInference
from gpt2x.tasks.instruction import Instruction
from gpt2x.tasks.language_modeling import LanguageModelInference, LanguageModeling

IMPLEMENTATIONS = [LanguageModeling, Instruction, Classification, LanguageModelInference, ClassifierInference]
CASES = [(kind, name) for kind in IMPLEMENTATIONS for name in members(kind.contract)]
SHAPE = {"name": "m", "num_layers": 1, "num_heads": 1, "hidden_size": 8, "max_seq_len": 8}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_member_that_is_missing_is_not_taken_from_another_implementation(kind, name):
    """Whatever a new task leaves out, and whatever it is derived from: it is rejected when it is defined."""
    stated = {key: vars(kind)[key] for key in members(kind.contract) if key != name}
    for parent in (kind, kind.contract):
        with pytest.raises(UserError, match=rf"\.New does not define {name}\. Each {kind.contract.__name__} defines"):
            type("New", (parent,), stated)


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_complete_implementation_is_accepted(kind):
    stated = {key: vars(kind)[key] for key in members(kind.contract)}
    assert isinstance(type("New", (kind.contract,), stated)(), kind.contract)


def test_the_contracts_have_the_members_that_a_run_asks_for():
    asked = {"check", "row_form", "fit_model", "loss", "inputs", "validation", "metrics", "baseline", "inference"}
    assert asked <= set(members(Task))
    assert set(members(Inference)) == {"serves", "measurement", "check_prompts", "predict"}


@pytest.mark.parametrize("name", registry.TASKS.names())
def test_every_file_states_a_task(name):
    task = registry.TASKS.load(name)
    assert isinstance(task, Task)
    assert task.metrics["val/loss"] == "lower"
    assert set(task.metrics.values()) <= {"lower", "higher"}
    assert isinstance(task.inference, Inference)


@pytest.mark.parametrize("labels", [None, ["a", "b"]])
def test_one_inference_serves_a_model(labels):
    inference = registry.inference_for(ModelConfig(**SHAPE, labels=labels))
    assert type(inference) is (ClassifierInference if labels else LanguageModelInference)


@pytest.mark.parametrize("count", [0, 2])
def test_a_model_that_none_or_two_serve_is_rejected(monkeypatch, count):
    kinds = [
        type("Kind", (Inference,), {n: (lambda self, model: True) for n in members(Inference)})() for _ in range(2)
    ]
    tasks = [SimpleNamespace(inference=kind) for kind in kinds[:count]]
    options = SimpleNamespace(names=lambda: list(range(count)), load=lambda index: tasks[index])
    monkeypatch.setattr(registry, "TASKS", options)
    with pytest.raises(UserError, match="model=m: exactly one inference"):
        registry.inference_for(ModelConfig(**SHAPE))


def test_a_metric_is_better_in_its_own_direction():
    task = registry.TASKS.load("classification")
    assert task.is_better("val/loss", 1.0, 2.0)
    assert not task.is_better("val/loss", 2.0, 1.0)
    assert task.is_better("val/accuracy", 2.0, 1.0)
    assert not task.is_better("val/accuracy", 1.0, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.best_metric=val/f1"], "trainer.best_metric=val/f1 does not exist; choose one of: val/loss, val/pp"),
        (["task.objective=clasification"], "task.objective=clasification does not exist; did you mean classification?"),
        (["+task.settings.foo=1"], "task.settings.foo does not exist; it has no settings"),
        (["task=classification", "load=x"], "dataset=pydocs has no labels, which task=classification needs"),
        (["task=classification", "load=x", "dataset=cola", "parallel=pp2"], "parallel=pp2 .* runs under data layouts"),
        (["task=instruction", "load=x"], "dataset=pydocs has no responses, which task=instruction learns"),
    ],
)
def test_what_a_task_rejects_is_answered_when_the_configuration_is_composed(overrides, message):
    with pytest.raises(UserError, match=message):
        compose_config("train", overrides)


def test_a_worker_checks_the_configuration_that_it_reads(tmp_path):
    from gpt2x.commands.configuration import read_config, save_config

    config = compose_config("train", [])
    config.trainer.best_metric = "val/accuracy"
    save_config(config, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"trainer\.best_metric=val/accuracy"):
        read_config("train", tmp_path / "config.yaml")
