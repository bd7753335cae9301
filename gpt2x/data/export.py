"""Rows that leave the cache: a folder of MindRecord files, and what these do not say, that `dataset.path` accepts."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpt2x.data.cache import META, DamagedError, check_files, read_index, was_checked, write_index
from gpt2x.data.mindrecord import RecordFiles, Split
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.runtime.files import new_directory

COUNTS = ("num_tokens", "num_documents", "dropped_tokens", "num_words")


def export(
    splits: dict[str, Split], tokenizer: Tokenizer, labels: tuple[str, ...], fingerprint: str, output: Path
) -> dict[str, Split]:
    """Copy the files of the splits, and the tokenizer, into the new or empty directory `output`; return the copies.

    Raises:
        UserError: The directory cannot be written.
    """

    if output.is_dir():
        output.rmdir()  # empty; renaming a directory over it is not portable
    with new_directory(output, key="output") as temporary:
        for split in splits.values():
            for file in split.files:
                for part in (file, file.with_name(file.name + ".db")):
                    shutil.copyfile(part, temporary / part.name)
        tokenizer.save(temporary / "tokenizer")
        facts = {
            "splits": {name: {k: v for k, v in asdict(s).items() if k != "files"} for name, s in splits.items()},
            "labels": list(labels),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "fingerprint": fingerprint,
        }
        write_index(temporary, facts)
    return {name: replace(s, files=tuple(output / f.name for f in s.files)) for name, s in splits.items()}


def exported_counts(records: RecordFiles, split: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the counts of a `Split` that were exported with its files; empty if there are none.

    Raises:
        UserError: The files are damaged, or were prepared with a different tokenizer.
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
    folder = records.files[0].parent
    names = [part for file in records.files for part in (file.name, f"{file.name}.db")]
    try:
        index = read_index(folder)
        if index is None:
            return {}
        check_files(folder, index, [name for name in names if name in index.files], only_sizes=was_checked())
    except DamagedError as error:
        raise UserError(
            f"{records.key}: {error}. Write the rows again (gpt2x prepare … output=FOLDER); or remove {folder / META}, "
            "and rows of an unchanged form are read without their digests, counts and names of classes."
        ) from error
    return index.facts
