"""A directory that transformers loads."""

from __future__ import annotations

from pathlib import Path

from gpt2x.convert.huggingface import export_huggingface
from gpt2x.formats.base import Change, describe, open_model


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write a Hugging Face GPT-2 directory."""
    model = open_model(source, change)
    export_huggingface(model, output)
    return describe(model)
