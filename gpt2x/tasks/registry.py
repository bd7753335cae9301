"""The tasks by name, and which of them serves a loaded model (imports no mindspore)."""

from __future__ import annotations

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.errors import UserError, require_choice
from gpt2x.extensions import Extensions, settings
from gpt2x.tasks.base import Inference, Task

TASKS = Extensions("gpt2x.tasks", "TASK", "task.objective")


def task_of(config: TrainConfig) -> Task:
    """Return the task that `task.objective` names.

    Raises:
        UserError: there is no such task.
    """
    task = TASKS.load(config.task.objective)
    assert isinstance(task, Task)
    return task


def check_task(config: TrainConfig) -> None:
    """Reject a configuration that its task cannot train; cheap, and before any work.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    task = task_of(config)
    settings(task.settings, config.task.settings, "task.settings")
    require_choice("trainer.best_metric", config.trainer.best_metric, tuple(task.metrics))
    task.check(config)


def inference_for(model: ModelConfig) -> Inference:
    """Return how `evaluate.py` and `predict.py` use `model`.

    Raises:
        UserError: not exactly one kind of inference serves the model.
    """
    kinds = {id(kind): kind for kind in (TASKS.load(name).inference for name in TASKS.names())}
    serving = [kind for kind in kinds.values() if kind.serves(model)]
    if len(serving) != 1:
        names = ", ".join(type(kind).__name__ for kind in serving) or "none"
        raise UserError(f"model={model.name}: exactly one inference of gpt2x/tasks must serve it, but {names} does.")
    return serving[0]
