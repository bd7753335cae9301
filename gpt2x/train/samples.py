"""The text samples of a training run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt2x.config import GenerationConfig, ModelConfig, TrainConfig
from gpt2x.data.prepare import PreparedData
from gpt2x.data.tokenizer import Tokenizer
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


def check_prompts(prompts: Sequence[str], tokenizer: Tokenizer, max_seq_len: int) -> int:
    """Return the number of tokens that the longest prompt leaves for its completion.

    Raises:
        UserError: a sample prompt leaves no room for a single token.
    """
    longest = max((len(tokenizer.encode(prompt)) or 1 for prompt in prompts), default=1)
    if longest >= max_seq_len:
        raise UserError(
            f"trainer.sample_prompts: a prompt has {longest} tokens and model.max_seq_len={max_seq_len} leaves no room "
            "for a completion. Shorten it."
        )
    return max_seq_len - longest


def sample_generation(config: TrainConfig, model: ModelConfig, data: PreparedData) -> GenerationConfig:
    """Return `config.generation` with max_new_tokens and min_new_tokens cut to what a window has room for."""
    room = check_prompts(sample_prompts(config, data), data.tokenizer, model.max_seq_len)
    generation = config.generation
    return replace(generation, max_new_tokens=min(generation.max_new_tokens, room),
                   min_new_tokens=min(generation.min_new_tokens, room))  # fmt: skip
