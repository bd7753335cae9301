"""Rows that leave the cache: a folder of MindRecord files, and what these do not say, that `dataset.path` accepts."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpt2x.data.cache import build_once, read_meta
from gpt2x.data.mindrecord import RecordFiles, Split
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

COUNTS = ("num_tokens", "num_documents", "dropped_tokens", "num_words")


def export(
    splits: dict[str, Split], tokenizer: Tokenizer, labels: tuple[str, ...], fingerprint: str, output: Path
) -> dict[str, Split]:
    """Copy the files of the splits, and the tokenizer, into the new or empty directory `output`; return the copies.

    Raises:
        UserError: The directory cannot be written.
    """

    def write(temporary: Path) -> dict[str, Any]:
        for split in splits.values():
            for file in split.files:
                for part in (file, file.with_name(file.name + ".db")):
                    shutil.copyfile(part, temporary / part.name)
        tokenizer.save(temporary / "tokenizer")
        return {
            "splits": {name: {k: v for k, v in asdict(s).items() if k != "files"} for name, s in splits.items()},
            "labels": list(labels),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "fingerprint": fingerprint,
        }

    if output.is_dir():
        output.rmdir()  # empty; renaming a directory over it is not portable
    build_once(output, write, key="output")
    return {name: replace(s, files=tuple(output / f.name for f in s.files)) for name, s in splits.items()}


def exported_counts(records: RecordFiles, split: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the counts of a `Split` that were exported with its files; empty if there are none.

    Raises:
        UserError: The files were prepared with a different tokenizer.
    """
    facts = _facts(records)
    if split not in facts.get("splits", {}):
        return {}
    if facts["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"{records.key} was prepared with a different tokenizer. Use the one beside it: "
            f"tokenizer.path={records.files[0].parent / 'tokenizer'}; or prepare the text again with this tokenizer."
        )
    return {name: facts["splits"][split][name] for name in COUNTS}


def exported_labels(records: RecordFiles) -> list[str]:
    """Return the names of the classes that were exported with the files; empty if there are none."""
    return _facts(records).get("labels", [])


def _facts(records: RecordFiles) -> dict[str, Any]:
    return read_meta(records.files[0].parent) or {}
