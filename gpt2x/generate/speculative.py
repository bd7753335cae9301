"""Speculative decoding (Leviathan et al., arXiv:2211.17192), greedy: a small model drafts, the model checks (floor 3).

The model sees the drafted tokens in one forward pass and says of each place what it would have taken. The longest
prefix of the draft that agrees is taken, and the model's own token behind it: what greedy decoding by the model alone
gives, in fewer of its passes. A row's next token overwrites what its rejected ones left in the caches.

Legend: B slots, K drafted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gpt2x.config import PredictConfig
from gpt2x.convert import load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError, require
from gpt2x.generate.slots import Slots
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import Pretrained, load_pretrained, padded_for, source_tokenizer


def draft_steps(num_drafted: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(T, L) of the steps of the model and of its draft, as `Slots.open` takes them."""
    return [(num_drafted + 1, num_drafted + 1)], [(2, 1), (1, 1)] if num_drafted > 1 else [(2, 1)]


def speculate(
    target: Slots, draft: Slots, texts: Mapping[int, Sequence[int]], num_drafted: int
) -> dict[int, list[int]]:
    """The next tokens of texts, one to K + 1 each: those drafted that the model takes, and one of its own.

    Args:
        target: holds all tokens of each text but the last.
        draft: holds all but the last two, at least.
        texts: by slot, of two tokens or more.
        num_drafted: K.
    """
    # the draft reads two: where all of its tokens were taken, it has not read the last of them
    parts = {slot: (len(text) - 2, text[-2:]) for slot, text in texts.items()}
    drafted: dict[int, list[int]] = {slot: [] for slot in texts}
    for ahead in range(num_drafted):
        found = draft.step(parts)  # (B, 1)
        for slot, text in texts.items():
            drafted[slot].append(int(found[slot, 0]))
            parts[slot] = (len(text) + ahead, drafted[slot][-1:])
    chosen = target.step(
        {slot: (len(text) - 1, [text[-1], *drafted[slot]]) for slot, text in texts.items()}, num_drafted + 1
    )  # (B, K + 1)
    return {slot: longest_agreed(drafted[slot], chosen[slot].tolist()) for slot in texts}


def longest_agreed(drafted: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """What the model has chosen behind its text and behind each drafted token (K + 1), up to the first that differs."""
    count = 0
    while count < len(drafted) and drafted[count] == chosen[count]:
        count += 1
    return list(chosen[: count + 1])


def check_draft(config: PredictConfig, *, verify: bool = False) -> None:
    """Reject a draft that has a different tokenizer, before any weights are read.

    Args:
        config: of `predict.py`.
        verify: whether to hash the draft's weights; a launcher does it for its processes.

    Raises:
        UserError: a draft that cannot be read, that the layout cannot share out, or whose tokens or embedding are not
            the model's.
    """
    path = config.generation.draft
    if path is None:
        return
    model = load_source(str(config.load), verify=False)
    tokenizer = source_tokenizer(model, config.tokenizer)
    try:
        draft = load_source(path, verify=verify)
        own = tokenizer if draft.tokenizer_dir is None else Tokenizer.load(draft.tokenizer_dir)
    except UserError as error:
        raise UserError(f"generation.draft={path}: {error}") from None
    for source, name in ((model, f"load={config.load}"), (draft, f"generation.draft={path}")):
        require(not source.model.is_classifier, f"{name} is a classifier, and generation.draft is for language models")
    require(
        own.fingerprint == tokenizer.fingerprint and draft.model.vocab_size == model.model.vocab_size,
        f"generation.draft={path} ({own.vocab_size} tokens, model.vocab_size={draft.model.vocab_size}) has not the "
        f"tokenizer of load={config.load} ({tokenizer.vocab_size} tokens, model.vocab_size={model.model.vocab_size}): "
        "give a smaller model that was trained with the same one, or generation.draft=null",
    )
    padded_for(draft.model, config.parallel, f"generation.draft={path}")


def load_draft(config: PredictConfig, mesh: Mesh, tokenizer_dir: Path | None) -> Pretrained | None:
    """The model of generation.draft, in the layout of the run; None where there is none.

    Args:
        config: of `predict.py`.
        mesh: the processes.
        tokenizer_dir: the model's own tokenizer, which a draft without one uses; None for the configured one.
    """
    if config.generation.draft is None:
        return None
    tokenizer = replace(config.tokenizer, path=str(tokenizer_dir)) if tokenizer_dir else config.tokenizer
    try:
        return load_pretrained(config.generation.draft, config.hardware, tokenizer, mesh, verify=False)
    except UserError as error:
        raise UserError(f"generation.draft={config.generation.draft}: {error}") from None
