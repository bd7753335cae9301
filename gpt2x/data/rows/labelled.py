"""Labelled texts as rows of L = seq_len token ids, one text per row, and batches of rows cut to one length.

B is the batch size, T the length that a batch is cut to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.data.export import exported_labels
from gpt2x.data.mindrecord import RecordFiles, RowArrays, Split, scan_rows
from gpt2x.data.reading.tables import TABLES, list_names
from gpt2x.data.rows.base import Counts, Part, RowForm, padded_length
from gpt2x.data.sources.base import Source
from gpt2x.data.sources.labelled import Example, Labelled
from gpt2x.data.sources.registry import source_of
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError, require

EXAMPLES_AT_ONCE = 2048


@dataclass(frozen=True)
class LabelledRows(RowForm):
    """One text per row: its first seq_len tokens, then EOS under attention_mask 0; `labels` (1,) is its class.

    MindRecord files are used unchanged, with padding on either side. Of a split, `num_blocks` counts texts and
    `dropped_tokens` the tokens beyond seq_len.

    Attributes:
        model_labels: The classes of a classifier; None: those of the data.
        num_classes: How many classes a classifier without names for them has; None: as many as the data.
    """

    model_labels: tuple[str, ...] | None = None
    num_classes: int | None = None

    noun = "texts"
    description = "gpt2x labelled texts"

    @property
    def row_len(self) -> int:
        """Number of columns of a row."""
        return self.seq_len

    def labels(self, dataset: DatasetConfig, source: Source | None, records: dict[str, RecordFiles]) -> tuple[str, ...]:
        """Return the classes of the model, else of the text, else of the MindRecord files.

        Raises:
            UserError: They are not as many as a classifier without names has.
        """
        if self.model_labels:
            return self.model_labels
        labels = tuple(record_labels(dataset, records) if source is None else labelled(source).labels())
        require(
            self.num_classes in (None, len(labels)),
            f"dataset={dataset.name} has {len(labels)} classes ({list_names(labels)}), but the loaded classifier has "
            f"{self.num_classes}, without names. Use texts of its classes, or give {new_head(labels)}.",
        )
        return labels

    def check(self, part: Part) -> None:
        """Reject texts whose class is none of the model's."""
        label_ids(labelled(part.source), part.split, part.labels)

    def cut(self, part: Part, counts: Counts, on_chars: Callable[[int], None]) -> Iterator[RowArrays]:
        """Yield the rows of a part."""
        source = labelled(part.source)
        ids = label_ids(source, part.split, part.labels)
        num_cut = 0
        for start in range(0, len(ids), EXAMPLES_AT_ONCE):
            examples = source.examples(part.split)[start : start + EXAMPLES_AT_ONCE]
            rows, mask, lengths = encode(examples, part.tokenizer, self.seq_len)
            lost = np.maximum(lengths - self.seq_len, 0)
            counts.tokens += int(mask.sum())
            counts.documents += len(examples)
            counts.dropped_tokens += int(lost.sum())
            num_cut += int((lost > 0).sum())
            yield rows, mask, np.array(ids[start : start + EXAMPLES_AT_ONCE], np.int32)[:, None]
            on_chars(sum(len(example.text) for example in examples))
        if num_cut:
            counts.notes.append(
                f"{num_cut:,} of {len(ids):,} {part.split} texts are cut to their first {self.seq_len} tokens "
                f"({counts.dropped_tokens:,} tokens lost)"
            )

    def open(self, records: RecordFiles, tokenizer: Tokenizer, labels: tuple[str, ...]) -> Split:
        """Check rows written elsewhere.

        Raises:
            UserError: Missing or damaged files, ids outside the vocabulary, rows without tokens or of different
                lengths, or labels that are not one class per row.
        """
        widths: set[int] = set()

        def fault_of(ids: np.ndarray, mask: np.ndarray, classes: np.ndarray) -> str:
            widths.add(ids.size)
            if ids.shape != mask.shape or len(widths) > 1:
                return f"{ids.size} tokens and a mask of {mask.size}; all rows must have one length. Prepare it again."
            if not mask.any():
                return "no token: attention_mask is 0 everywhere. Leave such rows out."
            if not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
                return (
                    f"token ids from {ids.min()} to {ids.max()}, outside the vocabulary of {tokenizer.vocab_size}. Use "
                    "the tokenizer that the file was written with (tokenizer.path)."
                )
            if classes.size != 1 or not 0 <= int(classes.reshape(-1)[0]) < len(labels):
                return f"labels {classes.tolist()}, not one class from 0 to {len(labels) - 1}. Write one class per row."
            return ""

        scan = scan_rows(records, fault_of)
        return Split(
            tuple(records.files), scan.num_rows, max(widths), scan.num_tokens, scan.num_rows, 0, None, scan.sha256
        )


