"""An adapter as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from gpt2x.convert import load_source
from gpt2x.errors import UserError
from gpt2x.formats.base import Change
from gpt2x.lora.adapter import Adapter, scaled_queries
from gpt2x.lora.open import open_adapter
from gpt2x.lora.peft_export import export_peft


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write a PEFT directory of the adapter at `source`."""
    if change is not None:
        raise UserError("--merge and --unmerge change a model, but --to peft exports an adapter; drop them.")
    adapter = open_adapter(source)
    check_base_of_export(adapter)
    export_peft(adapter, output)
    return f"the adapter {adapter.name}"


def check_base_of_export(adapter: Adapter) -> None:
    """Reject an adapter of queries that gpt2x has scaled, and PEFT would not. A base that is not there is not asked.

    Raises:
        UserError: names the modules and the base.
    """
    if adapter.is_of_stored or adapter.base is None or not Path(adapter.base).is_dir():
        return
    if scaled := scaled_queries(adapter, load_source(adapter.base, verify=False)):
        raise UserError(
            f"--to peft: {adapter.path} changes the queries of {', '.join(scaled[:5])}, but config.json of its base "
            f"{adapter.base} has scale_attn_by_inverse_layer_idx=true or scale_attn_weights=false, so that PEFT would "
            "scale the adapter too. Export the merged model: --to hf --merge ADAPTER BASE."
        )
