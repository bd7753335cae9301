"""A directory that MindFormers loads."""

from __future__ import annotations

from pathlib import Path

from gpt2x.convert.mindformers import export_mindformers
from gpt2x.formats.base import Change, describe, open_model


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write a `.ckpt` file by MindFormers' names, its YAML file and the tokenizer."""
    model = open_model(source, change)
    export_mindformers(model, output)
    return describe(model)
