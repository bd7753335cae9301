"""Preparation: from the text of a source, or MindRecord files, to rows that are ready to be read; cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data.cache import build_once, code_hash, digest_of
from gpt2x.data.export import exported_counts
from gpt2x.data.mindrecord import RecordFiles, Split, find_records, write_rows
from gpt2x.data.rows.base import Counts, Part, RowForm
from gpt2x.data.sources.base import Source
from gpt2x.data.sources.registry import open_corpus
from gpt2x.data.template import Template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers.registry import TRAINERS
from gpt2x.errors import UserError
from gpt2x.runtime.console import stderr

FORMAT = 2  # part of every cache key: raise it when the same input gives different rows


@dataclass(frozen=True)
class DataSummary:
    """What was prepared, for panels and tables.

    Attributes:
        dataset: Its name.
        layout: How text lies in rows.
        tokenizer: Where the tokenizer is from.
        tokens_per_s: Speed of encoding and writing; None if nothing had to be encoded.
        notes: What the user should know.
    """

    dataset: str
    layout: str
    tokenizer: str
    tokens_per_s: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PreparedData:
    """Rows that are ready to be read, and the tokenizer that made them.

    Attributes:
        train: None if it was not requested.
        val: None if it was not requested, or if there is no validation text.
        tokenizer: Encoded the text.
        fingerprint: Hash of tokenizer, labels and rows: the same text gives the same one, wherever it lies.
        summary: For panels and tables.
        labels: Of labelled texts: names of the classes in the order of their ids.
        template: Of instructions: makes their prompts.
    """

    train: Split | None
    val: Split | None
    tokenizer: Tokenizer
    fingerprint: str
    summary: DataSummary
    labels: tuple[str, ...] = ()
    template: Template | None = None

    def splits(self) -> dict[str, Split]:
        """Return the splits that there are, by name."""
        return {name: split for name in ("train", "val") if (split := getattr(self, name)) is not None}

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer, and the template of prompts if there is one."""
        self.tokenizer.save(directory)
        if self.template is not None:
            self.template.save(directory)


@dataclass(frozen=True)
class CutRows:
    """The rows of one split, from the cache or just written."""

    rows: Split
    notes: tuple[str, ...]
    num_encoded: int = 0  # tokens encoded by this call
    seconds: float = 0.0  # spent on them


def prepare(
    dataset: DatasetConfig,
    tokenizer: TokenizerConfig,
    form: RowForm,
    *,
    cache: Path,
    checkpoint_tokenizer: Tokenizer | None = None,
    splits: tuple[str, ...] = ("train", "val"),
) -> PreparedData:
    """Return the rows of `splits`: those of the cache, or new ones.

    Args:
        dataset: Where the text comes from. MindRecord files are checked and used directly.
        tokenizer: Loaded from its path; trained on the training part if the path is null.
        form: How rows are cut.
        cache: Keeps `datasets/`, `tokenizers/` and `downloads/`.
        checkpoint_tokenizer: The tokenizer of a loaded checkpoint; replaces `tokenizer`.
        splits: The parts to prepare, of train and val.

    Returns:
        A split that was not requested is None; so is `val` if there is only training text (a note says so).

    Raises:
        UserError: Wrong input; nothing incomplete is left in the cache.
    """
    cache = Path(cache).expanduser().absolute()
    records = find_records(dataset, splits)
    source = None if len(records) == len(splits) else open_text(dataset, set(records), cache)
    chosen = checkpoint_tokenizer or load_or_train(tokenizer, dataset, source, cache)
    labels = form.labels(dataset, source, records)
    for split in splits:
        if split not in records and source is not None and source.has(split):
            form.check(Part(source, split, chosen, labels))
    parts: dict[str, CutRows] = {}
    notes: list[str] = []
    for split in splits:
        if split in records:
            parts[split] = CutRows(open_records(form, records[split], split, chosen, labels), ())
        elif source is not None and source.has(split):
            parts[split] = cut_once(form, Part(source, split, chosen, labels), cache)
        elif split == "train" or len(splits) == 1:
            raise UserError(
                f"dataset={dataset.name} has no {split} {form.noun}. Give dataset.{split}_path or dataset.path."
            )
        else:
            notes.append(f"no validation {form.noun}: dataset.val_path is null")
    num_encoded = sum(part.num_encoded for part in parts.values())
    notes = [*(source.notes if source else ()), *(note for part in parts.values() for note in part.notes), *notes]
    summary = DataSummary(
        dataset=dataset.name,
        layout=form.layout(dataset),
        tokenizer="the checkpoint's" if checkpoint_tokenizer else tokenizer.path or f"trained, {tokenizer.name}",
        tokens_per_s=num_encoded / sum(part.seconds for part in parts.values()) if num_encoded else None,
        notes=tuple(dict.fromkeys(notes)),
    )
    rows = {split: part.rows for split, part in parts.items()}
    fingerprint = digest_of([chosen.fingerprint, labels, {split: part.sha256 for split, part in rows.items()}])
    return PreparedData(rows.get("train"), rows.get("val"), chosen, fingerprint, summary, labels, form.template(source))


