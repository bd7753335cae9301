"""Instructions and their responses, from JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, document
from gpt2x.data.reading.files import list_names, not_utf8, read_objects, require_file
from gpt2x.data.sources._examples import Examples
from gpt2x.data.template import load_template
from gpt2x.errors import UserError

SUFFIXES = (".json", ".jsonl")


class Instruction(NamedTuple):
    """A prompt, and the response that a model should give."""

    prompt: str
    response: str


class Instructions(Examples[Instruction]):
    """Rows of `instruction`, `input` (may be empty or missing) and `output`.

    As plain text a document is a prompt with its response.

    Attributes:
        template: Makes the prompts.
    """

    suffixes = SUFFIXES
    row_form = "instruction"

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        self.template = load_template(str(config.template), "dataset.template")
        super().__init__(config, cache)

    def read(self, path: Path, key: str) -> list[Instruction]:
        """Return the examples of one file, texts unchanged.

        Raises:
            UserError: A faulty row, with file and line.
        """
        require_file(path, key)
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{key}={path}: instructions are read from {', '.join(SUFFIXES)}. Convert the file.")
        examples, num_empty = [], 0
        for location, row in read_objects(path) if path.suffix.lower() == ".jsonl" else read_list(path):
            instruction, input_text, output = (
                text_of(row, name, location) for name in ("instruction", "input", "output")
            )
            if not instruction.strip():
                raise UserError(f"{location} has an empty 'instruction'. Write one, or remove the row.")
            if output.strip():
                examples.append(Instruction(self.template.prompt(instruction, input_text), output))
            elif self.config.skip_empty:
                num_empty += 1
            else:
                raise UserError(
                    f"{location} has an empty 'output': there is no response to learn. Write one, remove the row, or "
                    "leave out all such rows with dataset.skip_empty=true."
                )
        if num_empty:
            self.notes.append(f"{num_empty} rows of {path.name} with an empty output are left out (dataset.skip_empty)")
        if not examples:
            raise UserError(f"{key}={path} has no example. Give a file with instructions in it.")
        return examples

    def content_hash(self, split: str) -> str:
        """Return the sha256 of prompts and responses, in order."""
        return hashlib.sha256(json.dumps(self.examples(split)).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield prompts with their responses."""
        return chain.from_iterable(document(example.prompt + example.response) for example in self.examples(split))


def text_of(row: Mapping[str, object], name: str, location: str) -> str:
    """Return the text of a row's key; a missing input is empty.

    Raises:
        UserError: The key is missing or is not text; names location and key.
    """
    if name not in row and name != "input":
        raise UserError(
            f"{location} has no {name!r}; it has {list_names(row)}. A row needs 'instruction' and 'output', and may "
            "have 'input'. Rename its keys."
        )
    value = row.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{location}: {name!r} is {type(value).__name__}, not text. Correct the row.")
    return value


def read_list(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (location, object) of each element of a .json list; a location names the line where the element begins.

    Raises:
        UserError: Malformed JSON, a value that is not a list, or an element that is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    try:
        rows = json.loads(text)
    except ValueError as error:
        hint = " One object per line is .jsonl: rename the file." if "Extra data" in str(error) else ""
        raise UserError(f"{path} is not JSON: {error}. Correct it.{hint}") from error
    if not isinstance(rows, list):
        raise UserError(f'{path} is {type(rows).__name__}, not a list of objects, as [{{"instruction": …}}, …].')
    decode, at, line, counted = json.JSONDecoder().raw_decode, text.index("["), 1, 0
    for row in rows:
        while text[at] in "[, \t\r\n":  # safe: json.loads has accepted the whole text
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line} begins {type(row).__name__}, not a JSON object. Correct the file.")
        yield f"{path}, line {line}", row
        _, at = decode(text, at)


SOURCE = Instructions
