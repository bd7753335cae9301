"""What `predict.py` does: prompts from the command line or a file; completions, or a classifier's answers, to the
terminal or a JSONL file.
"""

from __future__ import annotations

import hashlib
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

from gpt2x.config import PredictConfig
from gpt2x.config.files import save_config
from gpt2x.errors import UserError
from gpt2x.generate.completion import Completion, Drafter, Generator
from gpt2x.generate.prompts import Prompt, choose_template, filled, read_prompts
from gpt2x.generate.replicas import Replicas
from gpt2x.generate.speculative import check_draft, load_draft
from gpt2x.generate.streaming import InputOrder
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import (
    choose_adapter,
    load_pretrained,
    open_pretrained,
    require_single,
)
from gpt2x.runtime import launch
from gpt2x.runtime.console import Console, console
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.hydra_job import output_dir


def run(config: PredictConfig) -> None:
    """Complete the prompts of `config`, or classify them.

    Raises:
        UserError: for a mistake in prompts, output, model or decoding options; all but those that need the model's
            tokenizer before anything is loaded.
    """
    prompts = read_prompts(config)
    with results(None if launch.worker_rank() else config.output, len(prompts)) as lines:
        set_up_device(config.hardware)
        mesh = Mesh(config.parallel, config.hardware.device_target)
        require_same(mesh, "the hash of all prompts", hashlib.sha256(json.dumps(prompts).encode()).hexdigest())
        adapters = choose_adapter(config.adapters, config.adapter)
        tokenizer_dir = check_draft(config)
        pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer, mesh, adapters)
        if pretrained.model.labels:
            from gpt2x.generate.classify import classify

            require_single(config, pretrained.model)
            classify(config, pretrained, [prompt.text for prompt in prompts], lines)
            return
        template = choose_template(config, pretrained.source, adapters)
        texts = filled(prompts, template, config)
        shown = Shown([""] * len(texts) if template else texts, streams=console.is_interactive)
        if lines is not None and template is not None:
            lines.asked = prompts
        smaller = load_draft(config, mesh, tokenizer_dir)
        draft = Drafter(smaller.net, smaller.model) if smaller else None
        generator = Generator(
            pretrained.net, pretrained.model, config.hardware, pretrained.tokenizer, mesh.tensor, draft
        )
        seed = config.seed if config.generation.seed is None else config.generation.seed
        reader = shown if lines is None else lines  # of the main process; the others show nothing
        with shown, InputOrder(reader.text, reader.completion) as order:
            completions = generator.complete(
                texts, config.generation, seed, on_text=order.text, on_completion=order.end, replicas=Replicas(mesh)
            )
    num_tokens = sum(completion.num_tokens for completion in completions)
    decoding, compiling = (mesh.gather(s).max() for s in (generator.decode_seconds, generator.compile_seconds))
    drafted, accepted = (mesh.gather(float(n)).sum() for n in (generator.num_drafted, generator.num_accepted))
    rate = f", {accepted / drafted:.0%} of drafted tokens accepted" if drafted else ""
    count = "1 completion" if len(completions) == 1 else f"{len(completions)} completions"
    where = "" if config.output in (None, "-") else f" -> {config.output}"
    if mesh.is_main:
        say(
            f"{count}{where}, {num_tokens} tokens in {decoding:.1f} s: {num_tokens / decoding:.1f} tokens/s{rate} "
            f"(compiling graphs, {compiling:.1f} s, is not counted)"
        )


def prepare_launch(config: PredictConfig) -> Path:
    """Check prompts and model, once for all processes: a run directory, with `config.yaml` for them.

    Raises:
        UserError: no prompts, a file that cannot be read, no model, or one that does not fit the layout.
    """
    prompts = read_prompts(config)
    adapters = choose_adapter(config.adapters, config.adapter)
    check_draft(config, verify=True)
    source, _, model = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters)
    if not model.labels:
        filled(prompts, choose_template(config, source, adapters), config)
    require_single(config, model)
    run_dir = output_dir()
    save_config(config, run_dir / "config.yaml")
    return run_dir


