"""MindRecord files with the reference's columns: write them, locate those that a configuration names, check them.

L is the number of columns of a row.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2x.compatibility import Entry, Format, Use
from gpt2x.config import DatasetConfig
from gpt2x.data.cache import DamagedError
from gpt2x.data.record_structure import check_structure
from gpt2x.errors import UserError
from gpt2x.runtime.files import replaced, require_space

COLUMNS = ("input_ids", "attention_mask", "labels")
# the words of a file's name that say its split; the first kind of `val` that a folder has is its validation part
SPLIT_WORDS = {"train": ("train",), "val": ("dev", "val", "eval", "test")}
RECORD_NAME = re.compile(r".+\.mindrecord\d*")  # a writer with several shards numbers them; `.db` is the index
PREPARE_AGAIN = "Prepare it again: gpt2x prepare."
SPARE_BYTES = 48 << 20  # FileWriter's pages, of 4 to 32 MB each, and the index
PROBE_BYTES = 64 << 10

RECORDS = Format(
    "MindRecord files",
    "Rows of token ids, as `gpt2x prepare output=` and MindFormers' scripts write them. MindSpore's `FileWriter` "
    "defines the format. `x.mindrecord` and its index `x.mindrecord.db` belong together.",
    (
        *(Entry(name, Use.READ, "int32 or int64, one dimension") for name in COLUMNS),
        Entry("columns of other types or shapes", Use.REJECTED, "by name"),
        Entry("other columns", Use.IGNORED),
        Entry("rows of seq_len + 1 tokens", Use.READ, "seq_len targets: all tokens but the first"),
        Entry("rows of seq_len tokens", Use.READ, "seq_len - 1 targets, as in the reference's evaluation"),
        Entry("rows of other lengths", Use.REJECTED, "the message has the seq_len"),
        Entry("labels that differ from input_ids", Use.REJECTED, "of language models, where attention_mask is not 0"),
        *(Entry(f"{word} in a file's name", Use.READ, f"a word of it: {split} rows")
          for split, words in SPLIT_WORDS.items() for word in words),
        Entry("a folder in which only some names say their split", Use.REJECTED, "rename the files or give train_path"),
    ),
    "a folder whose names say nothing is the training part, or the part that an evaluation reads.",
)  # fmt: skip

RowArrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # input_ids, attention_mask, labels: int32 (rows, …) each


@dataclass(frozen=True)
class Split:
    """The rows of one part of a corpus, and their files.

    `num_tokens + dropped_tokens` is the length of the part in tokens, EOS included. For a file written elsewhere,
    `num_tokens` counts what attention_mask covers; documents and dropped tokens are not known and 0.
    """

    files: tuple[Path, ...]
    num_blocks: int  # rows
    block_len: int  # columns of a row, L: seq_len + 1 for language modeling, see docs/data.md
    num_tokens: int
    num_documents: int
    dropped_tokens: int
    num_words: int | None  # original words (wikitext), one <eos> per line included
    sha256: str  # of all columns of all rows, see `RowHash`

    def first(self, num_rows: int) -> Split:
        """Return the first rows, with a hash of their own; tokens in proportion, documents and words not counted."""
        if num_rows >= self.num_blocks:
            return self
        num_tokens = round(self.num_tokens * num_rows / self.num_blocks)
        sha256 = hashlib.sha256(f"the first {num_rows} rows of {self.sha256}".encode()).hexdigest()
        return Split(self.files, num_rows, self.block_len, num_tokens, 0, 0, None, sha256)


class RecordFiles(NamedTuple):
    """MindRecord files that a configuration names directly.

    Attributes:
        key: What the user typed, such as `dataset.path=x.mindrecord`.
        files: Files of one schema.
    """

    key: str
    files: list[Path]


class Scan(NamedTuple):
    """What reading all rows of MindRecord files counts: rows, tokens that attention_mask covers, the rows' hash."""

    num_rows: int
    num_tokens: int
    sha256: str


