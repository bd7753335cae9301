"""Whether speculative decoding pays: with a draft model, with lookups in the text, and without drafts.

    python benchmarks/drafts.py --load LARGE --draft SMALL --text FILE --out FILE

Prompts are parts of the text, decoded greedily one at a time; every way gives the same tokens, or the comparison ends
with an error. Ratios are seconds of plain decoding over those with drafts: above 1, drafts pay.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import side_by_side
from train_steps import cpu_hardware


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "passes over all prompts in each way, after one that is not timed")
    parser.add_argument("--load", required=True, help="a trained model: a checkpoint or Hugging Face directory")
    parser.add_argument("--draft", required=True, help="a smaller one with the same tokenizer")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text; its last tenth gives the prompts")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--weights", default="fp32", help="generation.weights")
    return side_by_side.parse(parser)


def generators(options: argparse.Namespace) -> tuple:
    """The tokenizer, and generators without and with the draft."""
    from gpt2x.convert import load_source
    from gpt2x.data.tokenizer import Tokenizer
    from gpt2x.generate import Generator
    from gpt2x.generate.completion import Drafter
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.runtime.device import set_up_device

    hardware = cpu_hardware()
    set_up_device(hardware)
    models = []
    for path in (options.load, options.draft):
        source = load_source(path)
        net = GPT2(source.model, hardware)
        load_weights(net, source.weights())
        models.append((net, source.model))
    tokenizer = Tokenizer.load(load_source(options.load).tokenizer_dir or options.load)
    plain = Generator(*models[0], hardware, tokenizer)
    return tokenizer, plain, Generator(*models[0], hardware, tokenizer, draft=Drafter(*models[1]))


def main() -> None:
    options = arguments()
    from gpt2x.config import GenerationConfig

    tokenizer, plain, drafting = generators(options)
    text = options.text.read_text("utf-8")
    ids = tokenizer.encode(text[-len(text) // 10 :])
    step = (len(ids) - options.prompt_tokens) // options.prompts
    prompts = [ids[i * step : i * step + options.prompt_tokens] for i in range(options.prompts)]
    config = GenerationConfig(
        max_new_tokens=options.new_tokens, temperature=0, eos_ids=[], batch_size=1, weights=options.weights
    )
    ways = {"plain": (plain, config)}
    for count in options.draft_tokens:
        ways[f"draft_{count}"] = drafting, replace(config, draft_tokens=count)
        ways[f"lookup_{count}"] = plain, replace(config, draft_tokens=count, draft_ngram=3)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    passes, texts = {}, {}
    for index in range(options.rounds + 1):
        for name, (generator, chosen) in ways.items():
            before, start = generator.slots.num_passes, time.perf_counter()
            texts[name] = generator.generate_ids(prompts, chosen, seed=0)
            seconds[name].append(time.perf_counter() - start)
            passes[name] = generator.slots.num_passes - before - len(prompts)
        print(
            f"run {index} of {options.rounds}: "
            + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items()),
            flush=True,
        )
    different = [name for name in ways if texts[name] != texts["plain"]]
    if different:
        raise SystemExit(f"{', '.join(different)} wrote other tokens than plain decoding")
    tokens = len(prompts) * options.new_tokens
    result, rows = {"ways": {}}, []
    for name, found in seconds.items():
        result["ways"][name] = {
            "tokens_per_s": tokens / sorted(found[1:])[len(found[1:]) // 2],
            "tokens_per_pass": tokens / passes[name],
        }
        if name != "plain":
            result |= side_by_side.ratio(f"ratio_{name}", seconds["plain"][1:], found[1:])
        way = result["ways"][name]
        rows.append(
            (
                name,
                f"{way['tokens_per_s']:.1f}",
                f"{way['tokens_per_pass']:.2f}",
                side_by_side.shown_ratio(result, f"ratio_{name}"),
            )
        )
    side_by_side.write(result | side_by_side.facts(options), options.out)
    side_by_side.table(
        "greedy, one text at a time", ("", "tokens/s", "tokens per pass", "plain decoding's time over it"), rows
    )


if __name__ == "__main__":
    main()
