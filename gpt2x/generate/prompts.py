"""Prompts of `predict.py`: read from the command line or a file, and put into the template of a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import PredictConfig
from gpt2x.convert import WeightsSource
from gpt2x.data.reading.files import read_lines
from gpt2x.data.reading.folders import require_file
from gpt2x.data.reading.tables import CORRECT_LINE
from gpt2x.data.reading.values import text_of
from gpt2x.data.template import Template, load_template, stored_template
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter
from gpt2x.runtime.json_text import parse_json, well_formed


class Prompt(NamedTuple):
    """What a user types: a text, or an instruction with its input."""

    text: str
    input: str = ""  # of an instruction
    is_instruction: bool = False  # True if it needs a template


def read_prompts(config: PredictConfig) -> list[Prompt]:
    """Return the prompts of the command line, or of a .txt (one per line, without blank lines) or .jsonl file.

    Raises:
        UserError: no prompts, or a file that cannot be read, with the line.
    """
    if config.prompts_file is None:
        if not config.prompts:
            raise UserError("prompts=[] is empty; give at least one prompt, as 'prompts=[\"Once upon a time\"]'.")
        return [Prompt(well_formed(text)) for text in config.prompts]
    path = require_file(Path(config.prompts_file).expanduser(), "prompts_file")
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"prompts_file={path}: files ending in {suffix or 'nothing'!r} cannot be read; "
            "give a .txt (one prompt per line) or a .jsonl (key `prompt`, or `instruction`)."
        )
    lines = [(number, line.rstrip("\n")) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise UserError(f"prompts_file={path} has only blank lines; give one prompt per line.")
    return [Prompt(line) if suffix == ".txt" else json_prompt(path, number, line) for number, line in lines]


def json_prompt(path: Path, number: int, line: str) -> Prompt:
    """Return the key `prompt` of a line of JSON, or its keys `instruction` and `input`.

    Raises:
        UserError: naming the file and the line.
    """
    location = f"{path}, line {number}"
    row = parse_json(line, location, CORRECT_LINE, unique_keys=True)
    key = "instruction" if isinstance(row, dict) and "prompt" not in row and "instruction" in row else "prompt"
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise UserError(
            f'{location} is not a JSON object with a text `{key}`, such as {{"{key}": "To be"}}. Correct it.'
        )
    extra = text_of(row.get("input"), "input", location) if key == "instruction" else ""
    return Prompt(row[key], extra, key == "instruction")


def choose_template(config: PredictConfig, source: WeightsSource, adapters: Sequence[Adapter]) -> Template | None:
    """Return the template that `template=` names; by default that with which the adapter or the model was tuned.

    Raises:
        UserError: there is no such template, or the file is not a template.
    """
    if config.template is None:
        return None
    if config.template != "checkpoint":
        return load_template(config.template, "template")
    stored = [stored_template(adapter.tokenizer_dir) for adapter in adapters]
    return next(filter(None, stored), None) or stored_template(source.tokenizer_dir)


def filled(prompts: Sequence[Prompt], template: Template | None, config: PredictConfig) -> list[str]:
    """Return the texts that a model completes: prompts within the template, or as they are.

    Raises:
        UserError: instructions without a template.
    """
    if template is not None:
        return [template.prompt(prompt.text, prompt.input) for prompt in prompts]
    if any(prompt.is_instruction for prompt in prompts):
        reason = "template=null" if config.template is None else f"load={config.load} was tuned without one"
        raise UserError(
            f"prompts_file={config.prompts_file} has rows of `instruction`, which need a template, and "
            f"{reason}; give template=alpaca, or rows of `prompt`."
        )
    return [prompt.text for prompt in prompts]
