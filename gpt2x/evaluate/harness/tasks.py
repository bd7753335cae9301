"""The tasks of lm-evaluation-harness that a command line names."""

from __future__ import annotations

from typing import Any

from gpt2x.errors import UserError, did_you_mean

REJECTED = {"UNSAFE_CODE": "executes code that the model writes", "MULTIMODAL": "shows the model pictures or sounds"}


def load_tasks(names: list[str], manager: Any) -> list[Any]:
    """Return the tasks and groups of these names, with their documents.

    Args:
        names: tasks, groups or tags, or patterns of them; one text may hold several, separated by commas.
        manager: lm_eval's TaskManager.

    Raises:
        UserError: an unknown name, documents that are not available, or a task that is wrong in itself.
    """
    tasks: list[Any] = []
    for pattern in [part for name in names for part in name.split(",") if part]:
        matches = manager.match_tasks([pattern])
        if not matches:
            raise UserError(
                f"--tasks={pattern}: lm_eval has no such task; {did_you_mean(pattern, manager.all_tasks)}"
                "`lm_eval ls tasks` lists its tasks, --include-path=DIR adds others."
            )
        for name in matches:
            loaded = load_task(name, manager)
            for task in loaded["tasks"].values():
                require_supported(name, task)
            group = loaded["groups"].get(name)
            tasks += loaded["tasks"].values() if group is None else [group]
    return tasks


def load_task(name: str, manager: Any) -> dict[str, Any]:
    """Return lm_eval's `tasks` and `groups` of one name."""
    try:
        loaded: dict[str, Any] = manager.load([name])
    except ConnectionError as error:
        raise UserError(
            f"--tasks={name}: its documents are not cached and cannot be downloaded ({first_line(error)}). Run it once "
            "with a network, or give a task on local files with --include-path=DIR."
        ) from error
    except Exception as error:  # a task is a program
        raise UserError(f"--tasks={name} cannot be loaded: {type(error).__name__}: {first_line(error)}.") from error
    return loaded


def require_supported(name: str, task: Any) -> None:
    """Raise UserError for a task that does something gpt2x does not do."""
    for mark, fault in REJECTED.items():
        if getattr(task, mark, False):
            raise UserError(f"--tasks={name}: {task.task_name} {fault}, which gpt2x does not do; leave it out.")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
