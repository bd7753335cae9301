"""`gpt2x harness --load DIR --tasks NAME…`: tasks of lm-evaluation-harness on a trained model."""

from __future__ import annotations

import argparse

from gpt2x.commands.arguments import Parser, location, path
from gpt2x.config import HardwareConfig
from gpt2x.config.options import read_option
from gpt2x.convert import load_source
from gpt2x.errors import UserError
from gpt2x.evaluate.harness.tasks import load_tasks
from gpt2x.evaluate.results import check_target, write_json
from gpt2x.runtime.console import console


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="gpt2x harness", description=__doc__)
    parser.add_argument(
        "--load", required=True, type=location, help="a run, a gpt2x checkpoint or a Hugging Face GPT-2 directory"
    )
    parser.add_argument("--adapter", type=location, metavar="DIR", help="adapter of a LoRA run, or of PEFT, for --load")
    parser.add_argument("--tasks", required=True, nargs="+", metavar="NAME", help="tasks, groups, tags; * matches all")
    parser.add_argument("--include-path", type=path, metavar="DIR", help="a directory of further tasks (YAML)")
    parser.add_argument("--limit", type=float, help="documents per task; below 1 a fraction of them")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each document")
    parser.add_argument("--output", type=path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="texts per forward pass; does not change results (8)"
    )
    parser.add_argument("--hardware", default="cpu", help="an option of conf/hardware (cpu)")
    parser.add_argument("--tokenizer", type=location, metavar="DIR", help="for a --load without a tokenizer")
    return parser


def main(arguments: list[str]) -> None:
    """Evaluate: print lm_eval's table and write its results to a file.

    Raises:
        UserError: for anything the user can put right; before the model is loaded if the mistake is not in it.
    """
    options = parser().parse_args(arguments)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable, make_table

        import gpt2x.evaluate.harness.model  # noqa: F401  # registers gpt2x
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError("lm_eval is not installed: pip install 'gpt2x[lm-eval]'.") from None

    check(options)
    manager = TaskManager(include_path=options.include_path)
    results = simple_evaluate(
        model="gpt2x",
        model_args={key: getattr(options, key) for key in ("load", "adapter", "hardware", "tokenizer")},
        tasks=load_tasks(options.tasks, manager),
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        limit=options.limit,
        log_samples=False,
    )
    for part in ("results", "groups"):
        if results.get(part):
            console.notice(make_table(results, part))
    if options.output is not None:
        write_json(options.output, results, default=handle_non_serializable)
        console.notice(f"results: {options.output}")


def check(options: argparse.Namespace) -> None:
    """Raise UserError for an argument that cannot be used."""
    if options.limit is not None and options.limit <= 0:
        raise UserError(f"--limit={options.limit:g}: give the number of documents, or a fraction of them below 1.")
    if options.batch_size < 1:
        raise UserError(f"--batch-size={options.batch_size}: give at least 1.")
    read_option("hardware", options.hardware, HardwareConfig)
    if options.include_path is not None and not options.include_path.is_dir():
        raise UserError(f"--include-path={options.include_path} is not a directory; give one with tasks as YAML files.")
    if options.output is not None:
        check_target(options.output)
    load_source(options.load, verify=False)
