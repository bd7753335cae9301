"""Locks of files: who has one, who waits for it, and file systems that have none."""

import errno
import fcntl
import math
import os
import threading
import time

import pytest

from gpt2x.runtime import locks
from gpt2x.runtime.building import if_sole_builder, sole_builder
from gpt2x.runtime.locks import lock
from gpt2x.runtime.shares import place
from gpt2x.tracking import mlflow_record, sqlite_store
from tests.support.owners import forked


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    return path


def hold(path, kind=fcntl.LOCK_EX):
    """Return what has a lock until its process is killed."""

    def body(ready):
        with path.open("r+") as file:
            assert lock(file, kind)
            ready()
            time.sleep(60)

    return body


def test_a_lock_is_free_again_when_its_process_is_gone(path):
    with path.open("r+") as file:
        with forked(hold(path)):
            assert lock(file) is False
            assert lock(file.fileno(), fcntl.LOCK_SH, wait_s=0.01) is False
        assert lock(file) is True
    with path.open("r+") as file, forked(hold(path, fcntl.LOCK_SH)):
        assert lock(file) is False
        assert lock(file, fcntl.LOCK_SH) is True


def test_a_wait_ends_when_the_lock_is_free(path, monkeypatch):
    monkeypatch.setattr(locks, "POLL_S", 0.001)
    with path.open("r+") as file, path.open("r+") as other:
        assert lock(other)
        waiting = threading.Event()
        monkeypatch.setattr(locks, "time", type("Clock", (), {
            "monotonic": time.monotonic, "sleep": lambda s: (waiting.set(), time.sleep(s))}))  # fmt: skip
        answers = []
        thread = threading.Thread(target=lambda: answers.append(lock(file, wait_s=math.inf)))
        thread.start()
        waiting.wait()
        other.close()
        thread.join()
    assert answers == [True]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_byte_locks_that_stand_in_for_flock_say_that_it_is_taken_in_two_ways(path, monkeypatch, number):
    def flock(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with path.open("r+") as file:
        assert lock(file) is False


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_on_a_file_system_without_locks_everybody_works_without_them(tmp_path, path, monkeypatch, number):
    def flock(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(sqlite_store, "create_store", lambda file: file.touch())
    with path.open("r+") as file:
        assert lock(file, wait_s=math.inf) is None
    with place(tmp_path / "places", 2) as number, place(tmp_path / "places", 2) as second:
        assert (number, second) == (0, 0)
    with (
        sole_builder(tmp_path / "rows"),
        sole_builder(tmp_path / "rows"),
        if_sole_builder(tmp_path / "rows") as is_sole,
    ):
        assert not is_sole
    assert mlflow_record.hold_live(tmp_path) is None
    assert not mlflow_record.is_dead(tmp_path)
    with mlflow_record.sweep_lock(tmp_path), mlflow_record.save_lock(tmp_path):
        pass
    with mlflow_record.sender_lock(tmp_path, 0.0) as is_free:
        assert is_free
    with sqlite_store.store_lock(f"sqlite:///{tmp_path}/mlflow.db"):
        assert (tmp_path / "mlflow.db").exists()
    assert not list(tmp_path.glob(".rows*"))


def test_a_run_is_dead_when_the_process_that_held_it_is_gone(tmp_path):
    assert not mlflow_record.is_dead(tmp_path)  # nobody held it

    def body(ready):
        live = mlflow_record.hold_live(tmp_path)
        ready()
        time.sleep(60)
        live.close()

    with forked(body), forked(body):  # a run and its mirror
        assert not mlflow_record.is_dead(tmp_path)
    assert mlflow_record.is_dead(tmp_path)