class RowHash:
    """sha256 over rows, independent of the number of files and of how many rows are written at once."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, *columns: np.ndarray) -> None:
        """Add one row."""
        for column in columns:
            self._digest.update(column.size.to_bytes(4, "little"))
            self._digest.update(np.ascontiguousarray(column, np.int32).tobytes())

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._digest.hexdigest()


def write_rows(file: Path, batches: Iterable[RowArrays], description: str) -> tuple[int, str]:
    """Write rows of int32 `input_ids`, `attention_mask` and `labels`, as the reference does.

    Args:
        file: A new file; its index is written beside it as `<file>.db`. The file's name is stored inside: the folder
            may be renamed, the file may not.
        batches: Ids, mask and labels, int32 (rows, …) each.
        description: Text in the schema.

    Returns:
        Number of rows and their `RowHash`.

    Raises:
        OSError: the system rejects it, or there is too little space for what comes next: MindSpore's writer may end the
            process by SIGSEGV on a full disk.
    """
    from mindspore.mindrecord import FileWriter

    num_rows, digest = 0, RowHash()
    try:
        writer = FileWriter(str(file), shard_num=1)
        writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in COLUMNS}, description)
        for batch in batches:
            rows = list(zip(*batch, strict=True))
            if rows:
                require_space(file, 2 * sum(column.nbytes for column in batch) + SPARE_BYTES)
                writer.write_raw_data([dict(zip(COLUMNS, row, strict=True)) for row in rows])
                for row in rows:
                    digest.update(*row)
                num_rows += len(rows)
        if num_rows:
            writer.commit()
    except RuntimeError as error:  # MindSpore's, without the system's cause
        raise _system_error(file, error) from error
    return num_rows, digest.hexdigest()


def _system_error(file: Path, error: RuntimeError) -> OSError:
    """Return why MindSpore could not write a file: what the system says to a small file there, else its own words."""
    try:
        with replaced(file.with_name(f"{file.name}.probe")) as part:
            part.write_bytes(bytes(PROBE_BYTES))
        file.with_name(f"{file.name}.probe").unlink()
    except OSError as cause:
        return cause
    return OSError(errno.EIO, f"MindSpore's writer failed: {_first_reason(error)}", str(file))


def _first_reason(error: RuntimeError) -> str:
    """Return the line of MindSpore's message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    reason = next((line for line in lines if "ERROR]" in line), lines[0] if lines else "unknown error")
    return re.sub(r"^(\[[^]]*\]\s*)+", "", reason)  # [ERROR] [Internal ERROR]


def find_records(config: DatasetConfig, splits: tuple[str, ...]) -> dict[str, RecordFiles]:
    """Return the MindRecord files that the configuration names directly, by split.

    `train_path` and `val_path` come first. `path` is a file, used for the one requested split, or else for training;
    or a folder: words of the files' names say which split they are for, as in `wikitext-2.valid.mindrecord`. If no
    name says it, the folder is used as a file is.

    Raises:
        UserError: A folder in which the names of only some files say their split.
    """
    records: dict[str, RecordFiles] = {}
    in_path = _records(config.path)
    named = files_by_split(in_path, f"dataset.path={config.path}")
    for split in splits:
        split_path = config.train_path if split == "train" else config.val_path
        if split_path is not None:
            files, key = _records(split_path), f"dataset.{split}_path={split_path}"
        elif Path(config.path or "").expanduser().is_dir() and any(named.values()):
            files, key = named[split], f"dataset.path={config.path}"
        else:
            files, key = (in_path if split == "train" or len(splits) == 1 else []), f"dataset.path={config.path}"
        if files:
            records[split] = RecordFiles(key, files)
    return records


