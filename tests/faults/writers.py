"""Things that write files, each by its own code: what the shim has to see of them.

LD_PRELOAD=shim.so python -m tests.faults.writers FOLDER     prints {writer: {call: count}}
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.shim import Fault, calls_of, disarm


def python(folder: Path) -> None:
    """Python's own calls."""
    (folder / "a").write_text("text")
    with (folder / "b").open("ab") as file:
        file.write(b"bytes")
        file.flush()
        os.fsync(file.fileno())
        file.truncate(2)
    os.replace(folder / "a", folder / "c")
    shutil.copyfile(folder / "c", folder / "d")
    os.link(folder / "d", folder / "e")
    os.symlink("d", folder / "f")
    (folder / "g" / "h").mkdir(parents=True)
    (folder / "g" / "h" / "i").touch()
    os.utime(folder / "d")
    os.chmod(folder / "d", 0o600)
    shutil.rmtree(folder / "g")
    os.truncate(folder / "d", 1)
    (folder / "d").unlink()


def sqlite(folder: Path) -> None:
    """SQLite, whose calls are its own."""
    connection = sqlite3.connect(folder / "store.db")
    with connection:
        connection.execute("CREATE TABLE rows (number INTEGER)")
        connection.executemany("INSERT INTO rows VALUES (?)", [(number,) for number in range(1000)])
    connection.close()


def arrow(folder: Path) -> None:
    """Arrow's Parquet writer, in C++."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), str(folder / "rows.parquet"))


def mindrecord(folder: Path) -> None:
    """MindSpore's writer of MindRecord, in C++, with an index by SQLite."""
    from gpt2x.data.mindrecord import write_rows

    rows = np.ones((3, 8), np.int32)
    write_rows(folder / "rows.mindrecord", [(rows, rows, rows)], "three rows")


WRITERS: dict[str, Callable[[Path], None]] = {
    "python": python,
    "sqlite": sqlite,
    "arrow": arrow,
    "mindrecord": mindrecord,
}


def main() -> None:
    """Call each writer, and print the calls that the shim has seen."""
    seen = {}
    for name, writer in WRITERS.items():
        folder = Path(sys.argv[1]).resolve() / name
        folder.mkdir()
        trace = folder.with_name(f"{name}.trace")
        Fault().arm(folder, trace=trace)
        writer(folder)
        disarm()
        seen[name] = dict(Counter(call.name for call in calls_of(trace)))
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
