"""Prompt templates: how an instruction, with or without an input, becomes the text before a response.

A template is a YAML file with the two texts `with_input` and `without_input`. In them `{instruction}` and `{input}`
stand for those of an example (Python's `str.format`; `{{` and `}}` are braces).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter

import yaml

from gpt2x.errors import UserError
from gpt2x.runtime.json_text import well_formed
from gpt2x.runtime.yaml_text import read_yaml

FOLDER = Path(__file__).with_name("templates")
FILE = "prompt_template.yaml"  # beside a checkpoint's tokenizer
FIELDS = {"with_input": {"instruction", "input"}, "without_input": {"instruction"}}


@dataclass(frozen=True)
class Template:
    """The text before a response, with the placeholders {instruction} and {input}."""

    with_input: str
    without_input: str

    def prompt(self, instruction: str, input_text: str = "") -> str:
        """Return the prompt of an instruction and its input; an empty input counts as no input."""
        if input_text:
            return self.with_input.format(instruction=instruction, input=input_text)
        return self.without_input.format(instruction=instruction)

    def save(self, directory: Path) -> None:
        """Write `prompt_template.yaml` into a directory."""
        text = yaml.safe_dump(asdict(self), allow_unicode=True, sort_keys=False, width=1000)
        (directory / FILE).write_text(text, encoding="utf-8")


def load_template(name: str, key: str) -> Template:
    """Return a template by its name in gpt2x/data/templates, or from a file.

    Args:
        name: Such as alpaca, or a path.
        key: The configuration key that it comes from, for messages.

    Raises:
        UserError: No such template, or a file that is not a template.
    """
    templates = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = templates.get(name, Path(name).expanduser())
    if not path.is_file():
        raise UserError(f"{key}={name} is not a file or template. Give a path, or one of: {', '.join(templates)}.")
    try:
        content = well_formed(read_yaml(path, "Correct the file."))
    except UserError as error:
        raise UserError(f"{key}={name}: {error}") from None
    if not isinstance(content, dict) or set(content) != set(FIELDS):
        raise UserError(
            f"{key}={name} must have two keys, {' and '.join(FIELDS)}, each with the text of a prompt. "
            f"See {FOLDER / 'alpaca.yaml'}."
        )
    for part, placeholders in FIELDS.items():
        check_text(content[part], placeholders, f"{key}={name}: {part}")
    return Template(**content)


def check_text(text: object, placeholders: set[str], location: str) -> None:
    """Check that a text has exactly the `placeholders`.

    Args:
        text: Of a template.
        placeholders: Names in braces.
        location: Names the text in messages.

    Raises:
        UserError: A placeholder is missing or unknown, or has a conversion or a format; names it.
    """
    if not isinstance(text, str):
        raise UserError(f"{location} is {type(text).__name__}, not text. Write the text of a prompt.")
    try:
        parts = [part for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{location}: {error}. Double a brace of the text itself: {{{{ or }}}}.") from None
    allowed = ", ".join(f"{{{name}}}" for name in sorted(placeholders, reverse=True))
    for _, name, form, conversion in parts:
        if name not in placeholders or form or conversion:
            written = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise UserError(
                f"{location} has the placeholder {{{written}}}, which is none of {allowed}. Double a brace of "
                "the text itself: {{ or }}."
            )
    if missing := placeholders - {part[1] for part in parts}:
        names = ", ".join(f"{{{name}}}" for name in sorted(missing))
        raise UserError(f"{location} lacks the placeholder {names}. Add it to the text.")


def stored_template(directory: Path | None) -> Template | None:
    """Return the template beside a checkpoint's tokenizer; None if there is none.

    Raises:
        UserError: The file is not a template.
    """
    if directory is None or not (directory / FILE).is_file():
        return None
    return load_template(str(directory / FILE), "the checkpoint's template")
