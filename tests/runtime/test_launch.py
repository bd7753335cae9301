"""Processes of a launch start, fail and end together; none is left. `probe.py` is what they run."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2x.config import LaunchConfig, ParallelConfig, TrainConfig
from gpt2x.errors import UserError
from gpt2x.runtime import launch
from gpt2x.runtime.processes import last_error
from gpt2x.runtime.role import LAUNCHER, Role, read_role
from tests.runtime.running import Running


class Launch(Running):
    """Launched probes."""

    def __init__(self, directory: Path, mode: str, *settings: str, world: int = 2):
        directory.mkdir(exist_ok=True)
        self.directory = directory
        super().__init__("-m", "tests.runtime.probe", "launch", str(directory), str(world), mode, *settings)

    def run_for_some_steps(self) -> None:
        """Wait until the processes take steps."""
        path, deadline = self.directory / "step", time.monotonic() + 90
        while not path.exists() or int(path.read_text() or 0) < 5:
            assert self.launcher.poll() is None, self.launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.launch
def test_all_ranks_finish_and_only_rank_0_is_heard(tmp_path):
    status, out, error = Launch(tmp_path, "finish").end(within_s=90)
    assert (status, out, error) == (0, "rank 0 begins\nrank 0 is done\n", "")
    assert (tmp_path / "logs/rank_1.log").read_text() == "rank 1 begins\nrank 1 is done\n"
    assert not (tmp_path / "logs/rank_0.log").exists()
    assert (tmp_path / "logs/scheduler.log").read_text() == ""


@pytest.mark.launch
def test_a_rank_that_raises(tmp_path):
    running = Launch(tmp_path, "raise")
    while not (tmp_path / "step").exists():
        time.sleep(0.1)
    status, _, error = running.end()
    assert status == 1
    log = tmp_path / "logs/rank_1.log"
    first, place, what, *_ = error.splitlines()
    assert first == f"error: rank 1 ended with status 1; {log} ends:"
    assert place.startswith('    File "')
    assert what == "  RuntimeError: boom"
    assert "Traceback" in log.read_text()


@pytest.mark.launch
def test_a_mistake_is_told_once(tmp_path):
    assert Launch(tmp_path, "mistake").end() == (2, "", "error: key=1 must be 2\n")


@pytest.mark.launch
def test_a_rank_that_is_killed(tmp_path):
    """Rank 0 is killed, and the others wait for it in a collective, in tests/train/test_launched.py."""
    rank = 1
    running = Launch(tmp_path, "forever")
    running.run_for_some_steps()
    os.kill(running.pid_of(rank), signal.SIGKILL)
    status, _, error = running.end()
    assert status == 1
    assert f"error: rank {rank} was killed by SIGKILL" in error


@pytest.mark.launch
def test_a_rank_that_others_wait_for_is_named(tmp_path):
    """With what it does, and where in the code; in collectives of MindSpore: tests/train/test_launched.py."""
    status, _, error = Launch(tmp_path, "sleep", "timeout_s=4").end()
    assert status == 1
    first, late, *stack, waiting, advice = error.splitlines()
    assert re.fullmatch(r"error: rank 0 is late: rank 1 has waited \d+ s", first)
    assert re.fullmatch(r"  rank 0: counting sheep, for \d+ s", late)
    assert re.fullmatch(r'    File ".*probe\.py", line \d+ in fall_asleep', stack[0])
    assert re.fullmatch(rf"  rank 1: starting, an exchange of all .*, for \d+ s; {tmp_path}/logs/rank_1\.log", waiting)
    assert advice == "launch.timeout_s=4 ends such a wait; if it is only slow, give more."


@pytest.mark.launch
def test_a_rank_that_is_stopped(tmp_path):
    running = Launch(tmp_path, "forever", "timeout_s=4")
    running.run_for_some_steps()
    os.kill(running.pid_of(0), signal.SIGSTOP)
    status, _, error = running.end()
    assert status == 1
    first, late, *_ = error.splitlines()
    assert first.startswith("error: rank 0 is late: rank 1 has waited ")
    assert late.endswith("; stopped by a signal or a debugger")


@pytest.mark.launch
@pytest.mark.parametrize(
    ("number", "receiver", "status"),
    [(signal.SIGINT, "launcher", 130), (signal.SIGTERM, "all", 143), (signal.SIGUSR1, "rank 0", 138)],
)
def test_a_signal_reaches_all_ranks(tmp_path, number, receiver, status):
    """Ranks that train agree on the update after which they stop: tests/train/test_launched.py."""
    running = Launch(tmp_path, "forever")
    running.run_for_some_steps()
    if receiver != "rank 0":
        os.kill(running.launcher.pid, number)
    if receiver != "launcher":
        os.kill(running.pid_of(0), number)
    text = f"interrupted by {number.name}"
    notice = f"{number.name}: the processes save and end; a second signal ends at once\n" * (receiver != "rank 0")
    assert running.end() == (status, "rank 0 begins\n", f"{notice}{text}\n")
    assert (tmp_path / "interrupted_0").read_text() == text
    assert (tmp_path / "logs/rank_1.log").read_text() == "rank 1 begins\n"


@pytest.mark.launch
def test_a_launcher_that_is_killed_takes_all_with_it(tmp_path):
    running = Launch(tmp_path, "forever")
    running.run_for_some_steps()
    running.launcher.kill()
    assert running.end(within_s=5)[0] == -signal.SIGKILL


@pytest.mark.launch
def test_a_taken_port_and_a_foreign_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, error = Launch(tmp_path, "finish", f"port={port}").end()
        assert status == 2
        assert error.startswith(f"error: launch.port={port} cannot be used on 127.0.0.1 (Address already in use)")
    with pytest.raises(UserError, match=r"launch\.address=192\.0\.2\.1 is not an address of this machine"):
        launch.reserve("192.0.2.1", None)
    with pytest.raises(UserError, match=r"launch\.address=no\.such\.host\.invalid cannot be resolved"):
        launch.resolve("no.such.host.invalid")
    with launch.reserve("127.0.0.1", None) as reserved:
        assert reserved.getsockname()[1] > 0


@pytest.mark.launch
@pytest.mark.exhaustive
def test_a_program_that_keeps_the_scheduler_waiting_is_named(tmp_path):
    """A message of MindSpore's protocol that never ends: its scheduler then hears no worker."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))  # else an attempt could reach itself, from the port that it tries
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        running = Launch(tmp_path, "finish", f"port={port}", "timeout_s=4")
        while stranger.connect_ex(("127.0.0.1", port)):
            assert running.launcher.poll() is None, running.launcher.communicate()
            time.sleep(0.001)
        stranger.sendall(b"RPC0" + struct.pack("!IIII", 8, 8, 8, 4096))  # lengths of name, receiver, sender and body
        status, _, error = running.end(within_s=180)
    assert status == 1
    assert f"process {os.getpid()} (" in error
    assert f") is connected to port {port} of this run and does not belong to it." in error


