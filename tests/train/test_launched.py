"""train.py in several processes: run directory, tracker and status, however they end."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gpt2x import checkpoint
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_sync import end_abandoned
from tests.runtime.running import Running
from tests.support.layout_jobs import resumed
from tests.support.layout_runs import LAUNCHED
from tests.support.processes import start
from tests.support.small_runs import ROOT, curve, run_dirs, small

TRACKED = ["parallel=dp2", "tracker=mlflow", "tracker.system_metrics=false"]
SHALLOW = ["model.num_layers=1", "trainer.eval_every_steps=100000"]  # whose graphs are compiled soon
ENDLESS = ["trainer.max_steps=100000", "trainer.log_every_steps=1"]

pytestmark = LAUNCHED


def options(directory: Path, *more: str) -> list[str]:
    return [*(option for option in small(directory) if option != "tracker=none"), *SHALLOW, *TRACKED, *more]


def mlflow_runs(directory: Path) -> list[tuple[str, int]]:
    """Status of each run, and its number of stored losses."""
    with sqlite3.connect(directory / "outputs/mlflow.db") as store:
        return store.execute(
            "select status, (select count(distinct step) from metrics where metrics.run_uuid = runs.run_uuid and "
            "key = 'train/loss') from runs"
        ).fetchall()


def run_until_step(running: Running, step: int) -> list[str]:
    """The lines that it prints up to a step."""
    lines = []
    for line in running.launcher.stdout:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            return lines
    raise AssertionError(("".join(lines), running.launcher.communicate()[1]))


def run_until_tracked(running: Running, folder: Path) -> Path:
    """Its run directory, once MLflow has made its store: a store takes longer than an ending run may."""
    run_until_step(running, 5)
    (run_dir,) = run_dirs(folder)
    while not RunRecord.load(run_dir).run_id:
        time.sleep(0.2)
    return run_dir


def test_an_interrupted_run_is_killed_in_the_tracker_and_resumed_in_its_directory(tmp_path):
    """The resumed run goes on until rank 0 is killed: then it has failed in the tracker."""
    running = Running("train.py", *options(tmp_path, *ENDLESS, "trainer.checkpoint_every_steps=2"))
    run_dir = run_until_tracked(running, tmp_path)
    os.killpg(running.launcher.pid, signal.SIGINT)
    status, out, error = running.end()
    assert status == 130, error
    assert "is saved; continue with resume=auto" in out
    assert error.splitlines()[-1] == "interrupted by SIGINT"
    assert "Traceback" not in error
    assert mlflow_runs(tmp_path) == [("KILLED", max(curve(run_dir)))]
    last = checkpoint.list_checkpoints(run_dir)[-1]
    step = int(last.name.removeprefix("step_"))
    before = curve(run_dir)
    running = Running("train.py", *options(tmp_path, *ENDLESS, "trainer.checkpoint_every_steps=2", "resume=auto"))
    run_until_step(running, step + 3)
    os.kill(running.pid_of(0), signal.SIGKILL)
    status, _, error = running.end()
    assert status == 1
    assert "error: rank 0 was killed by SIGKILL" in error
    if "warning: MLflow may show the run as RUNNING (no answer in 8 s)" in error:  # a machine that is busy
        start("-m", "gpt2x", "sync", str(run_dir))
    assert run_dirs(tmp_path) == [run_dir]
    after = curve(run_dir)
    assert list(after) == list(range(1, max(after) + 1))
    assert all(after[number] == before[number] for number in before if number in after)
    assert mlflow_runs(tmp_path) == [("FAILED", max(after))], "what rank 0 had not sent is sent"
    typed = (run_dir / "command.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("train.py ")[2].endswith(" resume=auto") for line in typed] == [False, True]
    log = (run_dir / "run.log").read_text(encoding="utf-8")
    ends = ["\ninterrupted by SIGINT: step", "\nerror: rank 0 was killed by SIGKILL"]
    told = [typed[0], "step 5/100000", ends[0], typed[1], ends[1]]
    places = [log.index(text) for text in told]
    assert places == sorted(places)
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert config["resume"] == str(last)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("layout", "doing"),
    [("dp2", r"update \d+ \(collectives over data \[0, 1\]\)"), ("pp2", r"update \d+ .*, a message (to|from) rank 1")],
)
def test_a_rank_that_is_stopped_in_a_run_is_named(tmp_path, layout, doing):
    size = ["parallel.micro_batches=2", "trainer.micro_batch_size=null", "model.num_layers=2"]
    more = [*SHALLOW, *ENDLESS, *(size if layout == "pp2" else []), f"parallel={layout}", "launch.timeout_s=20"]
    running = Running("train.py", *small(tmp_path), *more)
    run_until_step(running, 3)
    os.kill(running.pid_of(1), signal.SIGSTOP)
    status, _, error = running.end(within_s=60)
    assert status == 1
    assert "Traceback" not in error
    first, late, waiting, _ = error.splitlines()[-4:]
    assert first.startswith("error: rank 1 is late: rank 0 has waited ")
    assert "; stopped by a signal or a debugger; " in late
    assert re.fullmatch(rf"  rank 0: {doing}, for \d+ s", waiting)


@pytest.mark.needs("dp2", resumed("dp2", "dp2"))
def test_a_branch_in_the_same_layout_repeats_every_bit(layout_runs):
    """One run is typed, its branch part of a launch that other runs share: neither changes a bit."""
    assert curve(layout_runs.of(resumed("dp2", "dp2"))) == curve(layout_runs.of("dp2"))


def test_nodes_share_a_run_directory(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["launch.num_nodes=2", "launch.address=localhost", f"launch.port={port}", "trainer.max_steps=2"]
    nodes = [Running("train.py", *options(tmp_path, *where, f"launch.node_rank={node}")) for node in (0, 1)]
    ends = [node.end(within_s=400) for node in nodes]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert ends[1][1] == "", "node 1 has no rank 0"
    (run_dir,) = run_dirs(tmp_path)
    (saved,) = checkpoint.list_checkpoints(run_dir)
    checkpoint.open_checkpoint(saved).verify()
    (other,) = {path.parent for path in (tmp_path / "outputs").rglob("logs")} - {run_dir}
    assert {path.name for path in other.iterdir()} == {"logs"}
    assert {path.name for path in (other / "logs").iterdir()} == {"rank_1.log", "node_1.yaml"}


def test_a_multirun_over_layouts(tmp_path):
    start("train.py", "-m", "parallel=single,tp2", *small(tmp_path), *SHALLOW, "trainer.max_steps=2")
    runs = sorted(run_dirs(tmp_path), key=lambda run: run.name)
    single, tensor = (curve(run, "train/loss") for run in runs)
    assert [loss for (loss,) in single.values()] == pytest.approx([loss for (loss,) in tensor.values()], abs=1e-5)
    end = max(curve(runs[0], "time").values())[0]
    begun, took = curve(runs[1], "time", "perf/startup_time_s")[1]
    assert begun - took > end, "the second job counts from its own start"
    for run in runs:
        assert (run / "command.txt").read_text(encoding="utf-8").split()[2:4] == ["-m", "parallel=single,tp2"]
    logs = [(run / "run.log").read_text(encoding="utf-8") for run in runs]
    assert all(log.count("step 2/2") == 1 for log in logs)


def msrun(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The user's own msrun with two workers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("msrun")), "--worker_num=2", "--local_worker_num=2", "--join=True",
               f"--master_port={port}", f"--log_dir={directory}/msrun", str(ROOT / "train.py"), *arguments]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # msrun starts `python`
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_under_msrun_there_is_one_run(tmp_path):
    done = msrun(tmp_path, *options(tmp_path, "trainer.max_steps=2"))
    logs = {path.name: path.read_text() for path in (tmp_path / "msrun").iterdir()}
    assert "run directory:" in logs["worker_0.log"], (done.stdout, done.stderr, logs)
    assert logs["worker_1.log"] == logs["scheduler.log"] == ""
    (run_dir,) = run_dirs(tmp_path)
    assert list(run_dir.parent.iterdir()) == [run_dir]
    assert list(curve(run_dir)) == [1, 2]
    assert mlflow_runs(tmp_path) == [("FINISHED", 2)]


def test_under_msrun_with_another_number_of_workers(tmp_path):
    started = time.monotonic()
    done = msrun(tmp_path, *small(tmp_path), "parallel=dp4", "trainer.micro_batch_size=1")
    assert done.returncode
    assert time.monotonic() - started < 30
    logs = [path.read_text() for path in (tmp_path / "msrun").iterdir()]
    message = (
        "error: parallel=dp4 has 4 processes, but msrun was given --worker_num=2: use msrun --worker_num=4, "
        "or a layout of 2.\n"
    )
    assert message in logs
    assert set(logs) <= {message, ""}, "msrun may have ended the others before they came to it"
    assert not list((tmp_path / "outputs").rglob("*.yaml"))


def test_a_dead_tracking_server_is_not_waited_for(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        RunRecord(uri=uri, artifact_root=None, experiment="e", run_name="r").save(tmp_path)
        started = time.monotonic()
        end_abandoned(tmp_path, "FAILED", wait_s=1.0)
        assert time.monotonic() - started < 5
    assert "sync" in capsys.readouterr().err
    record = RunRecord.load(tmp_path)
    assert record is not None
    assert record.status == "FAILED"
    end_abandoned(tmp_path, "KILLED", wait_s=0.0)
    assert RunRecord.load(tmp_path) == record, "a status that is known stays"
