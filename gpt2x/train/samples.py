"""Text that a model completes while it trains: which prompts, how, and where the samples are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpt2x.config import GenerationConfig, ParallelConfig, TrainConfig
from gpt2x.data.template import Template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.tasks.base import Task

SAMPLE_HEAD = "=== step {} ===\n"


def length_at(content: bytes, step: int) -> int:
    """Return where the samples after `step` begin in a `samples.txt`; a resumed run draws the same ones again."""
    heads = re.finditer(rb"^=== step (\d{1,18}) ===$", content, flags=re.MULTILINE)
    return next((head.start() for head in heads if int(head[1]) > step), len(content))


@dataclass(frozen=True)
class Samples:
    """The prompts that a model completes while it trains.

    Attributes:
        prompts: within the template of the data, if there is one; "" starts from EOS.
        generation: config.generation, with lengths reduced to the room that the window leaves.
        seed: of the draws, the same at every step.
    """

    prompts: list[str]
    generation: GenerationConfig
    seed: int


def plan_samples(config: TrainConfig, template: Template | None, tokenizer: Tokenizer, max_seq_len: int) -> Samples:
    """Return the samples of a run.

    Args:
        config: of the run.
        template: of the prompts; None if they are used as they are.
        tokenizer: of the run.
        max_seq_len: of the model.

    Raises:
        UserError: a sample prompt leaves no room for a single token.
    """
    prompts, generation = config.trainer.sample_prompts, config.generation
    if template is not None:
        prompts = [prompt and template.prompt(prompt) for prompt in prompts]
    longest = max((len(tokenizer.encode(prompt)) or 1 for prompt in prompts), default=1)
    room = max_seq_len - longest
    if room < 1:
        raise UserError(
            f"trainer.sample_prompts: a prompt has {longest} tokens and model.max_seq_len={max_seq_len} leaves no room "
            "for a completion. Shorten it."
        )
    new_tokens = {name: min(getattr(generation, name), room) for name in ("max_new_tokens", "min_new_tokens")}
    return Samples(
        prompts, replace(generation, **new_tokens), config.seed if generation.seed is None else generation.seed
    )


def can_sample(task: Task, parallel: ParallelConfig) -> bool:
    """Return True if text can be sampled while training, which requires all layers and single tokens on each rank."""
    return task.samples_text and parallel.pipeline == 1 and not (parallel.sequence_parallel or parallel.splits_weights)
