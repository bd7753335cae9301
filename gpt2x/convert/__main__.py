"""`python -m gpt2x.convert --to hf|gpt2x|peft --output DIR SOURCE`: gpt2x, Hugging Face and PEFT directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt2x.checkpoint import save
from gpt2x.convert.huggingface import copy_tokenizer, export_huggingface, require_empty
from gpt2x.convert.source import Source, load_source
from gpt2x.errors import UserError
from gpt2x.lora.adapter import check_base, check_fits, open_adapter
from gpt2x.lora.merge import MergedSource
from gpt2x.lora.peft import export_peft


def export_gpt2x(source: Source, output: Path) -> None:
    """Writes the weights and the tokenizer of a source as a gpt2x checkpoint (no optimizer, no loop state).

    Raises:
        UserError: `output` holds files, or cannot be written.
    """
    require_empty(output)
    weights, tokenizer_dir = source.weights(), source.tokenizer_dir
    save(
        output,
        tensors={"weights": {name: weights.box(name) for name in weights}},
        model=source.model,
        run_config={},
        loop_state={},
        tokenizer_dir_writer=None if tokenizer_dir is None else lambda target: copy_tokenizer(tokenizer_dir, target),
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a fault, which it prints."""
    parser = argparse.ArgumentParser(prog="python -m gpt2x.convert", description=__doc__)
    parser.add_argument(
        "source", type=_path, help="a run, a gpt2x checkpoint or a Hugging Face GPT-2 directory; an adapter for peft"
    )
    parser.add_argument("--to", choices=["hf", "gpt2x", "peft"], required=True)
    parser.add_argument("--output", type=_path, required=True, help="a directory that does not exist or is empty")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--merge", metavar="ADAPTER", help="add an adapter (of a run, or PEFT's) to the weights")
    change.add_argument("--unmerge", metavar="ADAPTER", help="take an adapter out that was merged; up to rounding")
    chosen = parser.parse_args(arguments)
    try:
        require_empty(chosen.output)
        print(f"{chosen.output}: {convert(chosen)} written")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def convert(chosen: argparse.Namespace) -> str:
    """Does what the command line asks for; what was written, in words.

    Raises:
        UserError: a directory cannot be read or written, or an adapter does not fit.
    """
    if chosen.to == "peft":
        if chosen.merge or chosen.unmerge:
            raise UserError("--merge and --unmerge change a model: with --to peft the source is an adapter, drop them")
        adapter = open_adapter(chosen.source)
        export_peft(adapter, chosen.output)
        return f"the adapter {adapter.name}"
    source: Source = load_source(chosen.source)
    if chosen.merge or chosen.unmerge:
        adapter = open_adapter(chosen.merge or chosen.unmerge)
        if chosen.merge:
            check_fits(adapter, source.model, str(chosen.source))
            check_base([adapter], source.weights(), str(chosen.source))
        source = MergedSource(source, adapter, 1 if chosen.merge else -1)
    (export_huggingface if chosen.to == "hf" else export_gpt2x)(source, chosen.output)
    return f"{len(source.weights())} tensors of {source.model.name}"


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
