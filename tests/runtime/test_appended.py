"""Files that only grow: a disk that rejects a write or a fsync costs no byte; what a checkpoint noted is checked."""

import errno
import os

import pytest

from gpt2x.runtime import appended
from gpt2x.runtime.appended import Appended, intact_length, set_aside
from gpt2x.runtime.files import exchange, replaced, write_durably


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


@pytest.fixture
def disk(monkeypatch):
    """Set `disk.fails` to the name of a call of os, which then fails as on a full disk."""

    class Disk:
        fails = ""

    def guarded(name, call):
        def guard(*args):
            if Disk.fails == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args)

        return guard

    for name in ("open", "write", "fsync"):
        monkeypatch.setattr(appended.os, name, guarded(name, getattr(os, name)))
    yield Disk
    Disk.fails = ""


@pytest.mark.parametrize("call", ["open", "write"])
def test_what_a_full_disk_rejects_follows_later(path, disk, capsys, call):
    file = Appended(path)
    disk.fails = call
    file.append(b"one\n")
    file.append(b"two\n")
    assert not file.sync()
    assert capsys.readouterr().out.count("No space left") == 1
    disk.fails = ""
    file.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert file.sync()


def test_what_a_failed_fsync_may_have_lost_is_written_again(path, disk):
    file = Appended(path)
    file.append(b"one\n")
    assert file.sync()
    file.append(b"two\n")
    disk.fails = "fsync"
    assert not file.sync()
    assert path.read_bytes() == b"one\n"
    disk.fails = ""
    file.append(b"three\n")
    assert file.sync()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_memory_is_bounded_without_checkpoints(path, monkeypatch):
    monkeypatch.setattr(appended, "SYNC_BYTES", 100)
    file = Appended(path)
    for _ in range(100):
        file.append(b"0123456789")
        assert len(file._tail) <= 110
    assert len(path.read_bytes()) == 1000


def test_a_mark_describes_what_was_appended_so_far(path):
    file = Appended(path)
    assert file.mark()["bytes"] == 0
    assert not path.exists()
    file.append(b"one\n")
    file.close()
    file = Appended(path)
    file.append(b"two\n")
    mark = file.mark()
    file.append(b"three\n")
    assert intact_length(path.read_bytes(), mark) == 8
    assert intact_length(b"one\ntwO\nthree\n", mark) is None
    assert intact_length(b"one\ntwo", mark) is None
    assert intact_length(b"one\ntwo\n", None) is None


def test_what_is_moved_aside_is_there_before_it_is_taken_out(path, disk):
    Appended(path).append(b"one\ntwo\n")
    disk.fails = "fsync"
    with pytest.raises(OSError, match="No space"):
        Appended(path).cut(b"one\n", b"two\n")
    assert os.listdir(path.parent) == ["metrics.jsonl"]
    disk.fails = ""
    aside = set_aside(path, b"two\n")  # killed here
    assert Appended(path).cut(b"one\n", b"two\n") == aside
    assert path.read_bytes() == b"one\n"
    assert aside.read_bytes() == b"two\n"
    assert sorted(os.listdir(path.parent)) == ["metrics.1.jsonl", "metrics.jsonl"]


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "config.yaml"
    write_durably(path, b"old")
    with pytest.raises(TypeError), replaced(path) as part:
        part.write_bytes("ne")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_two_directories_change_places_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [os.listdir(tmp_path / name) for name in "ab"] == [["b"], ["a"]]
    assert not exchange(tmp_path / "a", tmp_path / "c")