@pytest.mark.launch
def test_the_scheduler_says_that_its_port_was_taken_meanwhile(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = launch.cluster(2, "127.0.0.1", taken.getsockname()[1], 60) | {"MS_ROLE": "MS_SCHED"}
        spare = os.open(os.devnull, os.O_RDONLY)
        done = subprocess.run(
            [sys.executable, "-m", "gpt2x.runtime.scheduler", str(spare)], env=os.environ | variables,
            pass_fds=[spare], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        os.close(spare)
    assert done.returncode == 2
    assert "error: MindSpore's scheduler cannot listen on 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


def test_roles():
    """The one place that reads how a process was started."""
    alone = read_role({"RANK_ID": "5"})  # as some clusters set it for all processes
    assert alone == Role()
    assert (alone.is_worker, alone.decides) == (False, True)
    with pytest.raises(UserError, match="--node_rank"):
        read_role({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2"})
    msrun = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1"}
    assert read_role(msrun) == Role(rank=1, msrun_workers=2)
    assert (read_role(msrun).is_worker, read_role(msrun).decides) == (True, False)
    assert read_role(msrun | {"MS_NODE_ID": "0"}).decides
    launched = read_role(msrun | {LAUNCHER: "1", "MS_NODE_ID": "0"})
    assert (launched.is_launched, launched.is_under_msrun, launched.is_worker, launched.decides) == (
        True, False, True, False,
    )  # fmt: skip
    assert read_role({LAUNCHER: "1"}) == Role(is_launched=True), "the only process of a sweep job"
    scheduler = read_role({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1"})
    assert (scheduler.is_scheduler, scheduler.is_worker, scheduler.rank) == (True, False, 0)


@pytest.mark.parametrize("name", ["MS_NODE_ID", "MS_WORKER_NUM", "DEVICE_ID"])
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "²", "1_0"])
def test_a_variable_of_msrun_that_is_no_number(name, value):
    msrun = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1", "DEVICE_ID": "0"}
    with pytest.raises(UserError, match=f"the environment variable {name}={value} is no whole number"):
        read_role(msrun | {name: value})


def test_variables_of_msrun_that_are_empty_are_not_set():
    msrun = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": " 1 "}
    assert read_role(msrun | {"DEVICE_ID": " "}) == Role(rank=1, msrun_workers=2)
    assert read_role(dict.fromkeys(["MS_ROLE", "MS_NODE_ID", "MS_WORKER_NUM", "DEVICE_ID"], "")) == Role()
    with pytest.raises(UserError, match="--node_rank"):
        read_role(msrun | {"MS_NODE_ID": ""})


def test_a_layout_that_msrun_does_not_start():
    config = TrainConfig(parallel=ParallelConfig(name="dp4", data=4))
    with pytest.raises(UserError, match=r"parallel=dp4 has 4 processes, but msrun was given --worker_num=2: use"):
        launch.require_worker_num(config, Role(msrun_workers=2))
    launch.require_worker_num(config, Role(msrun_workers=4))
    launch.require_worker_num(config, Role())


def test_timeouts_of_devices():
    """Later than the launcher's limit; HCCL allows 120 s to 7200 s for connecting."""
    assert launch.timeouts(LaunchConfig(timeout_s=60), "CPU") == {"MS_CPU_COMM_OP_TIMEOUT": "90"}
    assert launch.timeouts(LaunchConfig(timeout_s=60), "Ascend") == {
        "HCCL_EXEC_TIMEOUT": "90",
        "HCCL_CONNECT_TIMEOUT": "120",
    }


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("", []),
        ("hello\nworld\n", ["hello", "world"]),
        ("error: old\nTraceback (most recent call last):\n  File \"a.py\", line 1\n    f()\nValueError: no\nmore\n",
         ['  File "a.py", line 1', "ValueError: no", "more"]),
        ("Traceback (most recent call last):\nValueError: no\nwarning: x\nerror: key=1 is wrong\n",
         ["error: key=1 is wrong"]),
    ],
)  # fmt: skip
def test_the_last_error_of_a_log(tmp_path, text, last):
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == last
