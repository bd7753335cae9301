"""The shim sees every writer that gpt2x has: Python, SQLite, Arrow, MindSpore."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.shim import Call, Fault, calls_of, lose_unsynced, preloaded

# `strace` counts the same calls of the kernel
SEEN = {
    "python": {"open": 4, "write": 2, "fsync": 1, "ftruncate": 1, "rename": 1, "link": 1, "symlink": 1, "mkdir": 3,
               "utime": 2, "chmod": 1, "unlink": 2, "rmdir": 2, "truncate": 1},
    "sqlite": {"open": 3, "unlink": 2},
    "arrow": {"open": 1},
    "mindrecord": {"fopen": 1, "write": 3},
}  # fmt: skip
AT_LEAST = {"sqlite": {"pwrite": 10, "fsync": 4}, "arrow": {"write": 3}, "mindrecord": {"pwrite": 10, "fsync": 4}}


def run(shim, program, **variables):
    return subprocess.run(
        [sys.executable, *program], env=preloaded(shim) | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.launch
def test_every_writer_is_seen(shim, tmp_path):
    done = run(shim, ["-m", "tests.faults.writers", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for name, calls in SEEN.items():
        assert {call: seen[name].get(call) for call in calls} == calls, name
        assert all(seen[name][call] >= number for call, number in AT_LEAST.get(name, {}).items()), seen[name]


WRITE = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for number in range(3):
        try:
            print(file.write(b"0123456789"))
        except OSError as error:
            print(error.errno)
"""


@pytest.mark.launch
@pytest.mark.parametrize(
    ("fault", "status", "size", "printed"),
    [
        (Fault(), 0, 30, "10\n10\n10\n"),
        (Fault(3, "fail", errno.ENOSPC), 0, 20, f"10\n{errno.ENOSPC}\n10\n"),
        (Fault(3, "fail", errno.EIO, is_lasting=True), 1, 10, f"10\n{errno.EIO}\n{errno.EIO}\n"),
        (Fault(3, "fail", errno.EMFILE), 0, 30, "10\n10\n10\n"),  # no error of a write
        (Fault(3, "short"), 0, 25, "10\n5\n10\n"),
        (Fault(3, "kill"), -9, 10, "10\n"),
        (Fault(3, "tear"), -9, 15, "10\n"),
    ],
    ids=str,
)
def test_the_nth_call_meets_the_fault(shim, tmp_path, fault, status, size, printed):
    folder = tmp_path / "counted"
    folder.mkdir()
    trace = tmp_path / "trace"
    done = run(shim, ["-S", "-u", "-c", WRITE, str(folder / "file")], **fault.variables(folder, trace=trace))
    assert done.returncode == status, done.stderr  # with EIO, closing the file fails as well
    assert (folder / "file").stat().st_size == size
    assert done.stdout == printed
    names = [call.name for call in calls_of(trace)]
    assert names == ["open", "write", "write", "write", "close"][: 3 if status == -9 else 5]


def test_a_loss_of_power_takes_what_was_not_synced(tmp_path):
    kept, new, moved, whole = (tmp_path / name for name in ("kept", "new", "moved", "whole"))
    for path in (kept, new, moved, whole):
        path.write_text("0123456789")
    calls = [
        Call(1, "open", "open", str(kept), ""),  # 4 bytes were there
        Call(2, "write", "write", str(kept), "4"),
        Call(3, "create", "open", str(new), "new"),
        Call(4, "write", "write", str(new), "0"),
        Call(5, "sync", "fsync", str(new), "7"),
        Call(6, "write", "write", str(new), "7"),
        Call(7, "create", "open", str(tmp_path / "part"), "new"),
        Call(8, "name", "rename", str(tmp_path / "part"), str(moved)),
        Call(9, "create", "open", str(whole), "new"),
        Call(10, "sync", "fsync", str(whole), "10"),
    ]
    assert set(lose_unsynced(calls, {str(kept): 4})) == {kept, new, moved}
    assert [path.stat().st_size for path in (kept, new, moved, whole)] == [4, 7, 0, 10]
    assert os.path.isdir(Path(tmp_path))
