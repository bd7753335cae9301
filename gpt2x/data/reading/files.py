"""The user's text files, read as streams; messages name file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2x.data.reading.documents import Piece, TextTooLongError, document, pieces_of
from gpt2x.data.reading.encodings import open_text
from gpt2x.data.reading.tables import TABLES, Columns, kind_of, read_rows
from gpt2x.data.reading.values import text_of
from gpt2x.errors import UserError
from gpt2x.runtime.hub import check_blob

CHUNK_CHARS = 1 << 16
TEXTS = (".txt", ".md")
SUFFIXES = (*TEXTS, *TABLES)


def read_documents(path: Path, column: str, on_blank: Callable[[], None] = lambda: None) -> Iterator[Piece]:
    """Yield the documents of one file: a .txt or .md is one, each row of a table is one.

    Args:
        path: the file.
        column: of a table, the column with the text.
        on_blank: called for each row without text, which is no document.

    Raises:
        UserError: a file that cannot be read, or a value that is no text; names the place.
    """
    if kind_of(path) in TEXTS:
        try:
            yield from pieces_of(_chunks(path))
        except TextTooLongError as error:
            raise UserError(f"{path} has {error}") from None
        return
    columns = Columns([column], "Set dataset.text_column to the one with the text.")
    for location, row in read_rows(path, columns):
        text = text_of(row[column], column, location)
        if not text or text.isspace():
            on_blank()
        yield from document(text)


def _chunks(path: Path) -> Iterator[str]:
    with open_text(path) as file:
        while chunk := file.read(CHUNK_CHARS):
            yield chunk


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file of text, without a byte order mark, every line end as a newline.

    Raises:
        UserError: no text, or not UTF-8; names line and byte.
    """
    with open_text(path) as file:
        yield from file


def hash_files(paths: list[Path]) -> str:
    """Return the sha256 over the contents of the files, in order; names do not matter, suffixes do.

    Raises:
        UserError: a file of the cache of the Hugging Face hub is damaged.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        check_blob(path, content)
        packed = ".gz" if path.suffix.lower() == ".gz" else ""
        digest.update(f"{kind_of(path)}{packed} {content}\n".encode())
    return digest.hexdigest()
