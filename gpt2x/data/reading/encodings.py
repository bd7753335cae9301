"""Files of text as characters: by their byte order mark, else UTF-8; what they are instead is said."""

# ruff: noqa: RUF001 - letters of many scripts stand for the texts that have them
from __future__ import annotations

import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO
from unicodedata import category

from gpt2x.compatibility import Entry, Format, Use
from gpt2x.errors import UserError
from gpt2x.runtime import limits

# the longer mark first: UTF-32's begins as UTF-16's does
MARKS = {
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
SIGNATURES = {
    b"PK\x03\x04": "a zip archive (.xlsx and .docx are such archives)",
    b"\x1f\x8b": "compressed by gzip",
    b"(\xb5/\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"SQLite format 3": "a SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
}
SAMPLE_BYTES = 1 << 18  # before the first byte that is not UTF-8, and from its line on
JAPANESE_MAIL = b"\x1b$B"  # begins Japanese characters in ISO-2022-JP, whose bytes are all ASCII
# first bytes of the common characters: level 1 of GB 2312 and Big5, the syllables of KS X 1001
COMMON = {"gb2312": range(0xB0, 0xD8), "big5": range(0xA4, 0xC7), "euc_kr": range(0xB0, 0xC9)}
PUNCTUATION = "\u3000-\u303f\uff01-\uff5e“”‘’—…·"


class Legacy(NamedTuple):
    """An encoding without a mark, and what a text in it looks like.

    Attributes:
        name: for iconv and Python.
        usual: the characters that nearly all beyond ASCII are; or the name of an encoding that has them in `COMMON`.
        frequent: characters of which a text in this encoding has many.
        least: the share of `frequent` among those beyond ASCII, at least.
    """

    name: str
    usual: str
    frequent: str = ""
    least: float = 0.0


# A script in which words are runs of characters beyond ASCII; the first that fits is the encoding.
SCRIPTS = (
    Legacy("EUC-JP", f"[ぁ-ヿ一-龠{PUNCTUATION}]", "[ぁ-ヿ]", 0.15),
    Legacy("CP932", f"[ぁ-ヿ一-龠{PUNCTUATION}]", "[ぁ-ヿ]", 0.15),
    Legacy("CP949", "euc_kr"),
    Legacy("GB18030", "gb2312"),
    Legacy("BIG5", "big5"),
    Legacy("CP1251", "[а-яёіїєґА-ЯЁІЇЄҐ«»—–“”„…№]", "[аио]", 0.15),
    Legacy("KOI8-R", "[а-яёА-ЯЁ]", "[аио]", 0.15),
    Legacy("CP1253", "[\u0386-\u03ce«»—–“”…]", "[αοι]", 0.15),
)
# Letters with accents between ASCII letters: the western one first, since its text may have one such letter only.
LATIN = (
    Legacy("CP1252", "[àâäãáåæçéèêëíìîïñóòôöõøœúùûüÿßšžÀÂÄÃÁÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÖÕØŒÚÙÛÜŸŠŽ«»‘’“”‚„–—…€£§°©®·•™´¡\xa0]"),
    Legacy("CP1250", "[ąćęłńóśźżáčďéěíňřšťúůýžôľĺŕäöüßőűăâîşţĄĆĘŁŃÓŚŹŻÁČĎÉĚÍŇŘŠŤÚŮÝŽÔĽÄÖÜŐŰĂÂÎŞŢ„”“’‘–—…«»§°\xa0]"),
    Legacy("CP1254", "[ğışçöüâîûĞİŞÇÖÜÂÎÛ“”’‘–—…\xa0]"),
)
ENCODINGS = Format(
    "Data files: encodings",
    "Of all data files but `.parquet`, also of those that gzip compressed. Unicode's byte order marks and iconv define "
    "them.",
    (
        Entry("UTF-8", Use.READ, "with or without a byte order mark; a byte that is none is named with its line"),
        Entry("UTF-16, UTF-32 with a byte order mark", Use.READ),
        Entry("UTF-16, UTF-32 without one", Use.REJECTED, "the message has the iconv command"),
        *(Entry(one.name, Use.REJECTED, "the message has the iconv command, if the text shows the encoding")
          for one in (*LATIN, *SCRIPTS)),
        Entry("ISO-2022-JP", Use.REJECTED, "the message has the iconv command"),
        Entry("a byte 0x00", Use.REJECTED, "no text has it"),
        *(Entry(name, Use.REJECTED, "named by its first bytes, whatever the file is called")
          for name in dict.fromkeys(SIGNATURES.values())),
    ),
    "rejected with the first byte that is not UTF-8.",
)  # fmt: skip


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a file of text, packed by gzip if it is named `.gz`; a byte order mark is skipped.

    Args:
        path: the file.
        newline: as for `open`.

    Raises:
        UserError: when opened or read: a file that is no text, an encoding without a mark that is not UTF-8, a byte
            0x00, damaged gzip.
    """
    try:
        with _open_bytes(path) as packed:
            head = packed.read(16)
            _reject_binary(path, head)
            encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
            packed.seek(0)
            raw = packed if encoding in ("utf-16", "utf-32") else io.BufferedReader(_Checked(packed))
            with io.TextIOWrapper(raw, encoding=encoding, newline=newline) as file:
                yield file
    except (UnicodeDecodeError, NotUTF8Error) as error:
        raise wrong_encoding(path) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged, or not compressed by gzip ({error}). Copy it again.") from error


class NotUTF8Error(Exception):
    """A file has bytes that UTF-8 allows and no text in UTF-8 has."""


class _Checked(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read(len(buffer))
        if b"\0" in content or JAPANESE_MAIL in content:
            raise NotUTF8Error
        buffer[: len(content)] = content
        return len(content)


class _Unpacked(gzip.GzipFile):
    """A file packed by gzip, whose text is not hundreds of times as long as what is stored."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path, self._most = path, max(limits.UNPACKED_BYTES, limits.UNPACKED_RATIO * path.stat().st_size)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() > self._most:
            raise UserError(
                f"{self._path} unpacks to more than {limits.UNPACKED_RATIO} times its size, as no text does. Unpack it "
                "yourself if that is right."
            )
        return content


def _open_bytes(path: Path) -> BinaryIO:
    return _Unpacked(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _reject_binary(path: Path, head: bytes) -> None:
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"{path} is no text: its first bytes say that it is {name}. Unpack or convert it.")


def wrong_encoding(path: Path) -> UserError:
    """Return the error for the first byte that is not UTF-8, with the command that converts the file, if it is sure.

    The decoder knows only the byte's index in a buffer.
    """
    with _open_bytes(path) as file:
        head = file.read(4)
        name = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
        if name in ("utf-16", "utf-32"):
            return UserError(f"{path} begins as {name.upper()} does, but is not valid {name.upper()}. Write it again.")
        file.seek(0)
        offset = 0
        for number, line in enumerate(file, 1):
            at = _first_fault(line)
            if at is not None:
                start = max(0, offset - SAMPLE_BYTES) // 4 * 4
                file.seek(start)
                advice = _advice(path, file.read(offset - start + SAMPLE_BYTES))
                place = f"byte 0x{line[at]:02x} at offset {offset + at} (line {number})"
                return UserError(f"{path} is not valid UTF-8: {place}. {advice}")
            offset += len(line)
    return UserError(f"{path} is not valid UTF-8. Write it again as UTF-8.")


def _first_fault(line: bytes) -> int | None:
    faults = [at for at in (line.find(b"\0"), line.find(JAPANESE_MAIL)) if at >= 0]
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        faults.append(error.start)
    return min(faults, default=None)


def _advice(path: Path, sample: bytes) -> str:
    encoding = encoding_of(sample)
    if encoding is None:
        return "Correct the byte, or convert the file to UTF-8 from the encoding that it was written in."
    if encoding == "UTF-8":
        return "The rest is UTF-8: correct or remove this byte."
    if encoding == "binary":
        return "A byte 0x00 is in no text: remove it, or give a file of text."
    file = shlex.quote(str(path))
    source = f"gzip -dc {file} | " if path.suffix.lower() == ".gz" else ""
    stem = path.name.removesuffix(".gz")
    return (
        f"It looks like {encoding}. Convert it: {source}iconv -f {encoding} -t UTF-8 "
        f"{'' if source else file + ' '}> {shlex.quote(f'converted{Path(stem).suffix}')}"
    )


def encoding_of(sample: bytes) -> str | None:
    """Return iconv's name of the encoding of bytes that are not UTF-8; None if they do not show it.

    `binary` if they have 0x00 and are no UTF-16 or UTF-32; `UTF-8` if most characters beyond ASCII are UTF-8.
    """
    if b"\0" in sample:
        return _wide_encoding(sample)
    if JAPANESE_MAIL in sample:
        return "ISO-2022-JP"
    text = sample.decode("utf-8", "replace")
    faults = text.count("\ufffd")
    if sum(not character.isascii() for character in text) - faults > faults:
        return "UTF-8"
    sample = sample[: sample.rfind(b"\n") + 1] or sample  # no character is cut
    runs = re.findall(rb"[\x80-\xff]+", sample)
    # in CP932 and Big5 the second byte of a character may be ASCII
    has_words = sum(map(len, runs)) >= max(8, 2.2 * len(runs)) or re.search(rb"([\x80-\xff][\x40-\x7e]?){8}", sample)
    return next((one.name for one in (*(SCRIPTS if has_words else ()), *LATIN) if _fits(one, sample)), None)


def _fits(legacy: Legacy, sample: bytes) -> bool:
    try:
        text = sample.decode(legacy.name)
    except UnicodeDecodeError:
        return False
    beyond = [character for character in text if not character.isascii()]
    usual = sum(_is_usual(legacy, character) for character in beyond)
    frequent = len(re.findall(legacy.frequent, text)) if legacy.frequent else 0
    return usual >= 0.99 * len(beyond) and frequent >= legacy.least * len(beyond)


def _is_usual(legacy: Legacy, character: str) -> bool:
    if legacy.usual.startswith("["):
        return re.fullmatch(legacy.usual, character) is not None
    if re.fullmatch(f"[{PUNCTUATION}]", character):
        return True
    first = character.encode(legacy.usual, "ignore")[:1]
    return bool(first) and first[0] in COMMON[legacy.usual]


def _wide_encoding(sample: bytes) -> str:
    """UTF-16 or UTF-32 without a mark: the one in which all characters are assigned, with ends of words or lines."""
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        try:
            text = sample[: len(sample) // 4 * 4].decode(name)[: SAMPLE_BYTES // 16]
        except UnicodeDecodeError:
            continue
        has_ends = re.search(r"[ \n.,\u3001\u3002\uff0c]", text) is not None
        is_text = all(character in "\t\r\n" or category(character)[0] != "C" for character in text)
        if has_ends and is_text and not re.search("[\u0a00\u2000]", text):  # a newline and a blank, read the wrong way
            return name
    return "binary"
