"""Labelled texts to MindRecord rows, cached, and rows to batches of one length (mindspore is imported when needed).

B is the batch size, T the length that a batch is cut to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data.cache import build_once, read_meta
from gpt2x.data.mindrecord import Split, find_records, scan_rows, write_rows
from gpt2x.data.prepare import FORMAT, PreparedData, corpus_beside, digest_of, find_tokenizer, known_facts
from gpt2x.data.sources.files import hash_files, list_names
from gpt2x.data.sources.labelled import Example, Labelled
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

LEAST_LENGTH = 32
EXAMPLES_AT_ONCE = 2048


def prepare_labelled(
    dataset: DatasetConfig,
    tokenizer: TokenizerConfig,
    *,
    seq_len: int,
    cache: Path,
    checkpoint_tokenizer: Tokenizer | None = None,
    splits: tuple[str, ...] = ("train", "val"),
    labels: Sequence[str] | None = None,
) -> PreparedData:
    """Make the rows of `splits`, or find them in the cache: a text a row, filled up to seq_len with EOS on the right.

    `num_blocks` of a split counts texts, `dropped_tokens` those behind seq_len. MindRecord files are used as they are,
    padded on either side.

    Args:
        dataset: Of `corpus=labelled`.
        tokenizer: Loaded from its path; trained on the training texts when the path is null.
        seq_len: Tokens of a text that are kept, its first.
        cache: As for `prepare`.
        own_tokenizer: A loaded checkpoint's; takes the place of `tokenizer`.
        splits: Which parts to make, of train and val.
        labels: A classifier's; None: the data's.

    Raises:
        UserError: Wrong input, or a label that is none of `labels`.
    """
    started = time.perf_counter()
    cache = Path(cache).expanduser().absolute()
    records = find_records(dataset, splits)
    corpus = None if len(records) == len(splits) else corpus_beside(dataset, set(records), cache)
    assert corpus is None or isinstance(corpus, Labelled)
    chosen = checkpoint_tokenizer or find_tokenizer(tokenizer, corpus, cache, dataset)
    names = tuple(labels or (corpus.labels() if corpus else record_labels(dataset, records)))
    made: dict[str, Split | None] = {"train": None, "val": None}
    digests, notes = [chosen.fingerprint, *names], list(corpus.notes) if corpus else []
    for split in splits:
        if split in records:
            made[split] = open_rows(*records[split], split, len(names), chosen)
            digests.append(hash_files(records[split][1]))
        elif corpus is not None and corpus.has(split):
            rows, digest, num_cut = _rows(dataset, corpus, split, names, chosen, seq_len, cache)
            made[split] = rows
            digests.append(digest)
            if num_cut:
                notes.append(
                    f"{num_cut:,} of {rows.num_blocks:,} {split} texts are cut to their first {seq_len} tokens "
                    f"({rows.dropped_tokens:,} tokens lost)"
                )
        elif split == "train" or len(splits) == 1:
            raise UserError(f"dataset={dataset.name} has no {split} texts. Give dataset.{split}_path or dataset.path.")
        else:
            notes.append("no validation texts: dataset.val_path is null")
    facts: dict[str, object] = {
        "corpus": dataset.name,
        "protocol": dataset.protocol,
        "block_len": seq_len,
        "tokenizer": "the checkpoint's" if checkpoint_tokenizer else tokenizer.path or f"trained, {tokenizer.name}",
        "vocab_size": chosen.vocab_size,
        "seconds": time.perf_counter() - started,
        "tokens_per_s": None,
        "notes": notes,
    }
    return PreparedData(made["train"], made["val"], chosen, digest_of(digests), facts, names)


def _rows(
    dataset: DatasetConfig, corpus: Labelled, split: str, names: tuple[str, ...], tokenizer: Tokenizer, seq_len: int,
    cache: Path,
) -> tuple[Split, str, int]:  # fmt: skip
    """The rows of one split, their digest, and how many texts were cut."""
    ids = label_ids(corpus, split, names)
    digest = digest_of([FORMAT, names, corpus.content_hash(split), tokenizer.fingerprint, seq_len, split])
    directory, name = cache / "datasets" / f"{dataset.name}-{split}-{digest[:16]}", f"{split}.mindrecord"

    def write(temporary: Path) -> dict[str, Any]:
        counts = np.zeros(3, np.int64)  # tokens kept, tokens lost, texts cut

        def batches() -> Iterator[tuple[np.ndarray, ...]]:
            for start in range(0, len(ids), EXAMPLES_AT_ONCE):
                examples = corpus.examples(split)[start : start + EXAMPLES_AT_ONCE]
                rows, mask, lengths = encode(examples, tokenizer, seq_len)
                lost = np.maximum(lengths - seq_len, 0)
                counts[:] += mask.sum(), lost.sum(), (lost > 0).sum()
                yield rows, mask, np.array(ids[start : start + EXAMPLES_AT_ONCE], np.int32)[:, None]

        num_rows = write_rows(temporary / name, batches(), "gpt2x labelled texts")
        return {
            "num_blocks": num_rows, "block_len": seq_len, "num_tokens": int(counts[0]), "num_documents": num_rows,
            "dropped_tokens": int(counts[1]), "num_words": None, "num_cut": int(counts[2]),
        }  # fmt: skip

    facts = dict(build_once(directory, write))
    num_cut = facts.pop("num_cut")
    return Split(files=(directory / name,), **facts), digest, num_cut


def label_ids(corpus: Labelled, split: str, names: Sequence[str]) -> list[int]:
    """The class of each example of a split.

    Raises:
        UserError: a label that is none of `names`, with file and line.
    """
    id_of = {name: i for i, name in enumerate(names)}
    found = []
    for example in corpus.examples(split):
        name = corpus.name_of(example.value)
        if name not in id_of:
            raise UserError(
                f"{example.location} has the label {name!r}, which is none of {list_names(names)}: correct it, name it "
                "by dataset.label_names, or use a model and training texts that know it"
            )
        found.append(id_of[name])
    return found


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids and attention mask, int32 (R, seq_len) each, and the texts' whole lengths (R,); an empty text is one EOS."""
    found = tokenizer.encode_batch([example.text for example in examples])
    rows = np.full((len(found), seq_len), tokenizer.eos_id, np.int32)
    lengths = np.array([max(len(ids), 1) for ids in found], np.int64)
    for row, ids in zip(rows, found, strict=True):
        row[: len(ids)] = ids[:seq_len]
    mask = (np.arange(seq_len) < lengths[:, None]).astype(np.int32)
    return rows, mask, lengths


