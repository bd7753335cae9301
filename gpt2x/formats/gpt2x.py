"""A gpt2x checkpoint without optimizer and loop state."""

from __future__ import annotations

from pathlib import Path

from gpt2x.checkpoint import save
from gpt2x.convert import WeightsSource
from gpt2x.convert.directories import require_empty
from gpt2x.convert.tokenizer_files import copy_tokenizer
from gpt2x.formats.base import Change, describe, open_model


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write the weights and the tokenizer as a gpt2x checkpoint."""
    model = open_model(source, change)
    require_empty(output)
    write_checkpoint(model, model.tokenizer_dir, output)
    return describe(model)


def write_checkpoint(model: WeightsSource, tokenizer_dir: Path | None, output: Path) -> None:
    """Write a checkpoint with weights and the tokenizer of `tokenizer_dir` only.

    Raises:
        UserError: it cannot be written.
    """
    weights = model.weights()
    save(
        output,
        tensors={"weights": {name: weights.box(name) for name in weights}},
        model=model.model,
        run_config={},
        loop_state={},
        tokenizer_dir_writer=None if tokenizer_dir is None else lambda target: copy_tokenizer(tokenizer_dir, target),
        special_ids=None if model.special_ids is None else model.special_ids.as_plain(),
    )
