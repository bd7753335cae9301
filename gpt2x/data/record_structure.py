"""The structure of a MindRecord file, checked before MindSpore opens it: MindSpore ends the process if it is damaged.

Nothing is taken from here: rows are read by MindSpore. The format is that of MindSpore 2.10
(minddata/mindrecord/io/shard_reader.cc, meta/shard_header.cc and meta/shard_column.cc):

- 8 bytes: the length of the header, little-endian; the header, JSON: schema, pages, names of the files.
- `header_size` bytes later come pages of `page_size` bytes, with blobs (arrays and bytes) or raw data (other columns).
- A row's part of a page begins with the length of the rest, 8 bytes, little-endian.
- A blob has its columns in the order of `blob_fields`, each after its length, 8 bytes, big-endian; a single column has
  no length. An array of integers is compressed: the number of its elements, 4 bytes, big-endian; two bits per element,
  which say that it has 1, 2, 4 or 8 bytes; the elements.
- `FILE.db` is an SQLite database with a row's pages and offsets (`INDEXES`) and the file's name (`SHARD_NAME`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.data.cache import DamagedError, require_regular

LENGTH_BYTES = 8
MAX_BYTES = 1 << 30  # of the header, and of a page
PAGE_TYPES = ("RAW_DATA", "BLOB_DATA")
INTEGERS = ("int32", "int64")
TYPES = (*INTEGERS, "float32", "float64", "string", "bytes")
OFFSETS = ("PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END", "PAGE_ID_BLOB", "PAGE_OFFSET_BLOB",
           "PAGE_OFFSET_BLOB_END")  # fmt: skip
WIDTHS = np.array([sum(1 << (byte >> shift & 3) for shift in (0, 2, 4, 6)) for byte in range(256)])  # of 4 elements


@dataclass(frozen=True)
class Header:
    """What of a header says where rows are.

    Attributes:
        header_size: bytes before the first page.
        page_size: bytes of a page.
        pages: the type of each page, of PAGE_TYPES.
        rows: the numbers of the rows in each page with blobs; empty in others.
        blob_types: the types of the blobs' columns.
    """

    header_size: int
    page_size: int
    pages: list[str]
    rows: list[range]
    blob_types: list[str]


def check_structure(file: Path) -> None:
    """Read all of a MindRecord file and of its index `FILE.db` once, and compare lengths, types and offsets.

    Raises:
        DamagedError: Names the file and the cause.
    """
    database = file.with_name(f"{file.name}.db")
    for path in (file, database):
        require_regular(path)
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror})") from error
    try:
        header = _read_header(descriptor, file)
        places = _read_index(database, file.name)
        num_rows = sum(len(rows) for rows, kind in zip(header.rows, header.pages, strict=True) if kind == "BLOB_DATA")
        if header.blob_types and num_rows != len(places):
            raise DamagedError(f"{file} is damaged: its header has {num_rows:,} rows, and its index {len(places):,}")
        for number, place in enumerate(places):
            _check_row(descriptor, header, number, place, file)
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def _read_header(descriptor: int, file: Path) -> Header:
    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise DamagedError(f"{file} is damaged: {what}")

    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, LENGTH_BYTES, 0), "little")
    expect(0 < length <= min(size - LENGTH_BYTES, MAX_BYTES), f"its header has {length:,} bytes of {size:,}")
    try:
        header = json.loads(os.pread(descriptor, length, LENGTH_BYTES).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise DamagedError(f"{file} is damaged: its header is not JSON") from None
    if isinstance(header, dict) and "page" in header and header["page"] is None:
        header["page"] = []  # of several files that were written together, one may have no rows
    expect(_is_header(header), "its header has other keys or types")
    pages, header_size, page_size = header["page"], header["header_size"], header["page_size"]
    expect(LENGTH_BYTES + length <= header_size <= MAX_BYTES and 0 < page_size <= MAX_BYTES, "the sizes of its pages")
    types: list[str] = []
    rows: list[range] = []
    num_rows = 0
    for page in pages:
        numbers = page["page_id"], page["page_type_id"]
        expect(numbers == (len(types), types.count(page["page_type"])), "the numbers of its pages")
        expect(page["page_size"] <= page_size, "the size of a page")
        start, stop = page["start_row_id"], page["end_row_id"]
        if page["page_type"] == "BLOB_DATA":
            expect(num_rows == start <= stop, "the rows of its pages")
            num_rows = stop
        rows.append(range(start, stop))
        expect(all(group["offset"] <= page["page_size"] for group in page["row_group_ids"]), "the groups of a page")
        types.append(page["page_type"])
    end = header_size + page_size * (len(pages) - 1) + pages[-1]["page_size"] if pages else LENGTH_BYTES + length
    expect(size >= end, f"it has {size:,} bytes, and its pages end at {end:,}")
    columns = header["schema"][0]["schema"]
    return Header(
        header_size, page_size, types, rows, [columns[name]["type"] for name in header["schema"][0]["blob_fields"]]
    )


def _no_constant(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity, which are no JSON


def _is_header(header: Any) -> bool:
    """Return whether every value that MindSpore takes from a header has its type."""
    return (
        _has(header, header_size=int, page_size=int, shard_id=int, version=str, page=list, schema=list,
             shard_addresses=list)
        and {"index_fields", "statistics"} <= header.keys()
        and _is_count(header.get("compression_size", 0))
        and all(_is_page(page) and page["shard_id"] == header["shard_id"] for page in header["page"])
        and len(header["schema"]) == 1
        and _is_schema(header["schema"][0])
        and all(isinstance(address, str) for address in header["shard_addresses"])
        and header["shard_id"] < len(header["shard_addresses"])
        and _are(header["index_fields"], lambda field: _has(field, index_field=str, schema_id=int)
                 and field["index_field"] in header["schema"][0]["schema"] and field["schema_id"] == 0)
        and _are(header["statistics"], lambda one: _has(one, desc=str, statistics=dict))
    )  # fmt: skip


def _has(values: Any, **types: type) -> bool:
    """Return whether `values` is an object with these keys, of these types; numbers are not negative."""
    return isinstance(values, dict) and all(
        _is_count(values.get(key)) if kind is int else isinstance(values.get(key), kind) for key, kind in types.items()
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are(values: Any, is_one: Any) -> bool:
    return values is None or (isinstance(values, list) and all(map(is_one, values)))


def _is_page(page: Any) -> bool:
    numbers = dict.fromkeys(("page_id", "page_type_id", "page_size", "start_row_id", "end_row_id", "shard_id"), int)
    return (
        _has(page, page_type=str, row_group_ids=list, **numbers)
        and page["page_type"] in PAGE_TYPES
        and all(_has(group, id=int, offset=int) for group in page["row_group_ids"])
    )


def _is_schema(schema: Any) -> bool:
    if not _has(schema, desc=str, blob_fields=list, schema=dict):
        return False
    arrays = []
    for name, column in schema["schema"].items():
        if not _has(column, type=str) or column["type"] not in TYPES or not column.keys() <= {"type", "shape"}:
            return False
        shape = column.get("shape", [])
        if not isinstance(shape, list) or not all(type(size) is int and -1 <= size < 1 << 31 for size in shape):
            return False
        if "shape" in column or column["type"] == "bytes":
            arrays.append(name)
    return sorted(map(str, schema["blob_fields"])) == sorted(arrays)


def _read_index(database: Path, name: str) -> Sequence[tuple[Any, ...]]:
    """Return the pages and offsets of the rows, as OFFSETS names them, in the order of their numbers."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            (state,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if state != "ok":
                raise DamagedError(f"{database} is damaged: {' '.join(state.split())}")
            names = [one for (one,) in connection.execute("SELECT NAME FROM SHARD_NAME")]
            rows = connection.execute(f"SELECT ROW_ID, {', '.join(OFFSETS)} FROM INDEXES ORDER BY ROW_ID").fetchall()
            groups = connection.execute("SELECT ROW_GROUP_ID FROM INDEXES").fetchall()
    except sqlite3.Error as error:
        raise DamagedError(f"{database} is damaged: {error}") from None
    if names != [name]:
        raise DamagedError(f"{database} is the index of {', '.join(map(str, names)) or 'no file'}, not of {name}")
    if not all(type(value) is int and value >= 0 for row in (*rows, *groups) for value in row):
        raise DamagedError(f"{database} is damaged: a place that is no number")
    if [row[0] for row in rows] != list(range(len(rows))):
        raise DamagedError(f"{database} is damaged: rows are missing or there twice")
    return [row[1:] for row in rows]