def compact(ids: np.ndarray, mask: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Move each row's attended tokens to the left and cut what all rows leave empty.

    A causal model gives them the positions and the attention that they have without any padding, left or right: behind
    a row's end nothing is attended, so no mask is needed.

    Args:
        ids: (B, L) int32.
        mask: (B, L), 0 where there is no token.
        seq_len: tokens kept at most, a row's first.

    Returns:
        ids (B, T) int32, 0 behind a row's end, and lengths (B,); T is the least power of two, from 32 on, that holds
        the longest row, or seq_len: each length is a graph.
    """
    order = np.argsort(mask == 0, axis=1, kind="stable")
    lengths = np.minimum((mask != 0).sum(axis=1), seq_len)
    width = padded_length(int(lengths.max()), seq_len)
    rows = np.zeros((len(ids), width), np.int32)
    kept = np.take_along_axis(ids, order, axis=1)[:, :width]
    rows[:, : kept.shape[1]] = kept
    rows[np.arange(width) >= lengths[:, None]] = 0
    return rows, lengths


def padded_length(longest: int, seq_len: int) -> int:
    """The least power of two, from 32 on, that is not below `longest`; at most seq_len."""
    return min(max(LEAST_LENGTH, 1 << (longest - 1).bit_length()), seq_len)


def open_rows(key: str, files: list[Path], split: str, num_labels: int, tokenizer: Tokenizer) -> Split:
    """Check MindRecord files written elsewhere by reading all of their rows once.

    Raises:
        UserError: Missing or damaged files, ids outside the vocabulary, rows without tokens or of other lengths, labels
            that are not one class a row.
    """
    widths: set[int] = set()

    def fault_of(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> str:
        widths.add(ids.size)
        if ids.shape != mask.shape or len(widths) > 1:
            return f"{ids.size} tokens and a mask of {mask.size}; all rows must have one length. Prepare it anew."
        if not mask.any():
            return "no token: attention_mask is 0 everywhere. Leave such rows out."
        if not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
            return (
                f"token ids from {ids.min()} to {ids.max()}, outside the vocabulary of {tokenizer.vocab_size}. Use the "
                "tokenizer that the file was written with (tokenizer.path)."
            )
        if labels.size != 1 or not 0 <= int(labels.reshape(-1)[0]) < num_labels:
            return f"labels {labels.tolist()}, not one class from 0 to {num_labels - 1}. Write a class a row."
        return ""

    num_rows, num_tokens = scan_rows(key, files, fault_of)
    rows = Split(tuple(files), num_rows, max(widths), num_tokens, num_rows, 0, None)
    return replace(rows, **known_facts(key, split, files, tokenizer))


def record_labels(dataset: DatasetConfig, records: dict[str, tuple[str, list[Path]]]) -> list[str]:
    """Names of the classes of MindRecord files: those written beside them, or of dataset.label_names, or numbers.

    Raises:
        UserError: Labels that are not one class a row.
    """
    key, files = next(iter(records.values()))
    stored = (read_meta(files[0].parent) or {}).get("labels")
    if stored:
        return stored
    values: set[int] = set()

    def fault_of(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> str:
        if labels.size != 1 or int(labels.reshape(-1)[0]) < 0:
            return f"{labels.size} labels, not one class a row. Language model blocks need a task of their own."
        values.add(int(labels.reshape(-1)[0]))
        return ""

    scan_rows(key, files, fault_of)
    names = list((dataset.label_names or {}).values())
    return names if len(names) > max(values) else [str(value) for value in range(max(max(values) + 1, 2))]
