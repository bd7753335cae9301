"""What `predict.py` does with a language model: a completion of each prompt, as text or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpt2x.config import PredictConfig
from gpt2x.convert.special_ids import EOS, GENERATION_FILE, SpecialIds
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.generate.completion import Completion, Drafter, Generator
from gpt2x.generate.output import CompletionLines, Lines, Shown, say
from gpt2x.generate.prompts import Prompt, choose_template, filled
from gpt2x.generate.replicas import Replicas
from gpt2x.generate.speculative import load_draft
from gpt2x.generate.streaming import InputOrder
from gpt2x.lora.adapter import Adapter
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.console import console


def complete_prompts(
    config: PredictConfig,
    prompts: list[Prompt],
    pretrained: Pretrained,
    adapters: Sequence[Adapter],
    mesh: Mesh,
    lines: Lines | None,
) -> str:
    """Complete prompts; return a summary for the user. Every process makes this call.

    Args:
        config: the configuration of `predict.py`.
        prompts: texts, or instructions for the template.
        pretrained: a language model.
        adapters: what is merged into it; an adapter's template comes before the model's.
        mesh: the processes.
        lines: destination of JSON lines, or None for the terminal. Only the main process has lines.

    Raises:
        UserError: a mistake in the prompts, the template or the decoding options, or a line that cannot be written.
    """
    template = choose_template(config, pretrained.source, adapters)
    texts = filled(prompts, template, config)
    smaller = load_draft(config, mesh, pretrained.source.tokenizer_dir)
    draft = Drafter(smaller.net, smaller.model) if smaller else None
    generator = Generator(
        pretrained.net,
        pretrained.model,
        config.hardware,
        pretrained.tokenizer,
        mesh.tensor,
        draft,
        pretrained.special_ids,
    )
    if mesh.is_main:
        for note in differences(pretrained.special_ids, pretrained.tokenizer, config):
            say(note)
    seed = config.seed if config.generation.seed is None else config.generation.seed
    shown = Shown([""] * len(texts) if template else texts, streams=console.is_interactive)
    reader = shown if lines is None else CompletionLines(lines, prompts if template else None)
    with shown, InputOrder(reader.text, reader.completion) as order:
        completions = generator.complete(
            texts, config.generation, seed, on_text=order.text, on_completion=order.end, replicas=Replicas(mesh)
        )
    decoding, compiling = (mesh.gather(s).max() for s in (generator.decode_seconds, generator.compile_seconds))
    return summary(completions, float(decoding), float(compiling), config.output)


def differences(ids: SpecialIds, tokenizer: Tokenizer, config: PredictConfig) -> list[str]:
    """Return what a user may not expect: options of the model that are not used, and an EOS that ends nothing."""
    notes = []
    if options := ids.options():
        named = ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())
        notes.append(
            f"note: transformers decodes load={config.load} with {named} ({GENERATION_FILE}); gpt2x decodes by "
            "generation.* only"
        )
    if config.generation.eos_ids is None and tokenizer.eos_id not in ids.eos:
        named = ", ".join(map(str, ids.eos)) or "nothing"
        notes.append(
            f"note: {EOS} of load={config.load} is {named}, as in transformers; the tokenizer's {tokenizer.eos_token} "
            f"({tokenizer.eos_id}) ends no completion. generation.eos_ids=[{tokenizer.eos_id}] changes that"
        )
    return notes


def summary(completions: Sequence[Completion], decoding_s: float, compiling_s: float, output: str | None) -> str:
    """Return the last line of a run.

    Every completion is in the list once, even if several ranks computed it, so its tokens are counted once. Seconds are
    those of the slowest rank.
    """
    num_tokens, num_drafted, num_accepted = (
        sum(getattr(completion, attribute) for completion in completions)
        for attribute in ("num_tokens", "num_drafted", "num_accepted")
    )
    rate = f", {num_accepted / num_drafted:.0%} of drafted tokens accepted" if num_drafted else ""
    count = "1 completion" if len(completions) == 1 else f"{len(completions)} completions"
    target = "" if output in (None, "-") else f" -> {output}"
    return (
        f"{count}{target}, {num_tokens} tokens in {decoding_s:.1f} s: {num_tokens / decoding_s:.1f} tokens/s{rate} "
        f"(compiling graphs, {compiling_s:.1f} s, is not counted)"
    )
