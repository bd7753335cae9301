"""An adapter as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.formats.base import Change
from gpt2x.lora.open import open_adapter
from gpt2x.lora.peft_export import export_peft


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write a PEFT directory of the adapter at `source`."""
    if change is not None:
        raise UserError("--merge and --unmerge change a model, but --to peft exports an adapter; drop them.")
    adapter = open_adapter(source)
    export_peft(adapter, output)
    return f"the adapter {adapter.name}"
