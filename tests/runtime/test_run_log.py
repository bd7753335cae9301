"""What a run directory says about itself: its log and its command."""

import errno
import io
import os
import sys

import pytest

from gpt2x.runtime import clock, console, exits, jobs
from gpt2x.runtime.console import Console, Progress, StepReport
from gpt2x.runtime.run_log import RunLog


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_early_lines_come_first_and_a_resumed_part_is_appended(tmp_path):
    log, path = RunLog(), tmp_path / "new" / "run.log"
    log.write("preparing")
    assert log.open(path, "python train.py seed=1") is None
    log.write("step 1/2\n")
    log.close()
    log.write("of a job without a directory")
    log.close()
    log.write("reading")
    log.open(path, "python train.py resume=auto")
    log.open(path)  # a different process of the same part
    log.write("step 2/2")
    first, *middle, second, reading, step = lines(path)
    assert first.endswith("  python train.py seed=1")
    assert middle == ["preparing", "step 1/2"]
    assert second.endswith("  python train.py resume=auto")
    assert (reading, step) == ("reading", "step 2/2")


def test_behind_a_live_bar_the_log_has_the_lines_of_a_pipe(tmp_path):
    logs = {}
    for is_live in (True, False):
        log, path = RunLog(), tmp_path / f"{is_live}.log"
        log.open(path)
        screen = Console(io.StringIO(), interactive=is_live, width=200, log=log)
        screen.panel("[bold]", {"Model": {"parameters": "12.9 M"}})
        with Progress(6, log_every_steps=2, console=screen, clock=lambda: 0.0) as progress:
            for step in range(1, 7):
                progress.update(StepReport(step=step, loss=3.0))
            progress.evaluation(6, {"val/loss": 3.1})
            screen.warn("w" * 300)
            screen.samples(6, [("The ", "cat\x1b[31m")])
        logs[is_live] = lines(path)
    assert logs[True] == logs[False]
    assert [line.split()[1] for line in logs[True] if line.startswith("step ")] == ["1/6", "2/6", "4/6", "6/6"]
    assert "warning: " + "w" * 300 in logs[True]
    assert "eval 6/6  val/loss 3.1000" in logs[True]
    assert not any("\x1b" in line for line in logs[True])


def test_a_silent_process_has_no_log(tmp_path):
    log = RunLog()
    log.open(tmp_path / "run.log")
    screen = Console(io.StringIO(), interactive=False, log=log)
    screen.silence()
    screen.notice("of rank 1")
    assert lines(tmp_path / "run.log") == []


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_is_said_once(tmp_path):
    log, stream = RunLog(), io.StringIO()
    assert log.open(tmp_path).strerror == "Is a directory"
    assert log.write("lost") is None
    log.open(tmp_path / "run.log")
    log._file = Full()
    screen = Console(stream, interactive=False, log=log)
    screen.notice("first")
    screen.notice("second")
    first, warning, second = stream.getvalue().splitlines()
    assert (first, second) == ("first", "second")
    assert warning == "warning: the log cannot be written (No space left on device)"


def test_what_ends_a_run_is_in_its_log(tmp_path, monkeypatch, capsys):
    log = RunLog()
    log.open(tmp_path / "run.log")
    monkeypatch.setattr(console, "run_log", log)
    monkeypatch.setattr(exits, "run_log", log)
    console.show_error("rank 1 ended with status 1")
    with pytest.raises(ZeroDivisionError):
        exits.guarded(lambda: 1 / 0)
    error, trace, *_, last = lines(tmp_path / "run.log")
    assert error == "error: rank 1 ended with status 1"
    assert trace == "Traceback (most recent call last):"
    assert last == "ZeroDivisionError: division by zero"


def test_processes_that_a_command_starts_know_it_as_it_was_typed(monkeypatch):
    monkeypatch.setenv(jobs.COMMAND_VARIABLE, "stale")
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python3", "/venv/bin/gpt2x", "train", "model.dropout=0.1,0.2"])
    jobs.note_command()
    assert os.environ[jobs.COMMAND_VARIABLE] == "gpt2x train model.dropout=0.1,0.2"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "gpt2x.commands.worker", "train", "config.yaml"])
    assert jobs.typed_command() == "gpt2x train model.dropout=0.1,0.2"
    monkeypatch.delenv(jobs.COMMAND_VARIABLE)
    assert jobs.typed_command() == "python -m gpt2x.commands.worker train config.yaml"


def test_a_job_counts_from_its_own_start(monkeypatch):
    monkeypatch.delenv(clock.STARTED, raising=False)
    since_process = clock.age_s()
    monkeypatch.setenv(clock.STARTED, "")  # restored after the test
    clock.begin_job()
    assert clock.age_s() < since_process
    assert clock.start() == os.environ[clock.STARTED], "what a launcher hands to its workers"
