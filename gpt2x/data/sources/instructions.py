"""Instructions and their responses, from JSON and other tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, document
from gpt2x.data.reading.folders import require_kind
from gpt2x.data.reading.tables import TABLES, Columns, read_rows
from gpt2x.data.reading.values import text_of
from gpt2x.data.sources._examples import Examples
from gpt2x.data.template import load_template
from gpt2x.errors import UserError

COLUMNS = Columns(
    ["instruction", "output"],
    "A row needs 'instruction' and 'output', and may have 'input'. Rename its keys.",
    optional=["input"],
)


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

    suffixes = tuple(TABLES)
    row_form = "instruction"

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        self.template = load_template(str(config.template), "dataset.template")
        super().__init__(config, cache)

    def read(self, path: Path, key: str) -> list[Instruction]:
        """Return the examples of one file, texts unchanged.

        Raises:
            UserError: A faulty row, with file and line.
        """
        require_kind(path, key, self.suffixes, "instructions")
        examples, num_empty = [], 0
        for location, row in read_rows(path, COLUMNS):
            instruction, input_text, output = (
                text_of(row.get(name), name, location) for name in ("instruction", "input", "output")
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


SOURCE = Instructions