def files_by_split(files: list[Path], key: str) -> dict[str, list[Path]]:
    """Return the files of each split by the words of their names; no files if no name has such a word.

    Raises:
        UserError: Only some names say the split, or one says both; names these files.
    """
    kinds = {path: _kinds(path.name) for path in files}
    if not any(kinds.values()):
        return {"train": [], "val": []}
    if unclear := [path.name for path, words in kinds.items() if len(words) != 1]:
        raise UserError(
            f"{key}: the names of {', '.join(unclear)} do not say whether they are for training or validation, as "
            "those of other files there do. Put train or val into the names when they are written, or give "
            "dataset.train_path and dataset.val_path."
        )
    val = next((word for word in SPLIT_WORDS["val"] if any(words == {word} for words in kinds.values())), "")
    return {
        split: [path for path, words in kinds.items() if words == {word}]
        for split, word in (("train", "train"), ("val", val))
    }


def _kinds(name: str) -> set[str]:
    words = re.split("[^a-z]+", name.lower())
    kinds = [*SPLIT_WORDS["train"], *SPLIT_WORDS["val"]]
    return {kind for kind in kinds if any(word == kind or (kind != "dev" and word.startswith(kind)) for word in words)}


def _records(path: str | None) -> list[Path]:
    if path is None:
        return []
    location = Path(path).expanduser()
    if location.is_dir():
        return sorted(p for p in location.iterdir() if RECORD_NAME.fullmatch(p.name) and p.is_file())
    return [location] if RECORD_NAME.fullmatch(location.name) else []


def scan_rows(records: RecordFiles, fault_of: Callable[..., str]) -> Scan:
    """Read all rows of MindRecord files once.

    Args:
        records: The files.
        fault_of: Returns what is wrong with a row's ids, mask and labels, and the fix; empty if nothing is wrong.

    Raises:
        UserError: Missing or damaged files, other columns, or a faulty row.
    """
    for file in records.files:
        for part in (file, file.with_name(file.name + ".db")):
            if not part.is_file():
                raise UserError(
                    f"{records.key}: {part} is missing. A MindRecord file and its .db index belong together."
                )
        try:
            check_structure(file)
        except DamagedError as error:
            raise UserError(f"{records.key} cannot be read as MindRecord: {error}. {PREPARE_AGAIN}") from error
    try:
        return _scan(records, fault_of)
    except RuntimeError as error:
        raise UserError(
            f"{records.key} cannot be read as MindRecord: {_first_reason(error)} {PREPARE_AGAIN}"
        ) from error


def _scan(records: RecordFiles, fault_of: Callable[..., str]) -> Scan:
    import mindspore.dataset as ds

    names = [str(file) for file in records.files]
    opened = ds.MindDataset(names, num_parallel_workers=1, shuffle=False)
    columns = opened.get_col_names()
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(
            f"{records.key} has no column {', '.join(missing)} (it has {', '.join(columns)}). Rows need "
            f"{', '.join(COLUMNS)}. {PREPARE_AGAIN}"
        )
    types = dict(zip(columns, map(str, opened.output_types()), strict=True))
    if wrong := [f"{name} is {types[name]}" for name in COLUMNS if types[name] not in ("int32", "int64")]:
        raise UserError(f"{records.key}: {', '.join(wrong)}, but rows hold ids: int32 or int64. {PREPARE_AGAIN}")
    num_rows, num_tokens, digest = 0, 0, RowHash()
    for file in records.files:
        rows = ds.MindDataset([str(file)], columns_list=list(COLUMNS), num_parallel_workers=1, shuffle=False)
        for row, (ids, mask, labels) in enumerate(rows.create_tuple_iterator(num_epochs=1, output_numpy=True)):
            if ids.ndim != 1:
                raise UserError(f"{records.key}: row {row} of {file.name} has the shape {ids.shape}, not one of ids.")
            if fault := fault_of(ids, mask, labels):
                raise UserError(f"{records.key}: row {row} of {file.name} has {fault}")
            num_rows += 1
            num_tokens += int((mask != 0).sum())
            digest.update(ids, mask, labels)
    return Scan(num_rows, num_tokens, digest.hexdigest())
