"""What narrow weights and a narrow cache cost in perplexity.

    python benchmarks/narrow_weights.py --load DIR --text FILE --out FILE

The decoder's own kernels give the logits of every place of windows that do not overlap, with weights and cache of each
type on the same tokens: a window at once, as prompts are read, or a few tokens at a time (`--step`), as texts are
written. The difference of the mean losses has its standard error over windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from side_by_side import facts, write
from train_steps import cpu_hardware

KINDS = ("fp32/fp32", "bf16/fp32", "int8/fp32", "int4/fp32", "fp32/bf16", "int4/bf16")  # weights/cache


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--load", required=True, help="a gpt2x checkpoint or Hugging Face directory, with its tokenizer"
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument(
        "--seq-len", type=int, help="tokens of a window; default 128, or the model's where that is less"
    )
    parser.add_argument("--step", type=int, help="tokens per forward pass; default: the whole window")
    return parser.parse_args()


def window_losses(net, model, windows: np.ndarray, kind: str, step: int) -> np.ndarray:
    """The mean loss in nats of each window (R, T + 1)."""
    from gpt2x.evaluate.scoring import negative_log_likelihoods
    from gpt2x.generate.fused import FusedDecoder, Weights

    length = windows.shape[1] - 1
    decoder = FusedDecoder(model, Weights(net, *kind.split("/")), 1, length)
    positions = np.arange(length, dtype=np.int32).reshape(1, -1)
    losses = []
    for row in windows:
        logits = []
        for first in range(0, length, step):
            part = slice(first, min(length, first + step))
            logits.append(decoder.logits(row[None, part], positions[:, part], positions[:, : part.stop - first]))
        losses.append(negative_log_likelihoods(np.concatenate(logits), row[1:]).mean())
    return np.array(losses)


def main() -> None:
    options = arguments()
    from gpt2x.convert import load_source
    from gpt2x.data.tokenizer import Tokenizer
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.runtime.device import set_up_device

    hardware = cpu_hardware()
    set_up_device(hardware)
    source = load_source(options.load)
    options.seq_len = options.seq_len or min(128, source.model.max_seq_len)
    if options.seq_len > source.model.max_seq_len:
        raise SystemExit(f"--seq-len {options.seq_len} exceeds the model's {source.model.max_seq_len} positions")
    net = GPT2(source.model, hardware)
    load_weights(net, source.weights())
    ids = np.array(
        Tokenizer.load(source.tokenizer_dir or options.load).encode(options.text.read_text("utf-8")), np.int32
    )
    count = min(options.windows, (len(ids) - 1) // options.seq_len)
    if count < 2:
        raise SystemExit(f"--text {options.text} has {len(ids)} tokens, fewer than two windows of {options.seq_len}")
    windows = np.stack([ids[i * options.seq_len : (i + 1) * options.seq_len + 1] for i in range(count)])
    step = options.step or options.seq_len
    losses = {kind: window_losses(net, source.model, windows, kind, step) for kind in KINDS}
    result = {"windows": count, "seq_len": options.seq_len, "step": step, "weights": {}}
    for kind, values in losses.items():
        change = values - losses[KINDS[0]]
        result["weights"][kind] = {
            "loss": values.mean(), "perplexity": float(np.exp(values.mean())),
            "perplexity_ratio": float(np.exp(change.mean())),
            "loss_change": change.mean(), "standard_error": change.std(ddof=1) / np.sqrt(count),
        }  # fmt: skip
        found = result["weights"][kind]
        print(f"{kind}: perplexity {found['perplexity']:.4f}, {found['perplexity_ratio'] - 1:+.3%} "
              f"(loss {found['loss_change']:+.5f} ± {found['standard_error']:.5f})")  # fmt: skip
    write(result | facts(options), options.out)


if __name__ == "__main__":
    main()
