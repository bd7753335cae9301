"""Instructions to rows of tokens, cached, and batches of rows to what a model takes.

mindspore is imported when needed. A row has L = seq_len + 1 tokens: of several examples one behind the other, or of
one. Its columns:

- `input_ids`: prompt, response and EOS of each example; EOS in the rest of the row;
- `attention_mask`: the number of a token's example within the row, from 1 on; 0 in the rest;
- `labels`: `input_ids` where a response or its EOS stands, -100 elsewhere, as Hugging Face's.

B is the batch size, T the inputs of a row: its tokens but the last.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data.cache import build_once
from gpt2x.data.mindrecord import Split, write_rows
from gpt2x.data.prepare import FORMAT, PreparedData, digest_of, find_tokenizer
from gpt2x.data.rows.labelled import padded_length
from gpt2x.data.sampling import Batch
from gpt2x.data.sources.instructions import Instruction, Instructions
from gpt2x.data.sources.registry import open_corpus
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

IGNORED = -100  # as a label: not learnt
ROWS_AT_ONCE = 1024


class Encoded(NamedTuple):
    """An example in tokens: `ids` with its EOS, of which the first `num_prompt` are the prompt."""

    ids: list[int]
    num_prompt: int


def prepare_instructions(
    dataset: DatasetConfig,
    tokenizer: TokenizerConfig,
    *,
    seq_len: int,
    cache: Path,
    checkpoint_tokenizer: Tokenizer | None = None,
    splits: tuple[str, ...] = ("train", "val"),
) -> PreparedData:
    """Make the rows of `splits`, or find them in the cache.

    A response that does not fit is cut, and then has no EOS; an example whose prompt leaves no room for a token of the
    response is left out. Notes count both.

    Args:
        dataset: Of `corpus=instructions`.
        tokenizer: Loaded from its path; trained on the training texts when the path is null.
        seq_len: Tokens a model sees at once.
        cache: As for `prepare`.
        own_tokenizer: A loaded checkpoint's; takes the place of `tokenizer`.
        splits: Which parts to make, of train and val.

    Raises:
        UserError: Wrong input, or no example that fits.
    """
    started = time.perf_counter()
    cache = Path(cache).expanduser().absolute()
    corpus = open_corpus(dataset, cache)
    assert isinstance(corpus, Instructions)
    chosen = checkpoint_tokenizer or find_tokenizer(tokenizer, corpus, cache, dataset)
    made: dict[str, Split | None] = {"train": None, "val": None}
    digests, notes, responses = [chosen.fingerprint], list(corpus.notes), {}
    for split in splits:
        if corpus.has(split):
            made[split], facts = _rows(dataset, corpus, split, chosen, seq_len, cache)
            digests.append(facts["digest"])
            notes += truncation_notes(split, facts, seq_len)
            responses[split] = facts["num_response_tokens"]
        elif split == "train" or len(splits) == 1:
            raise UserError(f"dataset={dataset.name} has no {split} examples. Give dataset.{split}_path.")
        else:
            notes.append("no validation examples: dataset.val_path is null")
    facts = {
        "corpus": dataset.name,
        "protocol": "packed" if dataset.packing else "an example a row",
        "block_len": seq_len + 1,
        "tokenizer": "the checkpoint's" if checkpoint_tokenizer else tokenizer.path or f"trained, {tokenizer.name}",
        "vocab_size": chosen.vocab_size,
        "seconds": time.perf_counter() - started,
        "tokens_per_s": None,
        "response_tokens": responses,
        "notes": notes,
    }
    return PreparedData(made["train"], made["val"], chosen, digest_of(digests), facts, template=corpus.template)


def truncation_notes(split: str, facts: dict[str, Any], seq_len: int) -> list[str]:
    """What did not fit, for the user."""
    notes = []
    if facts["num_cut"]:
        notes.append(
            f"{facts['num_cut']:,} {split} responses are cut to fit seq_len={seq_len} "
            f"({facts['num_lost']:,} tokens lost, no EOS learnt at the cut)"
        )
    if facts["num_left_out"]:
        notes.append(f"{facts['num_left_out']:,} {split} examples are left out: prompts beyond seq_len={seq_len}")
    return notes


def _rows(
    dataset: DatasetConfig, corpus: Instructions, split: str, tokenizer: Tokenizer, seq_len: int, cache: Path
) -> tuple[Split, dict[str, Any]]:
    """The rows of one split, and facts about them."""
    digest = digest_of([FORMAT, corpus.content_hash(split), tokenizer.fingerprint, seq_len, dataset.packing, split])
    directory, name = cache / "datasets" / f"{dataset.name}-{split}-{digest[:16]}", f"{split}.mindrecord"

    def write(temporary: Path) -> dict[str, Any]:
        length = seq_len + 1
        encoded = encode(corpus.examples(split), tokenizer)
        kept = [Encoded(example.ids[:length], example.num_prompt) for example in encoded if example.num_prompt < length]
        if not kept:
            raise UserError(
                f"trainer.seq_len={seq_len}: no {split} prompt of dataset={dataset.name} leaves room for a response; "
                f"the shortest has {min(example.num_prompt for example in encoded)} tokens. Use a longer seq_len."
            )
        lengths = [len(example.ids) for example in kept]
        places = pack(lengths, length) if dataset.packing else [[index] for index in range(len(kept))]
        rows = [[kept[index] for index in row] for row in places]
        num_rows = write_rows(temporary / name, tables(rows, length, tokenizer.eos_id), "gpt2x instructions")
        lost = [len(e.ids) - length for e in encoded if e.num_prompt < length < len(e.ids)]
        return {
            "num_blocks": num_rows,
            "num_tokens": sum(lengths),
            "num_documents": len(kept),
            "num_response_tokens": sum(lengths) - sum(example.num_prompt for example in kept),
            "num_cut": len(lost),
            "num_lost": sum(lost),
            "num_left_out": len(encoded) - len(kept),
        }

    facts = build_once(directory, write)
    rows = Split(
        (directory / name,), facts["num_blocks"], seq_len + 1, facts["num_tokens"], facts["num_documents"], 0, None
    )
    return rows, facts | {"digest": digest}


def encode(examples: Sequence[Instruction], tokenizer: Tokenizer) -> list[Encoded]:
    """The tokens of examples. Prompt and response are encoded apart: a prompt's tokens are those that `predict.py`
    gives to the model, whatever follows.
    """
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    responses = tokenizer.encode_batch([example.response for example in examples])
    return [
        Encoded([*prompt, *response, tokenizer.eos_id], len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Share out examples over rows of `size` tokens: best fit, the longest first (Ding et al., arXiv:2404.10830).

    Args:
        lengths: of the examples, each at most `size`.
        size: L.

    Returns:
        Rows of indices into `lengths`, each in ascending order, rows by their first.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], 0))
        if place == len(room):
            rows.append([index])
            left = size - lengths[index]
            insort(room, (left, len(rows) - 1))
        else:
            left, row = room.pop(place)
            rows[row].append(index)
            insort(room, (left - lengths[index], row))
    return sorted(sorted(row) for row in rows)


def tables(rows: Sequence[Sequence[Encoded]], length: int, eos_id: int) -> Iterator[tuple[np.ndarray, ...]]:
    """`input_ids`, `attention_mask` and `labels`, int32 (R, length) each, some rows at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        ids = np.full((len(some), length), eos_id, np.int32)
        numbers, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for index, row in enumerate(some):
            at = 0
            for number, example in enumerate(row, 1):
                end, response = at + len(example.ids), at + example.num_prompt
                ids[index, at:end], numbers[index, at:end] = example.ids, number
                labels[index, response:end] = ids[index, response:end]
                at = end
        yield ids, numbers, labels


class Inputs(NamedTuple):
    """What a model takes of a batch.

    Attributes:
        ids: (B, T + 1) int32.
        counted: (B, T) fp32, 1 where the token behind is learnt.
        starts: (B, T) int32, the column at which each token's example begins.
    """

    ids: np.ndarray
    counted: np.ndarray
    starts: np.ndarray


def inputs_of(batch: Batch, *, width: int | None = None) -> Inputs:
    """A batch of rows as a model takes it.

    Args:
        batch: rows as `tables` makes them.
        width: T; None: the least power of two, from 32 on, that holds the longest row, or the rows' own.
    """
    ids, numbers, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    if width is None:
        longest = int((numbers != 0).sum(axis=1).max()) - 1
        width = padded_length(longest, ids.shape[1] - 1)
    columns = np.arange(width, dtype=np.int32)
    begins = np.diff(numbers[:, :width], axis=1, prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(begins, columns, 0), axis=1).astype(np.int32)
    counted = (labels[:, 1 : width + 1] != IGNORED).astype(np.float32)
    return Inputs(ids[:, : width + 1], counted, starts)
