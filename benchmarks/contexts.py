"""Time of a token against the length of the text before it, and of a prompt against its length.

    python benchmarks/contexts.py --out FILE [--model small] [--threads 2]

Random weights of a shape of `generate.py`; each combination of weights and cache at each length. A token's time is that
of a prompt with 32 more tokens, less that of the prompt with one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from decoders import gpt2x_decoder
from generate import DEFAULT_TOKENIZER, INITIALIZER_RANGE, SHAPES, TOKENIZER_FILES
from train_steps import save_weights

KINDS = {"fp32": ("fp32", "fp32"), "int8": ("int8", "fp32"), "int8, cache bf16": ("int8", "bf16")}
LENGTHS = (64, 128, 256, 512, 960)
NEW_TOKENS = 33


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "timed runs of each length, after one that is not timed")
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_TOKENIZER, help="folder with GPT-2's tokenizer")
    parser.add_argument("--model", choices=SHAPES, default="small")
    options = side_by_side.parse(parser)
    options.shape, options.dropout, options.initializer_range = list(SHAPES[options.model]), 0.0, INITIALIZER_RANGE
    return options


def contestant(options: argparse.Namespace, folder: Path, weights: str, cache: str):
    """Return `run(length) -> (seconds of the prompt with one token, milliseconds of each later token)`."""
    decode = gpt2x_decoder(options, folder, weights=weights, cache=cache)

    def run(length: int) -> list[float]:
        ids = np.random.default_rng(0).integers(0, options.shape[-1] - 1, (1, length)).tolist()
        seconds = []
        for new in (1, NEW_TOKENS):
            start = time.perf_counter()
            decode((ids, new))
            seconds.append(time.perf_counter() - start)
        return [seconds[0], 1e3 * (seconds[1] - seconds[0]) / (NEW_TOKENS - 1)]

    return run


def contestants() -> dict[str, Any]:
    """Return the combinations by name."""
    return {
        name: lambda options, folder, types=types: contestant(options, folder, *types) for name, types in KINDS.items()
    }


def main() -> None:
    if side_by_side.is_worker():
        side_by_side.serve(contestants(), lambda _, request: request)
        return
    options = arguments()
    found: dict[str, dict[int, list[list[float]]]] = {name: {length: [] for length in LENGTHS} for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        save_weights(options, Path(folder))
        for name in TOKENIZER_FILES:
            (Path(folder) / name).symlink_to(options.tokenizer.absolute() / name)
        with side_by_side.working(__file__, list(KINDS), options, Path(folder)) as workers:
            for length in LENGTHS:
                for index in range(1 + options.rounds):
                    for worker in side_by_side.in_turn(workers, index):
                        found[worker.name][length].append(worker.run(length)["value"])
                print(f"length {length} is measured", flush=True)
    result: dict[str, Any] = {"lengths": {}}
    rows = []
    for length in LENGTHS:
        row = [str(length)]
        for name in KINDS:
            prompt, token = np.array(found[name][length][1:]).T
            spread = side_by_side.spread(token.tolist())
            result["lengths"].setdefault(length, {})[name] = {
                "prompt_tokens_per_s": length / float(np.median(prompt)), "token_ms": spread,
            }  # fmt: skip
            row += [
                f"{length / np.median(prompt):,.0f}",
                f"{spread['median']:.2f} ({side_by_side.quartiles(spread, 2)})",
            ]
        rows.append(row)
    side_by_side.write(result | side_by_side.facts(options), options.out)
    columns = ["tokens before"] + [text for name in KINDS for text in (f"{name}: prompt/s", "ms per token")]
    side_by_side.table(f"GPT-2 {options.model}, batch 1, {options.threads} threads", columns, rows)


if __name__ == "__main__":
    main()
