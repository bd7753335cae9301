"""Directories that are built once, and whose files are compared with the index's digests before each use.

The index, `meta.json`, states the facts of the directory, the size and the digest of each file, and a digest of itself.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gpt2x.runtime.building import remove, sole_builder
from gpt2x.runtime.console import stderr
from gpt2x.runtime.files import new_directory
from gpt2x.runtime.role import LAUNCHER

META = "meta.json"
MAX_META_BYTES = 1 << 24
PIECE_BYTES = 1 << 24  # of a file, hashed by one thread
READ_BYTES = 1 << 20
ZEROS = bytes(READ_BYTES)
MAX_THREADS = 8


class DamagedError(Exception):
    """A file or a directory cannot be used; the message names it and the cause."""


def digest_of(facts: list[Any]) -> str:
    """Return the sha256 of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def code_hash(definition: Callable[..., Any]) -> str:
    """Return the sha256 of the file that defines a class or function.

    It belongs in the cache keys of what an extension makes, so that an extension that is being written never gets what
    an earlier version of it made.
    """
    return hashlib.sha256(Path(inspect.getfile(definition)).read_bytes()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 over the sha256 of each 16 MiB of a file; several threads read it.

    A MiB of zeros counts as one byte: a MindRecord file with few rows consists of little else.

    Raises:
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size

        def piece(start: int) -> bytes:
            digest = hashlib.sha256()
            for at in range(start, min(start + PIECE_BYTES, size), READ_BYTES):
                content = os.pread(descriptor, READ_BYTES, at)
                digest.update(b"0" if content == ZEROS else content)
            return digest.digest()

        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            return hashlib.sha256(b"".join(pool.map(piece, range(0, size, PIECE_BYTES)))).hexdigest()
    finally:
        os.close(descriptor)


def write_index(directory: Path, facts: dict[str, Any]) -> None:
    """Write the index of the files of a directory, which is complete."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != META]
    files = {str(path.relative_to(directory)): [path.stat().st_size, file_digest(path)] for path in paths}
    content = {"facts": facts, "files": files}
    text = json.dumps(content | {"sha256": digest_of([content])}, indent=2)
    (directory / META).write_text(text + "\n", encoding="utf-8")


class Index(NamedTuple):
    """The index of a directory.

    Attributes:
        facts: Stored with the directory.
        files: Size and digest of each file, by its path within the directory; None: an older version stored no digest.
    """

    facts: dict[str, Any]
    files: dict[str, tuple[int, str | None]]

    @property
    def has_digests(self) -> bool:
        """False of older versions."""
        return all(digest is not None for _, digest in self.files.values())


def read_index(directory: Path) -> Index | None:
    """Return the index of a directory; None if there is no such directory, or no index of gpt2x in it.

    Raises:
        DamagedError: The directory is a file, or the index is damaged.
    """
    path = directory / META
    if not os.path.lexists(directory):
        return None
    if not directory.is_dir():
        raise DamagedError(f"{directory} is no directory")
    if not os.path.lexists(path):
        return None
    require_regular(path)
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise DamagedError(f"{path} is damaged: an index has {MAX_META_BYTES:,} bytes at most")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in ("facts", "files")):
        return None
    if "sha256" in content and content.pop("sha256") != digest_of([content]):
        raise DamagedError(f"{path} is damaged: its content does not have its sha256")
    files = {}
    for name, entry in content["files"].items():
        size, digest = entry if isinstance(entry, list) and len(entry) == 2 else (entry, None)
        if not isinstance(size, int) or not isinstance(digest, str | None):
            raise DamagedError(f"{path} is damaged: it has {entry!r} for {name}")
        files[name] = size, digest
    return Index(content["facts"], files)


def was_checked() -> bool:
    """Return whether the launcher of this process has just compared the data's files with their digests."""
    return LAUNCHER in os.environ


def check_files(directory: Path, index: Index, names: Iterable[str] | None = None, *, only_sizes: bool = False) -> None:
    """Compare files of a directory with its index.

    Args:
        directory: Has the files.
        index: Of the directory.
        names: Those to compare; None: all.
        only_sizes: Do not read them.

    Raises:
        DamagedError: A file is missing, cannot be read, or differs.
    """
    for name in index.files if names is None else names:
        path, (size, digest) = directory / name, index.files[name]
        require_regular(path)
        try:
            if (actual := path.stat().st_size) != size:
                raise DamagedError(f"{path} is damaged: it has {actual:,} bytes of {size:,}")
            if digest is not None and not only_sizes and file_digest(path) != digest:
                raise DamagedError(f"{path} is damaged: its content has changed since it was written")
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({error.strerror})") from error


def require_regular(path: Path) -> None:
    """Raise DamagedError unless `path` is a file, or a link to one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise DamagedError(f"{path} is {'a directory' if stat.S_ISDIR(mode) else 'no regular file'}")


def read_facts(directory: Path, *, only_sizes: bool = False) -> dict[str, Any] | None:
    """Return the facts of a directory of the cache, whose files are as they were written; None if there is none.

    Args:
        directory: Of the cache.
        only_sizes: Do not read the files.

    Raises:
        DamagedError: Anything else; names the file and the cause.
    """
    index = read_index(directory)
    if index is None:
        if directory.is_dir() and any(directory.iterdir()):
            raise DamagedError(f"{directory} has no index of gpt2x ({META})")
        return None
    if not index.has_digests:
        raise DamagedError(f"{directory / META} was written by an older version, without digests")
    if index.facts.get("directory") != directory.name:
        raise DamagedError(f"{directory / META} is the index of a different directory")
    check_files(directory, index, only_sizes=only_sizes)
    return index.facts


def build_once(directory: Path, build: Callable[[Path], dict[str, Any]], *, key: str = "paths.cache") -> dict[str, Any]:
    """Return the facts of `directory`, and let `build` fill it first if it is not there or is damaged.

    Of several processes one builds, and the others wait for it.

    Args:
        directory: The complete directory, afterwards.
        build: Fills the directory that it gets, and returns facts for the index.
        key: The configuration key that the location comes from, for messages.

    Raises:
        UserError: The location cannot be written.
    """
    facts, damage = examined(directory, only_sizes=was_checked())
    if facts is not None:
        return facts
    if damage:
        stderr.notice(f"{damage}; it is built again")
    with sole_builder(directory, key=key):
        facts, _ = examined(directory)
        if facts is not None:  # another process has built it meanwhile
            return facts
        if not directory.is_dir():
            remove(directory)
        with new_directory(directory, key=key, keep=lambda: examined(directory)[0] is not None) as temporary:
            facts = build(temporary) | {"directory": directory.name}
            write_index(temporary, facts)
    return facts


def examined(directory: Path, *, only_sizes: bool = False) -> tuple[dict[str, Any] | None, str]:
    """Return the facts of a directory of the cache, if it is complete and undamaged; and what is damaged, else ""."""
    try:
        return read_facts(directory, only_sizes=only_sizes), ""
    except DamagedError as error:
        return None, str(error)