def _check_row(descriptor: int, header: Header, number: int, place: tuple[Any, ...], file: Path) -> None:
    for kind, (page, start, end) in zip(PAGE_TYPES, (place[:3], place[3:]), strict=True):
        if kind == "BLOB_DATA" and not header.blob_types:
            return
        if (
            page >= len(header.pages)
            or header.pages[page] != kind
            or not start + LENGTH_BYTES <= end <= header.page_size
            or (kind == "BLOB_DATA" and number not in header.rows[page])
        ):
            raise DamagedError(f"{file}.db is damaged: row {number} is at no place of the file")
        content = os.pread(descriptor, end - start, header.header_size + page * header.page_size + start)
        if (
            len(content) != end - start
            or int.from_bytes(content[:LENGTH_BYTES], "little") != len(content) - LENGTH_BYTES
        ):
            raise DamagedError(f"{file} is damaged: row {number} has another length than its index says")
        if kind == "BLOB_DATA" and not _is_blob(memoryview(content)[LENGTH_BYTES:], header.blob_types):
            raise DamagedError(f"{file} is damaged: row {number} has other columns than the header says")


def _is_blob(content: memoryview, types: list[str]) -> bool:
    """Return whether the lengths within a row's blob add up to its own."""
    for kind in types:
        if len(types) == 1:
            column, content = content, content[len(content) :]
        else:
            if len(content) < LENGTH_BYTES:
                return False
            (length,) = struct.unpack(">Q", content[:LENGTH_BYTES])
            if length > len(content) - LENGTH_BYTES:
                return False
            column, content = content[LENGTH_BYTES : LENGTH_BYTES + length], content[LENGTH_BYTES + length :]
        if kind in INTEGERS and not _is_compressed(column):
            return False
    return not len(content)


def _is_compressed(column: memoryview) -> bool:
    """Return whether the widths of an array's elements add up to its length."""
    if len(column) < 4:
        return False
    (count,) = struct.unpack(">I", column[:4])
    num_bytes = -(-count // 4)
    widths = np.frombuffer(column[4 : 4 + num_bytes], np.uint8)
    if len(widths) != num_bytes:
        return False
    unused = -count % 4  # elements of the last byte, of width 1 each
    return int(WIDTHS[widths].sum()) - unused == len(column) - 4 - num_bytes
