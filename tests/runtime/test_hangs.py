"""Who keeps the others waiting, by what each process last said."""

import os
import tempfile
from pathlib import Path

import pytest

from gpt2x.runtime import heartbeat
from gpt2x.runtime.hangs import Hang, Report, describe, find_hang
from gpt2x.runtime.heartbeat import ALL, INSIDE, NOTHING, Heartbeat

LIMIT_S, NOW = 60.0, 1000.0


def worker(rank, meetings, waits_for, waited_s=61.0, *, stopped=False):
    doing = f"update {meetings}" if waits_for == INSIDE else "work"
    return Report(rank, Heartbeat(meetings, waits_for, NOW - waited_s, doing), stopped, Path(f"rank_{rank}.log"))


@pytest.mark.parametrize(
    ("workers", "late", "waiting"),
    [
        ([worker(0, 8, INSIDE), worker(1, 7, NOTHING, 5.0)], [1], [0]),
        ([worker(0, 8, INSIDE, 70.0), worker(1, 7, NOTHING), worker(2, 8, ALL, 80.0), worker(3, 6, INSIDE)], [1, 3],
         [2, 0]),
        ([worker(0, 8, INSIDE), worker(1, 8, INSIDE, stopped=True)], [1], [0]),
        # messages of a pipeline: 0 waits for 1, which waits for 2, which computes
        ([worker(0, 8, "1"), worker(1, 8, "2"), worker(2, 8, INSIDE, 3.0)], [2], [0, 1]),
        ([worker(0, 9, "1"), worker(1, 8, "2"), worker(2, 8, INSIDE)], [2], [0, 1]),  # 0 is an update ahead
        ([worker(0, 8, "9")], [9], [0]),  # of a different node
        ([worker(0, 8, "1"), worker(1, 8, "0")], [], [0, 1]),  # for each other
    ],
)  # fmt: skip
def test_who_is_late(workers, late, waiting):
    hang = find_hang(workers, len(workers), LIMIT_S, NOW)
    assert hang is not None
    assert (hang.late, sorted(hang.waiting)) == (late, sorted(waiting))


@pytest.mark.parametrize(
    "workers",
    [
        [worker(0, 8, INSIDE), worker(1, 8, INSIDE)],  # a slow update
        [worker(0, 1, ALL), worker(1, 1, ALL)],  # for MindSpore's scheduler, which is slow
        [worker(0, 8, NOTHING), worker(1, 7, NOTHING)],  # nobody waits
        [worker(0, 8, INSIDE, 59.0), worker(1, 7, NOTHING)],  # not long enough
        [worker(0, 8, ALL, 59.0), worker(1, 8, INSIDE, stopped=True)],
    ],
)
def test_nobody_is_late(workers):
    assert find_hang(workers, len(workers), LIMIT_S, NOW) is None


def test_an_exchange_with_other_nodes():
    workers = [worker(0, 8, ALL), worker(1, 8, ALL)]
    assert find_hang(workers, 4, LIMIT_S, NOW) == Hang([], [0, 1])
    assert find_hang([worker(0, 8, INSIDE), worker(1, 8, INSIDE)], 4, LIMIT_S, NOW) is None


def test_the_longest_wait_is_named_first():
    workers = [worker(0, 8, INSIDE, 70.0), worker(1, 7, NOTHING, 65.0, stopped=True), worker(2, 8, INSIDE, 90.0)]
    assert find_hang(workers, 3, LIMIT_S, NOW) == Hang([1], [2, 0])


def test_the_message():
    workers = [worker(0, 8, INSIDE), worker(1, 7, NOTHING, 65.0, stopped=True)]
    assert describe(Hang([1], [0]), workers, NOW, {1: ["  File x"]}).splitlines() == [
        "rank 1 is late: rank 0 has waited 61 s",
        "  rank 1: work, for 65 s; stopped by a signal or a debugger; rank_1.log",
        "    File x",
        "  rank 0: update 8, for 61 s; rank_0.log",
    ]
    lines = describe(Hang([9, 10], [0]), workers, NOW).splitlines()
    assert lines[0].startswith("ranks 9, 10 are late: ")
    assert lines[1] == "  rank 9: on a different node"
    assert "no process of this machine is late" in describe(Hang([], [0]), workers, NOW)


def test_a_heartbeat_is_what_the_launcher_reads(monkeypatch):
    with tempfile.TemporaryFile() as file:
        read = lambda: heartbeat.read(file.fileno(), started=5.0)  # noqa: E731
        assert read() == Heartbeat(since=5.0)
        monkeypatch.setenv(heartbeat.HEARTBEAT, str(file.fileno()))
        monkeypatch.setattr(heartbeat, "_current", Heartbeat())
        heartbeat.meets("update 1 (collectives over data [0, 1])")
        with heartbeat.message("a message from", 3):
            assert read().waits_for == "3"
            assert read().doing == "update 1 (collectives over data [0, 1]), a message from rank 3"
        assert (read().meetings, read().waits_for) == (1, INSIDE)
        heartbeat.does("x" * 10_000)
        heartbeat.does("saving")
        with heartbeat.exchange():
            assert (read().meetings, read().waits_for) == (2, ALL)
        assert read() == Heartbeat(2, NOTHING, read().since, "saving")
        with pytest.raises(RuntimeError), heartbeat.exchange():
            raise RuntimeError
        assert (read().meetings, read().waits_for) == (3, ALL), "a failed process did not leave its exchange"
        assert os.fstat(file.fileno()).st_size <= heartbeat.LINE_BYTES
