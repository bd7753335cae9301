"""MLflow's stores in one file of sqlite: their addresses, their creation, and stores that have moved.

MLflow gives an address to SQLAlchemy, which reads the file's name as a part of a URL: `%20` is a blank, and `?` begins
options. So the characters `%` and `?` of a name are escaped.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpt2x.errors import UserError
from gpt2x.runtime.locks import lock_file

SCHEME = "sqlite:///"
ARTIFACTS = "mlartifacts"  # the folder of artifacts beside the file
# table -> the columns in which MLflow keeps addresses of artifacts
ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def sqlite_uri(file: Path) -> str:
    """Return the address by which MLflow opens a file.

    Raises:
        UserError: the installed SQLAlchemy cannot open a file of this name.
    """
    plain = SCHEME + str(file)
    if not set("%?") & set(plain):
        return plain
    from sqlalchemy.engine import make_url

    escaped = SCHEME + str(file).replace("%", "%25").replace("?", "%3F")
    for uri in (escaped, plain):  # SQLAlchemy before 2.1 unescapes nothing
        if make_url(uri).database == str(file):
            return uri
    raise UserError(
        f"tracker=mlflow: SQLAlchemy cannot open {file}, because of the question mark in its name. Rename the "
        "directory, or pip install 'sqlalchemy>=2.1'."
    )


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an address that `sqlite_uri` has returned; None if it is that of a different store."""
    if not uri.startswith(SCHEME):
        return None
    name = uri.removeprefix(SCHEME)
    is_escaped = any(escape in name for escape in ("%25", "%3F")) and sqlite_uri(Path(unquote(name))) == uri
    return Path(unquote(name) if is_escaped else name)


def typed_file(uri: str) -> Path:
    """Return the file that `tracker.uri=sqlite:///FILE` names: FILE as it is typed, since it is a path.

    If only the file exists that MLflow understands by the address, it is that one: an address was pasted.
    """
    name = uri.removeprefix(SCHEME)
    typed, of_url = Path(name).absolute(), Path(unquote(name.partition("?")[0])).absolute()
    return of_url if of_url.is_file() and not typed.exists() else typed


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create or open a sqlite store; most concurrent first users fail otherwise."""
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(file.with_name(f"{file.name}.lock")):
        if not file.exists():
            create_store(file)
        yield
    if uri != SCHEME + str(file):  # MLflow makes the directory of an escaped name
        with contextlib.suppress(OSError):
            os.removedirs(Path(uri.removeprefix(SCHEME)).parent)


def create_store(file: Path) -> None:
    """Create a sqlite store completely or not at all: MLflow cannot open one whose creation was interrupted."""
    from mlflow.tracking.client import MlflowClient

    part = file.with_name(f"{file.name}.part")
    for left in (part, part.with_name(f"{part.name}-journal")):  # by a process that was killed
        left.unlink(missing_ok=True)
    MlflowClient(tracking_uri=sqlite_uri(part)).search_experiments(max_results=1)
    os.replace(part, file)


def moved_uri(uri: str, run_dir: Path, recorded_dir: str) -> str:
    """Return the address of a run's store, after the run directory was moved or copied, with its store or without.

    Args:
        uri: the address that was recorded.
        run_dir: the run directory, absolute.
        recorded_dir: the run directory when the address was recorded, absolute.
    """
    file = sqlite_file(uri)
    if file is None:
        return uri
    moved = Path(os.path.normpath(run_dir / os.path.relpath(file, recorded_dir)))
    return sqlite_uri(moved) if moved.is_file() else uri


def follow_artifacts(uri: str, recorded: str, current: str) -> None:
    """Let a store find its artifacts again after both were moved or copied.

    Args:
        uri: the store.
        recorded: the address of an experiment's artifacts that the store has.
        current: where they belong now.
    """
    file = sqlite_file(uri)
    root, _, name = current.rpartition(f"/{ARTIFACTS}/")
    if file is None or recorded == current or not recorded.endswith(f"/{ARTIFACTS}/{name}"):
        return
    before, now = (Path(unquote(urlsplit(address).path)) for address in (recorded, current))
    if not before.exists() or (now.exists() and not now.samefile(before)):
        update_addresses(file, recorded.removesuffix(name), f"{root}/{ARTIFACTS}/")


def update_addresses(file: Path, recorded: str, current: str) -> None:
    """Change the addresses of artifacts in a store that has moved.

    Args:
        file: the store.
        recorded: how the addresses begin that the store has.
        current: how they begin now.
    """
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, columns in ADDRESSES.items():
            for column in columns if table in tables else ():
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (current, len(recorded) + 1, len(recorded), recorded),
                )
