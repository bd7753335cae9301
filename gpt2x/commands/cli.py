"""The `gpt2x` command, and the three scripts: which module of this package a command line means.

Nothing heavy is imported before the command is known: `gpt2x --help` and `--version` answer in a tenth of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from gpt2x import __version__
from gpt2x.errors import UserError, did_you_mean
from gpt2x.runtime import interrupt
from gpt2x.runtime.console import console
from gpt2x.runtime.exits import guarded, leave, run_and_leave
from gpt2x.runtime.log_records import handle_log_records
from gpt2x.runtime.role import is_one_of_several

CONFIGURED = {  # composed by Hydra from conf/NAME.yaml
    "train": "train a model",
    "evaluate": "measure a trained model on a data set; with -m compare several",
    "predict": "complete prompts, or classify them",
    "prepare": "tokenize a corpus into a prepared data set",
}
OTHERS = {  # modules with a `main`
    "plan": "memory, traffic and speed of a layout, or a search for the best; runs nothing",
    "convert": "write a model as a Hugging Face, gpt2x, PEFT or MLflow directory",
    "checkpoint": "inspect, verify, merge or reshard a checkpoint",
    "doctor": "check this machine, from versions to a short training run, and write a report",
    "compare": "runs, a sweep or an experiment side by side, on the terminal and as a report",
    "harness": "run tasks of lm-evaluation-harness on a trained model",
    "report": "draw the losses of a training run again, and write its report",
    "sync": "send to MLflow what it lacks of finished runs",
}
COMMANDS = CONFIGURED | OTHERS
HELP = {"-h", "--help"}
COMPLETION = {"-sc", "--shell-completion"}


def main() -> None:
    """Run `gpt2x COMMAND …` and end the process with its status."""
    finish(lambda: gpt2x(sys.argv[1:]))


def script(name: str) -> None:
    """Run `NAME.py …`, which is `gpt2x NAME …`, and end the process with its status."""
    finish(lambda: run_command(name, sys.argv[1:], f"python {name}.py"))


def finish(job: Callable[[], None]) -> None:
    """End the process with the status of `job`; one process of several ends without the destructors of libraries."""
    import os

    def checked() -> None:
        check_text(sys.argv[1:])
        handle_log_records(are_shown=True)
        job()

    interrupt.catch()
    if is_one_of_several(os.environ):
        run_and_leave(checked)
    status = guarded(checked)
    if status in interrupt.STATUSES and any(name.startswith("mindspore.") for name in sys.modules):
        leave(status)  # half of MindSpore may be imported, and its exit functions would abort
    sys.exit(status)


def check_text(arguments: Sequence[str]) -> None:
    """Check that what was typed, and the directory in which it was, are texts and not only bytes.

    Raises:
        UserError: they could not be written to a configuration; or the directory is gone.
    """
    import os

    try:
        places = [*(("the argument", text) for text in arguments), ("the working directory", os.getcwd())]
    except FileNotFoundError:
        raise UserError("the working directory no longer exists; change to one that does.") from None
    encoding = sys.getfilesystemencoding()
    fix = "rename the file" if encoding == "utf-8" else "set PYTHONUTF8=1"
    for place, text in places:
        if any("\ud800" <= char <= "\udfff" for char in text):  # how Python keeps bytes that it cannot decode
            spelled = text.encode("ascii", "backslashreplace").decode()
            raise UserError(f"{place} {spelled} is no text in {encoding}, the encoding of this process; {fix}.")


def gpt2x(arguments: Sequence[str]) -> None:
    """Answer a command line.

    Raises:
        UserError: there is no such command, or the command's own mistakes.
    """
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        console.notice(overview())
    elif first == "--version":
        console.notice(f"gpt2x {__version__}")
    elif first in COMPLETION:
        complete_or_install("train", list(arguments))
    elif first in COMMANDS:
        run_command(first, list(arguments[1:]), f"gpt2x {first}")
    else:
        raise UserError(
            f"gpt2x {first} is not a command; {did_you_mean(first, list(COMMANDS))}commands: {', '.join(COMMANDS)}."
        )


def overview() -> str:
    """Return the commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        ["gpt2x COMMAND …", "", *lines, "", "gpt2x COMMAND --help shows what a command takes; gpt2x --version."]
    )


def run_command(name: str, arguments: list[str], program: str) -> None:
    """Run one command.

    Args:
        name: one of COMMANDS.
        arguments: what follows the command's name.
        program: how the command was typed, for help.

    Raises:
        UserError: for anything the user can put right.
    """
    if name in OTHERS:
        import_module(f"gpt2x.commands.{name}").main(arguments)
    elif "--version" in arguments:
        console.notice(f"gpt2x {__version__}")
    elif HELP & set(arguments):
        show_help(name, arguments)
    elif COMPLETION & set(arguments):
        complete_or_install(name, arguments)
    else:
        compose_and_start(name, arguments)


def show_help(name: str, arguments: list[str]) -> None:
    """Print the keys of a command, or of one group for `--help GROUP`; Hydra is not imported.

    Raises:
        UserError: there is no such group.
    """
    from gpt2x.config.help import help_text

    words = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
    console.plain(help_text(name, console.rich.width, console.is_interactive, words[0] if words else None))


def complete_or_install(name: str, arguments: list[str]) -> None:
    """Print what can follow in the line that a shell asks about, or the script that makes a shell ask.

    Args:
        name: of the command that was typed, or any.
        arguments: those after the command's name.

    Raises:
        UserError: the arguments are not one of install=, uninstall= and query= with a shell that Hydra knows.
    """
    import os

    line = os.environ.get("COMP_LINE")
    query = next((word.partition("=")[2] for word in arguments if word.startswith("query=")), None)
    if query and line is not None:
        from gpt2x.commands.completion import candidates

        console.plain(("\n" if query == "fish" else " ").join(candidates(line, list(COMMANDS))))
    else:
        compose_and_start(name, arguments)


def compose_and_start(name: str, arguments: list[str]) -> None:
    """Have Hydra compose the configuration of a command, and run it."""
    from gpt2x.commands.entry import start
    from gpt2x.commands.hydra_entry import hydra_main
    from gpt2x.runtime.jobs import note_command

    note_command()
    sys.argv[1:] = arguments  # what Hydra reads
    hydra_main(name, start)
