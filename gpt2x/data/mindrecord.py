"""MindRecord files with the reference's columns: written, found, checked (mindspore is imported when needed).

L is the number of columns of a row (`block_len`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.errors import UserError

COLUMNS = ("input_ids", "attention_mask", "labels")
RECORD_NAME = re.compile(r".+\.mindrecord\d*")  # a writer with several shards numbers them; `.db` is the index


@dataclass(frozen=True)
class Split:
    """The blocks of one part of a corpus and where they lie.

    `num_tokens + dropped_tokens` is the length of the part in tokens, EOS included. Of a file written elsewhere,
    `num_tokens` counts what attention_mask covers; documents and dropped tokens are not known and 0.
    """

    files: tuple[Path, ...]
    num_blocks: int
    block_len: int  # columns a row, L: seq_len + 1 for training, see docs/data.md
    num_tokens: int
    num_documents: int
    dropped_tokens: int
    num_words: int | None  # original words (wikitext), <eos> of each line counted


def write_blocks(file: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> int:
    """Write rows of `input_ids`, `attention_mask` and `labels` (= input_ids), as the reference does.

    Args:
        file: As for `write_rows`.
        batches: Pairs of ids and mask, int32 (rows, L) each.

    Returns:
        Number of rows.
    """
    return write_rows(file, ((ids, mask, ids) for ids, mask in batches), "gpt2x language model blocks")


def write_rows(file: Path, batches: Iterable[tuple[np.ndarray, ...]], description: str) -> int:
    """Write rows of int32 `input_ids`, `attention_mask` and `labels`.

    Args:
        file: A new file; its index is written beside it as `<file>.db`. The name is stored inside: the folder may be
            renamed, the file not.
        batches: ids, mask and labels, int32 (rows, …) each.
        description: Of the schema.

    Returns:
        Number of rows.
    """
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(file), shard_num=1)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in COLUMNS}, description)
    rows = 0
    for batch in batches:
        if len(batch[0]):
            writer.write_raw_data([dict(zip(COLUMNS, row, strict=True)) for row in zip(*batch, strict=True)])
            rows += len(batch[0])
    if rows:
        writer.commit()
    return rows


def find_records(config: DatasetConfig, splits: tuple[str, ...]) -> dict[str, tuple[str, list[Path]]]:
    """MindRecord files that the configuration names directly, as {split: (key, files)}.

    `train_path` and `val_path` come first. `path` is a file, which serves the one split asked for, or else training;
    or a folder: files that begin with train or val serve those, as `gpt2x.data.prepare output=` writes them.
    """
    found: dict[str, tuple[str, list[Path]]] = {}
    in_path = _records(config.path)
    named = {name: [p for p in in_path if p.name.startswith(name)] for name in ("train", "val")}
    for split in splits:
        own = config.train_path if split == "train" else config.val_path
        if own is not None:
            files, key = _records(own), f"dataset.{split}_path={own}"
        elif Path(config.path or "").expanduser().is_dir() and any(named.values()):
            files, key = named[split], f"dataset.path={config.path}"
        else:
            files, key = (in_path if split == "train" or len(splits) == 1 else []), f"dataset.path={config.path}"
        if files:
            found[split] = (key, files)
    return found


def _records(path: str | None) -> list[Path]:
    if path is None:
        return []
    place = Path(path).expanduser()
    if place.is_dir():
        return sorted(p for p in place.iterdir() if RECORD_NAME.fullmatch(p.name) and p.is_file())
    return [place] if RECORD_NAME.fullmatch(place.name) else []


def open_records(key: str, files: list[Path], block_len: int, vocab_size: int) -> Split:
    """Check files written elsewhere by reading all of their rows once (some 11,000 rows of 1025 a second).

    Args:
        key: What the user gave, such as `dataset.path=x.mindrecord`.
        files: MindRecord files of one schema.
        block_len: L that the run needs.
        vocab_size: Ids must be below it.

    Raises:
        UserError: Missing files, other columns, rows of another length, ids outside the vocabulary, labels that are
            not input_ids, damaged files.
    """

    def fault_of(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> str:
        return _fault(ids, mask, labels, block_len, vocab_size)

    num_blocks, num_tokens = scan_rows(key, files, fault_of)
    return Split(tuple(files), num_blocks, block_len, num_tokens, 0, 0, None)


def scan_rows(key: str, files: list[Path], fault_of: Callable[..., str]) -> tuple[int, int]:
    """Read all rows of MindRecord files once; the number of rows, and of tokens that attention_mask covers.

    Args:
        key: What the user gave.
        files: MindRecord files of one schema.
        fault_of: What is wrong with a row's ids, mask and labels, and the fix; empty when nothing is.

    Raises:
        UserError: Missing or damaged files, other columns, a faulty row.
    """
    for file in files:
        for part in (file, file.with_name(file.name + ".db")):
            if not part.is_file():
                raise UserError(f"{key}: {part} is missing. A MindRecord file and its .db index belong together.")
    try:
        return _scan(key, files, fault_of)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        reason = next((line for line in lines if "ERROR]" in line), lines[0] if lines else "unknown error")
        reason = re.sub(r"^(\[[^]]*\]\s*)+", "", reason)  # [ERROR] [Internal ERROR]
        raise UserError(
            f"{key} cannot be read as MindRecord: {reason} Prepare it anew: python -m gpt2x.data.prepare."
        ) from error


def _scan(key: str, files: list[Path], fault_of: Callable[..., str]) -> tuple[int, int]:
    import mindspore.dataset as ds

    names = [str(file) for file in files]
    columns = ds.MindDataset(names, num_parallel_workers=1, shuffle=False).get_col_names()
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(
            f"{key} has no column {', '.join(missing)} (it has {', '.join(columns)}). Rows need "
            f"{', '.join(COLUMNS)}; prepare it anew: python -m gpt2x.data.prepare."
        )
    num_blocks = num_tokens = 0
    for file in files:
        rows = ds.MindDataset([str(file)], columns_list=list(COLUMNS), num_parallel_workers=1, shuffle=False)
        for row, (ids, mask, labels) in enumerate(rows.create_tuple_iterator(num_epochs=1, output_numpy=True)):
            if fault := fault_of(ids, mask, labels):
                raise UserError(f"{key}: row {row} of {file.name} holds {fault}")
            num_blocks += 1
            num_tokens += int(mask.sum())
    return num_blocks, num_tokens


def _fault(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray, block_len: int, vocab_size: int) -> str:
    """What is wrong with a row, and the fix; empty when nothing is."""
    if ids.shape != (block_len,) or mask.shape != ids.shape or labels.shape != ids.shape:
        return (
            f"{ids.size} tokens, but a block of {block_len} is needed (seq_len + 1 for training). "
            f"Set trainer.seq_len={ids.size - 1}, or prepare the text anew with the seq_len wanted."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        return (
            f"token id {high if high >= vocab_size else low}, outside the vocabulary of {vocab_size}. "
            "Use the tokenizer that the file was written with (tokenizer.path)."
        )
    differing = np.flatnonzero((labels != ids) & (mask != 0))
    if differing.size:
        place = differing[0]
        return (
            f"labels that are not its input_ids (at position {place}: {labels[place]}, not {ids[place]}). gpt2x shifts "
            "by itself and trains on every token that attention_mask covers, so shifted labels, or labels of -100, "
            "would be ignored. Write labels equal to input_ids, with attention_mask 0 where nothing is to be learnt."
        )
    return ""
