"""The user's text files, read as streams; messages name file and line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gpt2x.data.reading.documents import Piece, document, pieces_of
from gpt2x.errors import UserError

CHUNK_CHARS = 1 << 16
MAX_CSV_FIELD_CHARS = 1 << 30  # the csv module's own limit, 128 kB, is less than an article


def require_file(path: Path, key: str) -> Path:
    """Return `path` if it is a readable file that is not empty.

    Raises:
        UserError: It is missing, not a file, not readable, or empty.
    """
    if not path.exists():
        raise UserError(f"{key}={path} does not exist. Check the path (relative to {Path.cwd()}).")
    if not path.is_file():
        raise UserError(f"{key}={path} is not a file. Give a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{key}={path} cannot be read: permission denied. Change its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{key}={path} is empty. Give a file with text in it.")
    return path


def text_files(path: Path, key: str) -> list[Path]:
    """Return the files that `path` stands for: itself, or every file below it with a suffix of `READERS`, sorted.

    Empty files in a folder are skipped; an empty file named directly is rejected.

    Raises:
        UserError: No such file, or a suffix that cannot be read.
    """
    suffixes = ", ".join(READERS)
    if not path.is_dir():
        require_file(path, key)
        if path.suffix.lower() not in READERS:
            raise UserError(
                f"{key}={path}: files ending in {path.suffix or 'nothing'!r} cannot be read. Use one of "
                f"{suffixes}, .mindrecord: rename or convert the file."
            )
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file() and p.stat().st_size)
    if not files:
        raise UserError(f"{key}={path} has no file with text ({suffixes}). Check the path.")
    return files


def read_documents(path: Path, column: str) -> Iterator[Piece]:
    """Yield the documents of one file: a .txt or .md is one, each row of .jsonl, .csv and .parquet is one."""
    return READERS[path.suffix.lower()](path, column)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without a byte order mark, every line end as a newline.

    Raises:
        UserError: Invalid UTF-8; names line and byte.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def read_objects(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (location, object) of each line of a .jsonl.

    Raises:
        UserError: A line that is not a JSON object.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        location = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{location} is not JSON: {error}. Correct or remove the line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{location} is not a JSON object. Correct the line.")
        yield location, row


def hash_files(paths: list[Path]) -> str:
    """Return the sha256 over the contents of the files, in order; names do not matter, suffixes do."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.suffix.lower()} {content}\n".encode())
    return digest.hexdigest()


def not_utf8(path: Path) -> UserError:
    """Return the error for the first invalid byte of a file; the decoder knows only its index in a buffer."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + error.start
                bad = line[error.start]
                return UserError(
                    f"{path} is not valid UTF-8: byte 0x{bad:02x} at offset {at} (line {number}). "
                    f"Convert it, such as: iconv -f ISO-8859-1 -t UTF-8 {path.name} > converted{path.suffix}"
                )
            offset += len(line)
    return UserError(f"{path} is not valid UTF-8. Convert it with iconv.")


def _read_text(path: Path, column: str) -> Iterator[Piece]:
    def chunks() -> Iterator[str]:
        try:
            with path.open(encoding="utf-8-sig") as file:
                while chunk := file.read(CHUNK_CHARS):
                    yield chunk
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error

    return pieces_of(chunks())


def _read_jsonl(path: Path, column: str) -> Iterator[Piece]:
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}. Correct or remove the line.") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number} is not a JSON object such as {{{column!r}: ...}}. Correct the line."
            )
        if column not in row:
            raise UserError(
                f"{path}, line {number} has no key {column!r}; it has {list_names(row)}. "
                f"Set dataset.text_column to the one with the text."
            )
        if not isinstance(row[column], str):
            raise UserError(
                f"{path}, line {number}: {column!r} is {type(row[column]).__name__}, not text. "
                f"Correct the line, or set dataset.text_column."
            )
        yield from document(row[column])


def _read_csv(path: Path, column: str) -> Iterator[Piece]:
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if column not in header:
                raise UserError(
                    f"{path} has no column {column!r}; its header line has {list_names(header)}. "
                    f"Set dataset.text_column to the one with the text."
                )
            index = header.index(column)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {rows.line_num} has {len(row)} fields, the header {len(header)}. "
                        f"Quote fields that contain commas, or correct the line."
                    )
                yield from document(row[index])
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is not CSV: {error}. Correct the line.") from error


def _read_parquet(path: Path, column: str) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}. Copy or write it again.") from error
    with file:
        if column not in file.schema_arrow.names:
            raise UserError(
                f"{path} has no column {column!r}; it has {list_names(file.schema_arrow.names)}. "
                f"Set dataset.text_column to the one with the text."
            )
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column {column!r} is {kind}, not text. Set dataset.text_column.")
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield from document(text or "")


def list_names(names: Iterable[str]) -> str:
    """Return names, quoted, as a list for people; "none" if there are none."""
    return ", ".join(map(repr, names)) or "none"


READERS: dict[str, Callable[[Path, str], Iterator[Piece]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