def open_text(dataset: DatasetConfig, in_records: set[str], cache: Path) -> Source | None:
    """Return the source of the splits that are not MindRecord files; None if the configuration names no other text."""
    only_path = replace(dataset, train_path=None, val_path=None)
    is_records = any(find_records(only_path, (split,)) for split in ("train", "val"))
    rest = replace(
        dataset,
        path=None if is_records else dataset.path,
        train_path=None if "train" in in_records else dataset.train_path,
        val_path=None if "val" in in_records else dataset.val_path,
    )
    if (in_records or is_records) and not (rest.path or rest.train_path or rest.val_path):
        return None
    return open_corpus(rest, cache)


def open_records(
    form: RowForm, records: RecordFiles, split: str, tokenizer: Tokenizer, labels: tuple[str, ...]
) -> Split:
    """Return the rows of MindRecord files, checked, with the counts that were exported with them."""
    counts = exported_counts(records, split, tokenizer)  # first: it explains ids that do not fit the tokenizer
    return replace(form.open(records, tokenizer, labels), **counts)


def load_or_train(config: TokenizerConfig, dataset: DatasetConfig, source: Source | None, cache: Path) -> Tokenizer:
    """Return the tokenizer of `config.path`, or one trained on the training part, once.

    Raises:
        UserError: No path and nothing to train on, or keys that do not suit the kind of tokenizer.
    """
    if config.path is not None:
        return Tokenizer.load(config.path, config.eos_token)
    if source is None or not source.has("train"):
        raise UserError(
            f"tokenizer.path=null: dataset={dataset.name} gives no training text to train a tokenizer on. "
            f"Set tokenizer.path to the tokenizer that belongs to the data (or to the model)."
        )
    train_tokenizer = TRAINERS.load(config.kind)
    key = digest_of([FORMAT, asdict(config), code_hash(train_tokenizer), source.fingerprint("train")])

    def train(directory: Path) -> dict[str, Any]:
        texts = (piece.text for piece in source.pieces("train"))
        train_tokenizer(texts, config).save(directory)
        return {"trained_on": dataset.corpus}

    directory = cache / "tokenizers" / f"{config.kind}-{key[:16]}"
    build_once(directory, train)
    return Tokenizer.load(directory)


def cut_once(form: RowForm, part: Part, cache: Path) -> CutRows:
    """Return the rows of one part, and write them first if the cache does not have them."""
    source, split = part.source, part.split
    key = digest_of([FORMAT, form.key(), part.labels, part.tokenizer.fingerprint, source.fingerprint(split)])
    directory = cache / "datasets" / f"{source.config.name}-{split}-{key[:16]}"
    name, counts, seconds = f"{split}.mindrecord", Counts(), 0.0

    def write(temporary: Path) -> dict[str, Any]:
        nonlocal seconds
        num_chars = sum(len(piece.text) for piece in source.pieces(split))  # checks the whole input before work starts
        import mindspore.mindrecord  # noqa: F401 - takes a second or two that are not preparation

        started = time.perf_counter()
        with _progress(f"Preparing {source.config.name} {split}", num_chars) as advance:
            num_rows, sha256 = write_rows(temporary / name, form.cut(part, counts, advance), form.description)
        seconds = time.perf_counter() - started
        num_encoded = counts.tokens + counts.dropped_tokens
        stderr.notice(f"Preparing {source.config.name} {split}: {num_encoded:,} tokens in {seconds:.1f} s")
        rows = {
            "num_blocks": num_rows,
            "block_len": form.row_len,
            "num_tokens": counts.tokens,
            "num_documents": counts.documents,
            "dropped_tokens": counts.dropped_tokens,
            "num_words": source.num_words(split),
            "sha256": sha256,
        }
        return {"rows": rows, "notes": [*counts.notes, *source.reading_notes]}

    facts = build_once(directory, write)
    rows = Split(files=(directory / name,), **facts["rows"])
    return CutRows(rows, tuple(facts["notes"]), counts.tokens + counts.dropped_tokens, seconds)


@contextmanager
def _progress(title: str, num_chars: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar if stderr is a terminal."""
    if not stderr.is_interactive:
        yield lambda chars: None
        return
    from rich.progress import Progress

    with Progress(console=stderr.rich, transient=True) as bar:
        task = bar.add_task(title, total=num_chars)
        yield lambda chars: bar.advance(task, chars)
