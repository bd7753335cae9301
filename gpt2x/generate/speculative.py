"""Greedy speculative decoding (Leviathan et al., arXiv:2211.17192): the text itself or a small model drafts.

The model reads the drafted tokens in one forward pass and computes what it would have chosen at each position. The
longest prefix of the draft that agrees is accepted, followed by one token of the model. The text is that of greedy
decoding by the model alone, in fewer passes. Later tokens overwrite what rejected ones left in the caches.

Legend: B slots, K drafted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gpt2x.config import PredictConfig
from gpt2x.config.layout import fitted_to
from gpt2x.convert import load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError, require
from gpt2x.generate.slots import Slots
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import Pretrained, load_pretrained, source_tokenizer


def draft_steps(num_drafted: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (T, L) of the steps of the model and of a draft model, as `Slots.open` takes them."""
    return [(num_drafted + 1, num_drafted + 1)], [(2, 1), (1, 1)] if num_drafted > 1 else [(2, 1)]


def draft_by_model(draft: Slots, texts: Mapping[int, Sequence[int]], num_drafted: int) -> dict[int, list[int]]:
    """Return the next K tokens of each text as the draft writes them.

    Args:
        draft: has read at least all tokens of each text except the last two.
        texts: by slot, each with two or more tokens.
        num_drafted: K.
    """
    # the draft reads two tokens: if all of its tokens were accepted, it has not read the last of them
    parts = {slot: (len(text) - 2, text[-2:]) for slot, text in texts.items()}
    drafted: dict[int, list[int]] = {slot: [] for slot in texts}
    for ahead in range(num_drafted):
        tokens = draft.step(parts)  # (B, 1)
        for slot, text in texts.items():
            drafted[slot].append(int(tokens[slot, 0]))
            parts[slot] = (len(text) + ahead, drafted[slot][-1:])
    return drafted


def draft_by_lookup(text: Sequence[int], longest: int, num_drafted: int) -> list[int]:
    """Return K tokens: those that followed the text's last n tokens where these stood before (prompt lookup decoding).

    The latest such place counts, of the longest n-gram that occurs twice. Where nothing follows, the last token is
    repeated; the model reads K tokens in any case.

    Args:
        text: one token or more.
        longest: of the n-grams.
        num_drafted: K.
    """
    text = list(text)
    for size in range(min(longest, len(text) - 1), 0, -1):
        last = text[-size:]
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == last:
                after = text[start + size : start + size + num_drafted]
                return after + text[-1:] * (num_drafted - len(after))
    return text[-1:] * num_drafted


def verified(
    target: Slots, texts: Mapping[int, Sequence[int]], drafted: Mapping[int, list[int]]
) -> dict[int, list[int]]:
    """Return the next 1 to K + 1 tokens of each text: the drafted tokens that the model accepts, and one of its own.

    Args:
        target: has read all tokens of each text except the last.
        texts: by slot.
        drafted: by slot, K tokens.
    """
    num_scored = len(next(iter(drafted.values()))) + 1
    chosen = target.step(
        {slot: (len(text) - 1, [text[-1], *drafted[slot]]) for slot, text in texts.items()}, num_scored
    )  # (B, K + 1)
    return {slot: accepted_tokens(drafted[slot], chosen[slot].tolist()) for slot in texts}


def accepted_tokens(drafted: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Return the drafted tokens that equal the model's choices, and the model's choice after them.

    Args:
        drafted: K tokens.
        chosen: K + 1 tokens, the model's choice after the text and after each drafted token.
    """
    count = 0
    while count < len(drafted) and drafted[count] == chosen[count]:
        count += 1
    return list(chosen[: count + 1])


def check_draft(config: PredictConfig, *, verify: bool = False) -> None:
    """Reject a draft that has a different tokenizer, before any weights are read.

    Args:
        config: the configuration of `predict.py`.
        verify: True to hash the draft's weights; a launcher does it for its processes.

    Raises:
        UserError: a draft that cannot be read, that the layout cannot split, or whose tokens or embedding differ from
            the model's.
    """
    path = config.generation.draft
    if path is None:
        return
    model = load_source(str(config.load), verify=False)
    tokenizer = source_tokenizer(model, config.tokenizer)
    try:
        draft = load_source(path, verify=verify)
        draft_tokenizer = tokenizer if draft.tokenizer_dir is None else Tokenizer.load(draft.tokenizer_dir)
    except UserError as error:
        raise UserError(f"generation.draft={path}: {error}") from None
    for source, name in ((model, f"load={config.load}"), (draft, f"generation.draft={path}")):
        require(
            not source.model.is_classifier,
            f"{name} is a classifier, and generation.draft is for language models; use generation.draft=null.",
        )
    require(
        draft_tokenizer.fingerprint == tokenizer.fingerprint and draft.model.vocab_size == model.model.vocab_size,
        f"generation.draft={path} ({draft_tokenizer.vocab_size} tokens, model.vocab_size={draft.model.vocab_size}) "
        f"does not have the tokenizer of load={config.load} ({tokenizer.vocab_size} tokens, "
        f"model.vocab_size={model.model.vocab_size}); give a smaller model that was trained with the same tokenizer, "
        "or generation.draft=null.",
    )
    fitted_to(draft.model, config.parallel, f"generation.draft={path}")


def load_draft(config: PredictConfig, mesh: Mesh, tokenizer_dir: Path | None) -> Pretrained | None:
    """Load the model of generation.draft in the layout of the run; None without one.

    Args:
        config: the configuration of `predict.py`.
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