def json_line(completion: Completion, asked: Prompt | None = None) -> str:
    """A line of the JSONL output; of a prompt within a template what was asked, in the keys of training data."""
    if asked is None:
        values = {"prompt": completion.prompt, "completion": completion.completion}
    else:
        values = {"instruction": asked.text, "input": asked.given, "output": completion.completion}
    values |= {"num_tokens": completion.num_tokens, "tokens_per_s": round(completion.tokens_per_s, 3)}
    if completion.acceptance_rate is not None:
        values["acceptance_rate"] = round(completion.acceptance_rate, 3)
    return json.dumps(values, ensure_ascii=False) + "\n"


@dataclass
class Lines:
    """Completions as JSON lines, each flushed.

    Attributes:
        output: as the user gave it.
        count: lines written.
        asked: the prompts, where a template is around them.
    """

    output: str
    stream: IO[str]
    count: int = 0
    asked: list[Prompt] | None = None

    def text(self, index: int, text: str) -> None:
        """Nothing: a line is a whole completion."""

    def completion(self, index: int, completion: Completion) -> None:
        """Write a line."""
        self.write(json_line(completion, None if self.asked is None else self.asked[index]))

    def write(self, line: str) -> None:
        """Write a line that is given with its end.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.stream.write(line)
            self.stream.flush()
        except OSError as error:
            raise cannot_write(self.output, error) from None
        self.count += 1


def cannot_write(output: str, error: OSError) -> UserError:
    """What to say when `output` fails."""
    return UserError(f"output={output} cannot be written: {error.strerror or error}; give another file")


@contextmanager
def results(output: str | None, total: int) -> Iterator[Lines | None]:
    """Where JSON lines go: None for none, "-" for stdout, else a file.

    A file is written beside its place as `NAME.partial-PID`, which takes the place when the block has ended without a
    fault: an older file of that name stays whole until then, and stays when the run fails. Then the lines so far are
    kept as `NAME.partial`, and a notice says how many of `total` there are.

    Raises:
        UserError: it cannot be written; before the block, or where a line or the last step fails.
    """
    if output is None:
        yield None
        return
    if output == "-":
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")
        lines = Lines(output, sys.stdout)
        try:
            yield lines
        except BaseException:
            say(f"{lines.count} of {total} completions were written")
            raise
        return
    target = Path(output).expanduser().resolve()
    is_device = target.exists() and not target.is_file() and not target.is_dir()  # /dev/null, a pipe
    partial = target if is_device else target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(None, "the file that is there is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
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
        with suppress(OSError):  # of a line that could not be written
            stream.close()
        if lines.count and not is_device:
            with suppress(OSError):  # then it keeps its name
                partial = partial.replace(target.with_name(f"{target.name}.partial"))
            say(f"{lines.count} of {total} completions are in {partial}")
        elif not is_device:
            partial.unlink(missing_ok=True)
        raise


def say(text: str) -> None:
    """A notice that is no part of the results."""
    Console(sys.stderr).notice(text)


@dataclass
class Shown:
    """Completions as text for a reader: number, prompt, completion, and how it went.

    Attributes:
        prompts: of all completions; empty where the response alone is shown.
        streams: whether text is shown as it comes, or with the end of its completion.
    """

    prompts: list[str]
    streams: bool
    open: int | None = None  # whose text is being shown

    def text(self, index: int, text: str) -> None:
        """Show a piece of a completion."""
        if self.streams:
            self._begin(index)
            self._print(text)

    def completion(self, index: int, completion: Completion) -> None:
        """Show a completion, or only its end where its text has been shown."""
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


def printable(text: str) -> str:
    """The text without control characters: a model may write a terminal's escape sequences."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)
