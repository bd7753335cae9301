"""`python -m gpt2x.evaluate.harness --load DIR --tasks NAME...`: tasks of lm-evaluation-harness on a trained model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gpt2x.config import HardwareConfig
from gpt2x.config.options import read_option
from gpt2x.convert import load_source
from gpt2x.errors import UserError, did_you_mean
from gpt2x.evaluate.results import check_target, write_json
from gpt2x.runtime.exits import guarded

REFUSED = {"UNSAFE_CODE": "executes code that the model writes", "MULTIMODAL": "shows the model pictures or sounds"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; a mistake in it ends the program with status 2."""
    parser = argparse.ArgumentParser(prog="python -m gpt2x.evaluate.harness", description=__doc__)
    parser.add_argument("--load", required=True, help="a run, a gpt2x checkpoint or a Hugging Face GPT-2 directory")
    parser.add_argument("--adapter", metavar="DIR", help="of lora=, or PEFT's, on --load")
    parser.add_argument("--tasks", required=True, nargs="+", metavar="NAME", help="tasks, groups, tags; * matches all")
    parser.add_argument("--include-path", type=path, metavar="DIR", help="a directory of further tasks (YAML)")
    parser.add_argument("--limit", type=float, help="documents of each task; below 1 a share of them")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each document")
    parser.add_argument("--output", type=path, metavar="FILE", help="the results as JSON")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts a forward pass; has no influence on results (8)"
    )
    parser.add_argument("--hardware", default="cpu", help="an option of conf/hardware (cpu)")
    parser.add_argument("--tokenizer", metavar="DIR", help="for a --load that has none")
    return parser.parse_args(arguments)


def path(text: str) -> Path:
    """A path as the user's shell would read it."""
    return Path(text).expanduser()


def run(chosen: argparse.Namespace) -> None:
    """Evaluate: lm_eval's table on the terminal, and its results in a file.

    Raises:
        UserError: for anything the user can put right, before the model is loaded where it does not need the model.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable, make_table

        import gpt2x.evaluate.harness.model  # noqa: F401  # registers gpt2x
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError("lm_eval is not installed: pip install 'gpt2x[lm-eval]'") from None

    if chosen.limit is not None and chosen.limit <= 0:
        raise UserError(f"--limit={chosen.limit:g}: give the number of documents, or a share of them below 1")
    if chosen.batch_size < 1:
        raise UserError(f"--batch-size={chosen.batch_size}: give at least 1")
    read_option("hardware", chosen.hardware, HardwareConfig)
    if chosen.include_path is not None and not chosen.include_path.is_dir():
        raise UserError(f"--include-path={chosen.include_path} is no directory: give one with tasks as YAML files")
    if chosen.output is not None:
        check_target(chosen.output)
    load_source(chosen.load, verify=False)
    manager = TaskManager(include_path=chosen.include_path)
    results = simple_evaluate(
        model="gpt2x",
        model_args={key: getattr(chosen, key) for key in ("load", "adapter", "hardware", "tokenizer")},
        tasks=load_tasks(chosen.tasks, manager),
        task_manager=manager,
        num_fewshot=chosen.num_fewshot,
        batch_size=chosen.batch_size,
        limit=chosen.limit,
        log_samples=False,
    )
    for part in ("results", "groups"):
        if results.get(part):
            print(make_table(results, part))
    if chosen.output is not None:
        write_json(chosen.output, results, default=handle_non_serializable)
        print(f"results: {chosen.output}")


def load_tasks(names: list[str], manager: Any) -> list[Any]:
    """The tasks and groups of these names, with their documents.

    Args:
        names: of tasks, groups or tags, or patterns of them.
        manager: lm_eval's TaskManager.

    Raises:
        UserError: an unknown name, documents that cannot be had, or a task that is wrong in itself.
    """
    found: list[Any] = []
    for pattern in [part for name in names for part in name.split(",") if part]:
        matching = manager.match_tasks([pattern])
        if not matching:
            close = did_you_mean(pattern, manager.all_tasks)
            raise UserError(
                f"--tasks={pattern}: lm_eval knows no such task; {close}"
                "`lm_eval ls tasks` lists its own, --include-path=DIR adds others"
            )
        for name in matching:
            try:
                loaded = manager.load([name])
            except ConnectionError as error:
                raise UserError(
                    f"--tasks={name}: its documents are not cached and cannot be downloaded ({first_line(error)}); "
                    "run it once where there is a network, or give a task on local files by --include-path=DIR"
                ) from error
            except Exception as error:  # a task is a program of its own
                raise UserError(
                    f"--tasks={name} cannot be loaded: {type(error).__name__}: {first_line(error)}"
                ) from error
            for task in loaded["tasks"].values():
                for mark, fault in REFUSED.items():
                    if getattr(task, mark, False):
                        raise UserError(
                            f"--tasks={name}: {task.task_name} {fault}, which is not done here: leave it out"
                        )
            group = loaded["groups"].get(name)
            found += loaded["tasks"].values() if group is None else [group]
    return found


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake, which it prints."""
    chosen = parse(arguments)
    return guarded(lambda: run(chosen))


if __name__ == "__main__":
    sys.exit(main())
