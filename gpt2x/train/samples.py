"""The text samples of a training run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from gpt2x.config import GenerationConfig, ModelConfig, TrainConfig
from gpt2x.data.prepare import PreparedData
from gpt2x.errors import UserError

SAMPLE_HEAD = "=== step {} ===\n"


def rewind_samples(path: Path, step: int) -> None:
    """Cut off the samples behind `step`, which a resumed run draws again, the same ones."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    for head in re.finditer(r"^=== step (\d+) ===$", text, flags=re.MULTILINE):
        if int(head.group(1)) > step:
            path.write_text(text[: head.start()], encoding="utf-8")
            return


def sample_prompts(config: TrainConfig, data: PreparedData) -> list[str]:
    """trainer.sample_prompts, within the template of prompts where there is one; an empty one stays empty."""
    prompts, template = config.trainer.sample_prompts, data.template
    return prompts if template is None else [prompt and template.prompt(prompt) for prompt in prompts]


def sample_generation(config: TrainConfig, model: ModelConfig, data: PreparedData) -> GenerationConfig:
    """`config.generation` with max_new_tokens, and min_new_tokens, cut to what a window of max_seq_len has room for.

    Raises:
        UserError: when a sample prompt leaves no room for a single token.
    """
    longest = max((len(data.tokenizer.encode(prompt)) or 1 for prompt in sample_prompts(config, data)), default=1)
    room = model.max_seq_len - longest
    if room < 1:
        raise UserError(
            f"trainer.sample_prompts: a prompt has {longest} tokens and model.max_seq_len={model.max_seq_len} leaves "
            "no room for a completion; shorten it"
        )
    generation = config.generation
    return replace(generation, max_new_tokens=min(generation.max_new_tokens, room),
                   min_new_tokens=min(generation.min_new_tokens, room))  # fmt: skip
