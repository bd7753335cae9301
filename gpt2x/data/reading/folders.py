"""Which files of a folder are data, and which are passed over: said by name, so that no one trains on a README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.data.reading.tables import is_json_table, kind_of
from gpt2x.errors import UserError

TABLE = "a row is a document or an example; the columns are named by `dataset` keys"
ABOUT = {
    "readme", "license", "licence", "copying", "notice", "changelog", "changes", "contributing", "citation", "authors",
    "code_of_conduct", "security", "datasheet", "data_card", "datacard", "dataset_card", "requirements",
}  # fmt: skip
# what editors and file managers call a copy of NAME.SUFFIX; the group is NAME
COPIES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"copy of (.+)",
        r"(.+?) - copy(?: \(\d+\))?",
        r"(.+?) copy(?: \d+)?",
        r"(.+?) ?\(\d+\)",
        r"(.+?)[._-](?:bak|backup|orig|old)",
    )
)
DATA_FILES = Format(
    "Data files: names",
    "What `dataset.path`, `train_path` and `val_path` read for `dataset=text`, `labelled_text` and `instructions`, and "
    "what a folder may have beside it. pandas defines the tables: texts and labels are those of "
    "`pandas.read_csv(dtype=str, keep_default_na=False)` and of `json`.",
    (
        *entries(Use.READ, (".txt", ".md"), "one document; `dataset=text` only"),
        Entry(".csv", Use.READ, f"{TABLE}; fields may be quoted"),
        Entry(".tsv", Use.READ, f"{TABLE}; quotes are part of the text, as in GLUE, unless all are a CSV writer's: "
              "around all fields of the header, or around fields with a tab, a line end or a quote, which is doubled"),
        Entry(".jsonl", Use.READ, f"{TABLE}; one object per line"),
        Entry(".json", Use.READ, f'{TABLE}; a list of objects, or {{"data": [{{…}}]}}; others in a folder are ignored'),
        Entry(".parquet", Use.READ, TABLE),
        *entries(Use.READ, (".txt.gz", ".md.gz", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz"), "unpacked while read"),
        Entry(".mindrecord", Use.READ, "rows of token ids, see below"),
        *entries(Use.REJECTED, (".arrow", ".feather", ".orc", ".avro"), "write it as .parquet"),
        *entries(Use.REJECTED, (".xlsx", ".xls", ".ods"), "save it as .csv in UTF-8"),
        *entries(Use.REJECTED, (".zip", ".tar", ".tgz", ".7z", ".rar", ".zst", ".bz2", ".xz", ".lz4"), "unpack it"),
        *entries(Use.REJECTED, (".pdf", ".docx", ".doc", ".odt", ".epub", ".rtf", ".html", ".htm", ".xml"),
                 "save its text as .txt"),
        *entries(Use.REJECTED, (".tokens", ".raw", ".text", ".log", ".rst"), "rename it to .txt if it is text"),
        *entries(Use.REJECTED, (".ndjson", ".jl", ".json5"), "rename it to .jsonl if it has one object per line"),
        *entries(Use.REJECTED, (".pkl", ".pickle", ".npy", ".npz", ".h5", ".bin", ".idx", ".tfrecord",
                                 ".db", ".sqlite"), "write it as .jsonl or .parquet"),
        Entry("README.md, LICENSE.txt, …", Use.IGNORED, "in a folder, and said; name the file itself to read it"),
        Entry("a.txt~, #a.txt#, copy of a.txt, a (1).txt", Use.IGNORED, "copies of editors beside the file, and said"),
        Entry(".git, .ipynb_checkpoints, __pycache__, .a.txt.swp", Use.IGNORED, "hidden files and folders, and said"),
        Entry("an empty file", Use.IGNORED, "in a folder"),
    ),
    "rejected if it is named, ignored in a folder, and said.",
)  # fmt: skip
ADVICE = {entry.name: entry.note for entry in DATA_FILES.entries if entry.use is Use.REJECTED}
MOST_NAMES = 8


class Listing(NamedTuple):
    """The files of a folder.

    Attributes:
        files: those that are read, in the order of their paths.
        others: those that are not, relative to the folder, with the reason in brackets.
    """

    files: list[Path]
    others: list[str]

    def note(self, folder: Path) -> str | None:
        """Return what is read and what is not, for the user; None if all is read."""
        if not self.others:
            return None
        read = list_short([str(file.relative_to(folder)) for file in self.files])
        return f"{folder}: {len(self.files):,} read ({read}); {len(self.others):,} not read: {list_short(self.others)}"


def list_folder(folder: Path, suffixes: Sequence[str], *, below: bool) -> Listing:
    """Return the data files of a folder.

    Args:
        folder: where to look.
        suffixes: those that can be read.
        below: also in folders below it.
    """
    files, others = [], []
    for path in sorted(folder.rglob("*") if below else folder.iterdir()):
        parts = path.relative_to(folder).parts
        hidden = next((i for i, part in enumerate(parts) if part[0] == "." or part == "__pycache__"), None)
        if hidden is not None:
            name = "/".join(parts[: hidden + 1])
            if name not in others:
                others.append(name)
        elif path.is_file() and path.stat().st_size:
            reason = _reason(path, suffixes)
            files += [path] if reason is None else []
            others += [] if reason is None else ["/".join(parts) + reason]
    others.sort(key=lambda name: not any(name.endswith(suffix) for suffix in ADVICE))  # what may be data comes first
    return Listing(files, others)


def _reason(path: Path, suffixes: Sequence[str]) -> str | None:
    """Why a file is not read; None if it is."""
    kind = kind_of(path)
    if path.name.split(".")[0].lower().replace("-", "_") in ABOUT:
        return " (about the data)"
    if kind not in suffixes or (path.suffix.lower() == ".gz" and kind == ".parquet"):
        return ""
    copy = next((match for pattern in COPIES if (match := pattern.fullmatch(path.stem))), None)
    if copy and path.with_name(copy[1] + path.suffix).is_file():
        return " (a copy)"
    if kind == ".json" and not is_json_table(path):
        return " (no list of rows)"
    return None


def list_short(names: Sequence[str]) -> str:
    """Return the first names, and how many there are more."""
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f", and {rest:,} more" if rest > 0 else "")


def require_file(path: Path, key: str) -> Path:
    """Return `path` if it is a readable file that is not empty.

    Raises:
        UserError: It is missing, not a file, not readable, or empty.
    """
    try:
        if not path.exists():
            raise UserError(f"{key}={path} does not exist. Check the path (relative to {Path.cwd()}).")
        if not path.is_file():
            raise UserError(f"{key}={path} is not a file. Give a file.")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{key}={path} is empty. Give a file with text in it.")
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be read: {(error.strerror or str(error)).lower()}. Give a file."
        ) from error
    return path


def require_kind(path: Path, key: str, suffixes: Sequence[str], what: str) -> Path:
    """Return `path` if it is a file with one of the suffixes, or one of them and `.gz`.

    Raises:
        UserError: no such file, or a suffix that cannot be read; says what to do.
    """
    require_file(path, key)
    if kind_of(path) not in suffixes or (path.suffix.lower() == ".gz" and kind_of(path) == ".parquet"):
        advice = ADVICE.get(path.suffix.lower(), "rename or convert the file")
        raise UserError(
            f"{key}={path}: {what} are read from {', '.join(suffixes)}, not from files ending in "
            f"{path.suffix or 'nothing'!r}; {advice}."
        )
    return path


def require_data(listing: Listing, folder: Path, key: str, suffixes: Sequence[str]) -> Listing:
    """Return a listing that has files.

    Raises:
        UserError: it has none; names those that are not read.
    """
    if not listing.files:
        others = f"; it has {list_short(listing.others)}" if listing.others else ""
        raise UserError(
            f"{key}={folder} has no file with text ({', '.join(suffixes)}){others}. Give such files, or name the file "
            "itself."
        )
    return listing
