"""One owner per directory: who is rejected, by what a dead owner is recognised, and 20 processes at once."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import time
from dataclasses import asdict, replace

import pytest

from gpt2x.errors import UserError
from gpt2x.runtime import owner, owner_record
from gpt2x.runtime.owner import OwnedError, living_owner, owning
from tests.support.owners import forked, own_for_ever


def without_locks(monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def without_links(monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


FILE_SYSTEMS = {
    "locks and links": (),
    "no locks": (without_locks,),
    "no links": (without_links,),
    "neither": (without_locks, without_links),
}


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request, monkeypatch):
    for change in FILE_SYSTEMS[request.param]:
        change(monkeypatch)
    return request.param


def test_a_second_process_is_rejected_with_the_name_of_the_owner_until_that_is_gone(tmp_path, file_system):
    with forked(own_for_ever(tmp_path)) as pid:
        assert living_owner(tmp_path).pid == pid
        with pytest.raises(
            OwnedError, match=rf"belongs to process {pid} on {socket.gethostname()} since 20\d\d-.*: .+"
        ):
            owning(tmp_path).__enter__()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead
        assert living_owner(tmp_path) is None
        with owning(tmp_path):
            assert living_owner(tmp_path).pid == os.getpid()
            assert [path.name for path in tmp_path.iterdir()] == [".owner.2"]
    assert not list(tmp_path.iterdir())
    assert living_owner(tmp_path) is None


def test_blocks_in_blocks_and_processes_that_the_owner_starts_belong_to_it(tmp_path, monkeypatch):
    with owning(tmp_path), owning(tmp_path / "sub" / ".."):
        (token,) = os.environ[owner.OWNERS].split()

        def body(ready):  # as a process that was started has it
            monkeypatch.setattr(owner, "_inherited", [token])
            with owning(tmp_path):
                ready()

        with forked(body):
            assert living_owner(tmp_path).pid == os.getpid()
    assert os.environ[owner.OWNERS] == ""
    assert living_owner(tmp_path) is None


def test_the_lock_lives_as_long_as_a_process_that_inherited_it(tmp_path):
    def body(ready):
        with owning(tmp_path):
            if os.fork() == 0:
                time.sleep(60)
            ready()
            os._exit(0)

    with forked(body) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        (record,) = owner_record.records_of(tmp_path)
        assert record.is_alive
        assert record.is_orphaned
        for child in orphans(tmp_path):
            os.kill(child, signal.SIGKILL)
        with owning(tmp_path):  # waits for the end of such processes
            pass


def orphans(directory):
    """Return the processes that have a record of the directory open."""
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            for descriptor in os.scandir(f"/proc/{int(entry.name)}/fd"):
                if os.readlink(descriptor.path).startswith(f"{directory}/.owner."):
                    yield int(entry.name)


def test_the_owner_on_another_machine_lives_while_its_record_is_touched(tmp_path):
    with owning(tmp_path):
        record = json.loads((tmp_path / ".owner.1").read_text())
    path = tmp_path / ".owner.3"
    path.write_text(json.dumps(record | {"boot": "another", "host": "node7", "pid": 77}))
    with pytest.raises(
        OwnedError, match=r"process 77 on node7 .*\n.*last sign of life was \d s ago; .* 600 s .* dead\. .*delete"
    ):
        owning(tmp_path).__enter__()
    os.utime(path, (0, time.time() - owner_record.LIMIT_S - 5))
    with owning(tmp_path):
        assert sorted(each.name for each in tmp_path.iterdir()) == [".owner.4"]
    path.write_text(json.dumps(record | {"boot": "another"}))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a file system whose locks all machines share
        os.utime(path, (0, 0))
        assert living_owner(tmp_path).boot == "another"


def test_a_container_of_this_machine_is_asked_by_the_lock_and_without_locks_by_its_signs_of_life(tmp_path):
    here = owner_record.this_process(has_lock=True)
    other = replace(here, namespace="pid:[1]", token="x")
    (tmp_path / ".owner.1").write_text(json.dumps(asdict(other)))
    assert living_owner(tmp_path) is None
    (tmp_path / ".owner.1").write_text(json.dumps(asdict(replace(other, has_lock=False))))
    assert living_owner(tmp_path) == replace(other, has_lock=False)


def test_a_process_with_the_same_number_is_another_one(tmp_path):
    earlier = replace(owner_record.this_process(has_lock=False), started=1)
    (tmp_path / ".owner.1").write_text(json.dumps(asdict(earlier)))
    assert living_owner(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"pid": "x"}', "\x00" * 300])
def test_a_damaged_record_is_that_of_no_living_process(tmp_path, text):
    (tmp_path / ".owner.5").write_text(text)
    with pytest.raises(OwnedError, match="just beginning"):
        owning(tmp_path).__enter__()
    os.utime(tmp_path / ".owner.5", (0, 0))
    with owning(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".owner.6"]


@pytest.mark.parametrize("left", ["nothing", "a dead owner"])
def test_of_twenty_processes_at_once_one_owns_the_directory(tmp_path, file_system, left):
    directory = tmp_path / "run"
    if left == "a dead owner":
        with forked(own_for_ever(directory)):
            pass
    begin, go = os.pipe()
    answers, answer = os.pipe()
    pids = []
    for _ in range(20):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(go)
            os.read(begin, 1)  # until the parent closes its end
            try:
                with owning(directory):
                    os.write(answer, b"1")
                    time.sleep(60)
            except UserError:
                os.write(answer, b"0")
            finally:
                os._exit(0)
    os.close(go)
    got = b"".join(os.read(answers, 1) for _ in range(20))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert sorted(got) == sorted(b"1" + b"0" * 19)
    for descriptor in (begin, answers, answer):
        os.close(descriptor)


def test_an_owner_that_was_taken_for_dead_ends(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(owner, "SETTLE_S", 0.0)
    with owning(tmp_path):
        (hold,) = owner._holds.values()
        hold.check()
        assert not ended
        successor = replace(
            owner_record.this_process(has_lock=False), pid=1, started=owner_record.start_ticks(1), token="y"
        )
        (tmp_path / ".owner.2").write_text(json.dumps(asdict(successor)))
        hold.check()
        (tmp_path / ".owner.2").unlink()
    assert ended == [1]
    assert "belongs to another process by now" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_named_and_one_that_stays_empty_is_removed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/run \(Not a directory\)"):
        owning(tmp_path / "file" / "run").__enter__()
    with owning(tmp_path / "a" / "b"):
        pass
    with owning(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "file"]


@pytest.mark.parametrize("hours", [-7, 7])
def test_a_clock_that_jumps_by_hours_takes_no_directory_from_its_owner(tmp_path, file_system, monkeypatch, hours):
    now = time.time
    with forked(own_for_ever(tmp_path)) as pid:
        monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
        monkeypatch.setattr(owner_record, "file_system_time", lambda directory: now() + 3600 * hours)
        assert living_owner(tmp_path).pid == pid
        with pytest.raises(OwnedError, match=f"process {pid}"):
            owning(tmp_path).__enter__()
    with owning(tmp_path):
        (hold,) = owner._holds.values()
        assert hold.successor() is None


def test_an_owner_of_this_machine_that_is_stopped_stays_the_owner_however_long(tmp_path, file_system, monkeypatch):
    """Its process is there, and continues to write when it is continued; only another machine cannot see that."""
    monkeypatch.setattr(owner_record, "LIMIT_S", 0.0)
    with forked(own_for_ever(tmp_path)) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        os.utime(tmp_path / ".owner.1", (0, 0))
        with pytest.raises(OwnedError, match=f"process {pid}"):
            owning(tmp_path).__enter__()
        monkeypatch.setattr(owner_record, "namespace", lambda: "pid:[1]")  # of a container beside it
        is_seen = file_system.startswith(("locks", "no links"))
        assert (living_owner(tmp_path) is not None) == is_seen
