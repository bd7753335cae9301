"""The wire format of protocol buffers, as far as MindSpore's files use it (protobuf.dev, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, BYTES = 0, 2  # wire types


class Field(NamedTuple):
    """One field of a message. A number has its value; bytes have the position of the first and after the last."""

    number: int
    value: int
    start: int = -1
    end: int = -1

    @property
    def has_bytes(self) -> bool:
        """Whether it is a text, a message or packed numbers."""
        return self.start >= 0


MAX_NUMBERS = 8192  # of one packed field; a shape has up to 8, a device matrix up to 10


def fields(content: bytes, start: int = 0, end: int | None = None, *, most: int = 1000) -> Iterator[Field]:
    """Yield the fields of the message in `content[start:end]`; of bytes, only their position is read.

    Args:
        content: bytes, or a mapped file.
        start: position of the message.
        end: position after the message; None: the end.
        most: fields that the message may have.

    Raises:
        ValueError: the message is cut off, has more fields, or a wire type that MindSpore's messages lack.
    """
    left = most
    at, end = start, len(content) if end is None else end
    while at < end:
        if (left := left - 1) < 0:
            raise ValueError(f"a message has more than {most:,} fields")
        begin = at
        key, at = _varint(content, at, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(content, at, end)
            yield Field(number, value)
        elif wire == BYTES:
            size, at = _varint(content, at, end)
            if at + size > end:
                raise ValueError(f"it ends within the {size} bytes at position {at}")
            yield Field(number, 0, at, at + size)
            at += size
        else:
            raise ValueError(f"byte {begin} is no field of it")


def numbers(content: bytes, field: Field) -> list[int]:
    """Return the numbers of a repeated field, one or packed.

    Raises:
        ValueError: packed numbers are cut off, or too many.
    """
    if field.end - field.start > MAX_NUMBERS:
        raise ValueError(f"a list of numbers has {field.end - field.start:,} bytes")
    if not field.has_bytes:
        return [field.value]
    values, at = [], field.start
    while at < field.end:
        value, at = _varint(content, at, field.end)
        values.append(value)
    return values


def text(content: bytes, field: Field) -> str:
    """Return a text.

    Raises:
        ValueError: it is not UTF-8, or longer than any name.
    """
    if not field.has_bytes or field.end - field.start > 4096:
        raise ValueError(f"field {field.number} is no text")
    return content[field.start : field.end].decode("utf-8")


def signed(value: int) -> int:
    """Return a number whose 64 bits are a two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def varint(value: int) -> bytes:
    """Return a number of at least 0 in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError(f"it ends within the number at position {at}")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError(f"the number before position {at} has more than 64 bits")
