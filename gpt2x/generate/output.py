"""Where `predict.py` writes: JSON lines to a file or stdout, or text for a reader on the terminal."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from rich.text import Text

from gpt2x.errors import UserError
from gpt2x.generate.completion import Completion
from gpt2x.generate.prompts import Prompt
from gpt2x.runtime.console import console, stderr
from gpt2x.runtime.streams import require_reader


@dataclass
class Lines:
    """JSON lines, each flushed; counts what it has written.

    Attributes:
        output: the destination as the user typed it.
        stream: the opened destination.
        count: lines written so far; `write` alone changes it.
    """

    output: str
    stream: IO[str]
    count: int = 0

    def write(self, values: dict[str, object]) -> None:
        """Write one object as a line.

        Raises:
            UserError: the line cannot be written.
        """
        try:
            self.stream.write(json_line(values) + "\n")
            self.stream.flush()
            if self.output == "-":
                require_reader()
        except OSError as error:
            raise cannot_write(self.output, error) from None
        self.count += 1


def json_line(values: dict[str, object]) -> str:
    """Return an object as JSON that can be written as UTF-8: one with half a surrogate pair is escaped."""
    line = json.dumps(values, ensure_ascii=False)
    return line if line.encode("utf-8", "replace").decode() == line else json.dumps(values)


def completion_values(completion: Completion, prompt: Prompt | None = None) -> dict[str, object]:
    """Return the JSON line of a completion.

    Args:
        completion: what the model wrote.
        prompt: the instruction that a template surrounds; the line then has the keys of training data. None without a
            template.
    """
    values: dict[str, object]
    if prompt is None:
        values = {"prompt": completion.prompt, "completion": completion.completion}
    else:
        values = {"instruction": prompt.text, "input": prompt.input, "output": completion.completion}
    values |= {"num_tokens": completion.num_tokens, "tokens_per_s": round(completion.tokens_per_s, 3)}
    if completion.acceptance_rate is not None:
        values["acceptance_rate"] = round(completion.acceptance_rate, 3)
    return values


@dataclass(frozen=True)
class CompletionLines:
    """Completions as JSON lines.

    Attributes:
        lines: where they go.
        prompts: the prompts by index if a template surrounds them, else None.
    """

    lines: Lines
    prompts: list[Prompt] | None

    def text(self, index: int, text: str) -> None:
        """Ignore a piece of text; a line is a whole completion."""

    def completion(self, index: int, completion: Completion) -> None:
        """Write a line."""
        self.lines.write(completion_values(completion, None if self.prompts is None else self.prompts[index]))


def cannot_write(output: str, error: OSError) -> UserError:
    """Return the error for a destination that fails."""
    return UserError(f"output={output} cannot be written: {error.strerror or error}; give a different file.")


def check_output(output: str | None) -> None:
    """Create the directory of the destination, and raise UserError if the destination cannot be written."""
    if output is None or output == "-":
        return
    target = Path(output).expanduser().resolve()
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(None, "the existing file is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output, error) from None


@contextmanager
def results(output: str | None, total: int) -> Iterator[Lines | None]:
    """Open the destination of JSON lines: None for no lines, "-" for stdout, else a file.

    A file is written next to its final path as `NAME.partial-PID`, which is renamed when the block ends without an
    error. Until then an older file of that name stays whole, and it stays if the run fails. In that case the lines
    written so far are kept as `NAME.partial`, and a notice says how many of `total` there are.

    Raises:
        UserError: the destination cannot be written: before the block, at a line, or at the final rename.
    """
    if output is None:
        yield None
        return
    if output == "-":
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        lines = Lines(output, sys.stdout)
        try:
            yield lines
        except BaseException:
            say(f"{lines.count} of {total} lines were written")
            raise
        return
    target = Path(output).expanduser().resolve()
    is_device = target.exists() and not target.is_file() and not target.is_dir()  # /dev/null, a pipe
    partial = target if is_device else target.with_name(f"{target.name}.partial-{os.getpid()}")
    check_output(output)
    try:
        stream = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise cannot_write(output, error) from None
    lines = Lines(output, stream)
    try:
        yield lines
        try:
            stream.close()
            if not is_device:
                partial.replace(target)
        except OSError as error:
            raise cannot_write(output, error) from None
    except BaseException:
        with suppress(OSError):  # closing flushes a line that could not be written
            stream.close()
        if lines.count and not is_device:
            with suppress(OSError):  # then the file keeps its name
                partial = partial.replace(target.with_name(f"{target.name}.partial"))
            say(f"{lines.count} of {total} lines are in {partial}")
        elif not is_device:
            partial.unlink(missing_ok=True)
        raise


def say(text: str) -> None:
    """Print a notice that is not part of the results, on stderr."""
    stderr.notice(text)


@dataclass
class Shown:
    """Completions as text for a reader: number, prompt, completion, and how it ended.

    Attributes:
        prompts: of all completions; empty strings if only the response is shown.
        streams: True to show text as it arrives, False to show each completion when it is done.
        open: index of the completion that is being shown, or None.
    """

    prompts: list[str]
    streams: bool
    open: int | None = None

    def text(self, index: int, text: str) -> None:
        """Show a piece of a completion."""
        if self.streams:
            self._begin(index)
            self._print(text)

    def completion(self, index: int, completion: Completion) -> None:
        """Show a completion, or only its end if its text has been streamed."""
        self._begin(index)
        if not self.streams:
            self._print(completion.completion)
        ended = "ended by EOS" if completion.finish_reason == "eos" else "ended by generation.max_new_tokens"
        self._print(f"\n({completion.num_tokens} tokens, {completion.tokens_per_s:.1f} tokens/s, {ended})\n\n", "dim")
        self.open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._break_off()

    def _begin(self, index: int) -> None:
        """Show the prompt, once."""
        if self.open == index:
            return
        self._break_off()
        self.open = index
        if len(self.prompts) > 1:
            self._print(f"[{index + 1}] ", "dim")
        self._print(self.prompts[index], "bold")

    def _break_off(self) -> None:
        """End a completion that will not be finished."""
        if self.open is not None:
            self._print("\n(not finished)\n\n", "dim")
            self.open = None

    def _print(self, text: str, style: str = "") -> None:
        console.rich.print(Text(printable(text), style=style), end="", soft_wrap=True)
        require_reader()


def printable(text: str) -> str:
    """Replace control characters: a model may write a terminal's escape sequences."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)
