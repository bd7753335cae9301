"""Prompt templates: how an instruction, with an input or without, becomes the text before a response.

A template is a YAML file with the two texts `with_input` and `without_input`, in which `{instruction}` and `{input}`
stand for those of an example (Python's `str.format`; `{{` and `}}` are braces). Imports no mindspore.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter

import yaml

from gpt2x.errors import UserError

FOLDER = Path(__file__).with_name("templates")
FILE = "prompt_template.yaml"  # beside a checkpoint's tokenizer
FIELDS = {"with_input": {"instruction", "input"}, "without_input": {"instruction"}}


@dataclass(frozen=True)
class Template:
    """The text before a response."""

    with_input: str
    without_input: str

    def prompt(self, instruction: str, given: str = "") -> str:
        """The prompt of an instruction and its input; an empty input is none."""
        if given:
            return self.with_input.format(instruction=instruction, input=given)
        return self.without_input.format(instruction=instruction)

    def save(self, directory: Path) -> None:
        """Write `FILE` into a directory."""
        text = yaml.safe_dump(asdict(self), allow_unicode=True, sort_keys=False, width=1000)
        (directory / FILE).write_text(text, encoding="utf-8")


def load_template(name: str, key: str) -> Template:
    """A template by its name in gpt2x/data/templates, or from a file.

    Args:
        name: such as alpaca, or a path.
        key: the configuration key that it comes from, for messages.

    Raises:
        UserError: no such template, or a file that is none.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = known.get(name, Path(name).expanduser())
    if not path.is_file():
        raise UserError(f"{key}={name} is no file, and none of the templates there are: {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{key}={name} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) != set(FIELDS):
        raise UserError(
            f"{key}={name} must have two keys, {' and '.join(FIELDS)}, each with the text of a prompt; "
            f"see {FOLDER / 'alpaca.yaml'}"
        )
    for part, wanted in FIELDS.items():
        check_text(content[part], wanted, f"{key}={name}: {part}")
    return Template(**content)


def check_text(text: object, wanted: set[str], place: str) -> None:
    """Refuse a text that does not name what it is filled with, or names something else.

    Raises:
        UserError: naming the placeholder.
    """
    if not isinstance(text, str):
        raise UserError(f"{place} holds {type(text).__name__}, not text")
    try:
        parts = [part for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{place}: {error}; a brace of the text itself is doubled: {{{{ or }}}}") from None
    allowed = ", ".join(f"{{{name}}}" for name in sorted(wanted, reverse=True))
    for _, name, form, conversion in parts:
        if name not in wanted or form or conversion:
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise UserError(
                f"{place} has the placeholder {{{written}}}, which is none of {allowed}; a brace of the text itself is "
                "doubled: {{ or }}"
            )
    if missing := wanted - {part[1] for part in parts}:
        raise UserError(f"{place} lacks the placeholder {', '.join(f'{{{name}}}' for name in sorted(missing))}")


def stored_template(directory: Path | None) -> Template | None:
    """The template beside a checkpoint's tokenizer; None where there is none.

    Raises:
        UserError: a file that is none.
    """
    if directory is None or not (directory / FILE).is_file():
        return None
    return load_template(str(directory / FILE), "the checkpoint's template")