def labelled(source: Source) -> Labelled:
    """Return `source` as a source of labelled texts.

    Raises:
        UserError: It has no labels.
    """
    if not isinstance(source, Labelled):
        raise UserError(
            f"dataset.corpus={source.config.corpus} has no labels. Use dataset=labelled_text for your own texts."
        )
    return source


def label_ids(source: Labelled, split: str, names: Sequence[str]) -> list[int]:
    """Return the class id of each example of a split.

    Raises:
        UserError: A label that is not in `names`, with file and line.
    """
    id_of = {name: i for i, name in enumerate(names)}
    ids = []
    for example in source.examples(split):
        name = source.name_of(example.value)
        if name not in id_of:
            raise UserError(
                f"{example.location} has the label {name!r}, which is none of {list_names(names)}. Correct it, name it "
                f"with dataset.label_names, use a model and training texts that have this label, or train with "
                f"{new_head([*names, name])}."
            )
        ids.append(id_of[name])
    return ids


def new_head(labels: Sequence[str]) -> str:
    """Return what gives a run of `train.py` a new head for classes."""
    return f"model.labels=[{','.join(labels)}] for a new head"


def require_labelled(dataset: DatasetConfig, reason: str) -> None:
    """Reject a corpus without labels, before anything is read.

    Raises:
        UserError: Names the data sets that have labels.
    """
    require(
        source_of(dataset).row_form == "labelled",
        f"dataset={dataset.name} has no labels, which {reason} needs; use dataset=sst2, cola, ag_news, imdb, or "
        f"labelled_text for your own tables ({', '.join(TABLES)}).",
    )


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and attention mask, int32 (R, seq_len) each, and the length of each text before the cut, (R,).

    An empty text becomes one EOS.
    """
    encoded = tokenizer.encode_batch([example.text for example in examples])
    rows = np.full((len(encoded), seq_len), tokenizer.eos_id, np.int32)
    lengths = np.array([max(len(ids), 1) for ids in encoded], np.int64)
    for row, ids in zip(rows, encoded, strict=True):
        row[: len(ids)] = ids[:seq_len]
    mask = (np.arange(seq_len) < lengths[:, None]).astype(np.int32)
    return rows, mask, lengths


def compact(ids: np.ndarray, mask: np.ndarray, seq_len: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Move each row's attended tokens to the left and cut the columns that are empty in all rows.

    A causal model gives these tokens the same positions and attention as without any padding, left or right: nothing
    after a row's end is attended to, so no mask is needed.

    Args:
        ids: (B, L) int32.
        mask: (B, L), 0 for padding.
        seq_len: the number of tokens of a row to keep at most, from its start.
        width: T; None: the least power of two, from 32 on, that has room for the longest row, or seq_len. Each T
            compiles one graph.

    Returns:
        ids (B, T) int32, 0 after a row's end, and lengths (B,).
    """
    order = np.argsort(mask == 0, axis=1, kind="stable")
    lengths = np.minimum((mask != 0).sum(axis=1), seq_len)
    width = width or padded_length(int(lengths.max()), seq_len)
    rows = np.zeros((len(ids), width), np.int32)
    attended = np.take_along_axis(ids, order, axis=1)[:, :width]
    rows[:, : attended.shape[1]] = attended
    rows[np.arange(width) >= lengths[:, None]] = 0
    return rows, lengths


def record_labels(dataset: DatasetConfig, records: dict[str, RecordFiles]) -> list[str]:
    """Return the names of the classes of MindRecord files.

    They are those that were exported with the files, else those of dataset.label_names, else numbers.

    Raises:
        UserError: Labels that are not one class per row.
    """
    first = next(iter(records.values()))
    if labels := exported_labels(first):
        return labels
    values: set[int] = set()

    def fault_of(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> str:
        if labels.size != 1 or int(labels.reshape(-1)[0]) < 0:
            return f"{labels.size} labels, not one class per row. Language model blocks need a different task."
        values.add(int(labels.reshape(-1)[0]))
        return ""

    scan_rows(first, fault_of)
    names = list((dataset.label_names or {}).values())
    return names if len(names) > max(values) else [str(value) for value in range(max(max(values) + 1, 2))]


FORM = LabelledRows
