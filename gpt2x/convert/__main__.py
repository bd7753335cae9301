"""`python -m gpt2x.convert --to hf|gpt2x --output DIR SOURCE`: gpt2x checkpoints and Hugging Face directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt2x.checkpoint import save
from gpt2x.convert.huggingface import copy_tokenizer, export_huggingface, require_empty
from gpt2x.convert.source import Source, load_source
from gpt2x.errors import UserError


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
    parser.add_argument("source", type=Path, help="a run, a gpt2x checkpoint or a Hugging Face GPT-2 directory")
    parser.add_argument("--to", choices=["hf", "gpt2x"], required=True)
    parser.add_argument(
        "--output",
        type=lambda text: Path(text).expanduser(),
        required=True,
        help="a directory that does not exist or is empty",
    )
    chosen = parser.parse_args(arguments)
    try:
        require_empty(chosen.output)
        source = load_source(chosen.source)
        (export_huggingface if chosen.to == "hf" else export_gpt2x)(source, chosen.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{chosen.output}: {len(source.weights())} tensors of {source.model.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
