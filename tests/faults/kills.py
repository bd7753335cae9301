"""A run is killed by SIGKILL at random instants and started again by the same command, until it ends.

    python -m tests.faults.kills --kills 200 --layout single --report kills.md

Each phase of a run is hit about equally often; it is what rank 0 does. Killed are all processes, as by a machine that
fails, or one: that of the run, or in a layout the launcher or a rank. The run that was killed has to equal one that was
not: every float of metrics.jsonl, every value in MLflow once, every sample, and no file more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2x.runtime import heartbeat
from gpt2x.train.run_search import CLAIM_S
from tests.faults import starts
from tests.faults.starts import Started
from tests.support.small_runs import small

STEPS = 12
RUN = [f"trainer.max_steps={STEPS}", "trainer.checkpoint_every_steps=2", "trainer.eval_every_steps=4",
       "trainer.sample_prompts=['the cat']", "generation.max_new_tokens=8", "generation.min_new_tokens=1",
       "model.dropout=0.1", "trainer.keep_last=2", "tracker=mlflow", "tracker.system_metrics=false"]  # fmt: skip
LAYOUTS = {"single": [], "dp2": ["parallel=dp2"], "tp2": ["parallel=tp2"]}
NUM_RANKS = 2  # of each layout
PHASES = ("starting", "compiling", "training", "evaluating", "saving", "sampling", "ending")
HIDDEN = "pretrain/*/*/checkpoints/.step_*"  # checkpoints that are not complete
START_S = 600.0  # a start may take, on a busy machine
GONE_S = 60.0  # what is left of a run after a kill may take to end


def phase_of(doing: str) -> str:
    """Return the phase of a run by what its heartbeat says."""
    for word, phase in (("compiling", "compiling"), ("Evaluate", "evaluating"), ("SaveCheckpoint", "saving"),
                        ("DrawSamples", "sampling"), ("reading", "training"), ("update", "training"),
                        ("waiting for the checkpoint", "ending")):  # fmt: skip
        if word in doing:
            return phase
    return "starting"


@dataclass
class Report:
    """What happened."""

    layout: str
    kills: int = 0
    runs: int = 0
    starts: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    durations: dict[str, float] = field(default_factory=dict)  # of the phases of an undisturbed run
    victims: Counter[str] = field(default_factory=Counter)
    steps_compared: int = 0
    samples_compared: int = 0
    values_in_mlflow: int = 0
    synced: int = 0  # runs that said that MLflow lacks a part, and by which command it gets it
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0

    def markdown(self) -> str:
        """Return the report as Markdown."""
        phases = ", ".join(f"{name} {self.phases[name]}" for name in PHASES)
        lasting = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.durations.items())
        lines = [
            f"| kills, {self.layout} | {self.kills} in {self.runs} runs, {self.starts} starts |",
            "|---|---|",
            f"| phases hit | {phases} |",
            f"| they last, undisturbed | {lasting} |",
            f"| killed | {', '.join(f'{name} {count}' for name, count in sorted(self.victims.items()))} |",
            f"| steps compared with the undisturbed run | {self.steps_compared} |",
            f"| samples compared | {self.samples_compared} |",
            f"| values compared in MLflow | {self.values_in_mlflow} |",
            f"| runs whose rest went to MLflow by the command that they named | {self.synced} |",
            f"| findings | {len(self.findings)} |",
            f"| wall, processor | {self.seconds:.0f} s, {self.cpu_s:.0f} s |",
        ]
        return "\n".join([*lines, "", *(f"- {finding}" for finding in self.findings)]) + "\n"


class Kills:
    """The runs of one layout below a folder.

    Args:
        folder: of corpus, cache and outputs.
        layout: a key of LAYOUTS.
        seed: of the instants.
        is_forked: start runs from this process, which has imported everything.
    """

    def __init__(self, folder: Path, layout: str, seed: int, is_forked: bool):
        self.folder, self.layout, self.is_forked = folder, layout, is_forked
        self.random = random.Random(seed)
        self.report = Report(layout)
        (folder / "cwd").mkdir(parents=True)
        self.durations = self.report.durations
        self.watched = 0  # a run
        self.workers: dict[int, tuple[int, int]] = {}  # its ranks

    def options(self, outputs: Path) -> list[str]:
        """Return the command line; a supervisor repeats it."""
        own = [option for option in small(self.folder) if not option.startswith(("paths.outputs", "trainer.sample"))]
        paths = [f"paths.outputs={outputs}", f"tracker.uri=sqlite:///{self.folder}/mlflow.db"]
        return [*own, *RUN, *LAYOUTS[self.layout], *paths]

    def start(self, outputs: Path, *more: str) -> Started:
        """Start the command."""
        self.report.starts += 1
        self.outputs, self.remains = outputs, set(outputs.glob(HIDDEN))
        start = starts.fork if self.is_forked else starts.spawn
        outputs.mkdir(parents=True, exist_ok=True)
        return start([*self.options(outputs), *more], self.folder / "cwd", self.folder / "printed")

    def to_end(self, outputs: Path, *more: str) -> None:
        """Run the command to its end."""
        run = self.start(outputs, *more)
        if status := run.wait(START_S):
            raise AssertionError(f"status {status}: {run.printed()[-1500:]}")

    def reference(self) -> None:
        """Run undisturbed, twice: the first run fills the caches."""
        self.to_end(self.folder / "first")
        begun = time.monotonic()
        run = self.start(self.folder / "reference")
        self.watch(run, begun)
        self.cache = names_in(self.folder / "cache")
        self.names = {name for name in names_in(run_dir(self.folder / "reference"))}

    def watch(self, run: Started, begun: float) -> None:
        """Measure how long the phases of an undisturbed run last (s)."""
        phase, since = "starting", begun
        while run.poll() is None:
            now, doing = time.monotonic(), self.phase(run)
            if doing != phase:
                self.durations[phase] = max(self.durations.get(phase, 0.0), now - since)
                phase, since = doing, now
            time.sleep(0.001)
        self.durations[phase] = max(self.durations.get(phase, 0.0), time.monotonic() - since)
        assert run.status == 0, run.printed()

    def phase(self, run: Started) -> str:
        """Return the phase that a run is in; it is saving while its checkpoint has a hidden name."""
        if run.pid != self.watched:
            self.watched = run.pid
            self.forget_workers()
        if self.layout != "single" and len(self.workers) < NUM_RANKS:
            self.forget_workers()
            self.workers = starts.workers_of(run.pid)
        beat = run.beat if self.layout == "single" else self.workers[0][1] if 0 in self.workers else None
        phase = "" if beat is None else phase_of(heartbeat.read(beat, run.started).doing)
        is_saving = phase == "training" and any(path not in self.remains for path in self.outputs.glob(HIDDEN))
        return "saving" if is_saving else phase or "starting"

    def forget_workers(self) -> None:
        """Close the heartbeats of a run's ranks."""
        for _, beat in self.workers.values():
            os.close(beat)
        self.workers = {}

    def kill_once(self, run: Started, phases: Sequence[str]) -> str | None:
        """Kill a run at a random instant of a phase, of those hit least -> the phase; None: it ended before."""
        least = min(self.report.phases[phase] for phase in phases)
        phase = self.random.choice([name for name in phases if self.report.phases[name] <= least + 2])
        visits = self.random.randrange(3) if phase in ("training", "saving") else 0
        inside = False
        while run.poll() is None:
            now_inside = self.phase(run) == phase
            if now_inside and not inside:
                if visits == 0:
                    break
                visits -= 1
            inside = now_inside
            time.sleep(0.0005)
        deadline = time.monotonic() + self.random.uniform(0, self.durations.get(phase, 0.05))
        while run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        if run.poll() is not None:
            return None
        hit = self.phase(run)
        victims = {"all processes": (), "the run's process" if self.layout == "single" else "launcher": (run.pid,)}
        victims |= {f"rank {rank}": (pid,) for rank, (pid, _) in self.workers.items()}
        name = self.random.choice(list(victims))
        family = [pid for pid in starts.family_of(run.pid) if starts.session_of(pid) == run.pid]  # without the mirror
        run.kill(*victims[name])
        self.report.victims[name] += 1
        gone = time.monotonic() + GONE_S
        while (left := [pid for pid in family if starts.state_of(pid) not in "ZX"]) and time.monotonic() < gone:
            time.sleep(0.01)
        if left:
            self.report.findings.append(f"{name} was killed while {hit}; {len(left)} processes still live: {left}")
        return hit

    def one(self, outputs: Path, kills: int) -> None:
        """Kill and start again, `kills` times at most, then let it end, and compare."""
        self.report.runs += 1
        resume = "resume=auto"
        for left in reversed(range(kills)):
            run = self.start(outputs, resume)
            hit = self.kill_once(run, PHASES[:-1] if left else PHASES[-1:])  # a run that was ending has no more phases
            if hit is None:  # it ended before
                break
            self.report.kills += 1
            self.report.phases[hit] += 1
        if any(path.is_dir() and not any(path.glob("[!.]*")) for path in outputs.glob("pretrain/*/*")):
            time.sleep(CLAIM_S)  # resume=auto removes what is older
        run = self.start(outputs, resume)
        if status := run.wait(START_S):
            self.report.findings.append(f"the last start ended with {status}: {run.printed()[-600:]}")
        self.await_mirrors(outputs)
        if command := re.search(r"gpt2x sync (\S+)$", run.printed(), re.MULTILINE):  # MLflow had too little time
            self.report.synced += 1
            subprocess.run([sys.executable, "-m", "gpt2x", "sync", command[1]], capture_output=True, check=True)
        self.compare(outputs)

    def compare(self, outputs: Path) -> None:
        """Compare a run that was killed with the undisturbed one."""
        found = self.report.findings
        ours = [path.parent for path in outputs.rglob("metrics.jsonl")]
        finished = [path for path in ours if last_step(path) == STEPS]
        if len(finished) != 1:
            found.append(f"{len(finished)} finished of {len(ours)} run directories in {outputs}")
            return
        ours_dir, theirs = finished[0], run_dir(self.folder / "reference")
        for path in outputs.glob("pretrain/*/*"):
            if path.is_dir() and path != ours_dir:
                found.append(f"litter: {path.relative_to(outputs)}: {sorted(os.listdir(path))[:8]}")
        rows, expected = rows_of(ours_dir), rows_of(theirs)
        if [row["step"] for row in rows] != [row["step"] for row in expected]:
            found.append(f"steps {[row['step'] for row in rows]}")
        elif rows != expected:
            found.append(f"values differ at {[a['step'] for a, b in zip(rows, expected, strict=True) if a != b]}")
        self.report.steps_compared += len(rows)
        samples = (ours_dir / "samples.txt").read_text()
        if samples != (theirs / "samples.txt").read_text():
            found.append(f"samples differ: {samples[:300]!r}")
        self.report.samples_compared += samples.count("=== step")
        found.extend(self.mlflow_findings(outputs, ours_dir))
        extra = {name for name in names_in(ours_dir) - self.names if not is_aside(name)}
        missing = self.names - names_in(ours_dir)
        if extra or missing:
            found.append(f"files more: {sorted(extra)[:8]}, less: {sorted(missing)[:8]}")
        if litter := names_in(self.folder / "cache") - self.cache:
            found.append(f"litter in the cache: {sorted(litter)[:8]}")
        if litter := os.listdir(self.folder / "cwd"):
            found.append(f"litter in the working directory: {litter[:8]}")
            shutil.rmtree(self.folder / "cwd")
            (self.folder / "cwd").mkdir()

    def await_mirrors(self, outputs: Path) -> None:
        """Wait for the mirrors of starts that were killed, which give way to all else on this machine."""
        until = time.monotonic() + START_S
        while any(f"{outputs}/" in starts.command_of(pid) for pid in starts.processes()) and time.monotonic() < until:
            time.sleep(0.1)

    def mlflow_findings(self, outputs: Path, ours_dir: Path) -> list[str]:
        """Return what MLflow has not once, or differently from metrics.jsonl, and runs that are not FINISHED."""
        import sqlite3
        from contextlib import closing

        record = json.loads((ours_dir / "mlflow_run.json").read_text())
        found = []
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            of_ours = "SELECT r.run_uuid, r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid"
            of_ours += " WHERE t.key = 'run_dir' AND t.value LIKE ?"
            states = dict(store.execute(of_ours, [f"{outputs}/%"]))
            query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'perf/%'"
            values = Counter(store.execute(query, [record["run_id"]]))
        expected = Counter(
            (key, row["step"], value) for row in rows_of(ours_dir) for key, value in row.items() if key != "step"
        )
        self.report.values_in_mlflow += sum(values.values())
        if len(states) != 1 or set(states.values()) != {"FINISHED"}:
            found.append(f"MLflow has the runs {states}")
        if lacking := expected - values:
            found.append(f"MLflow lacks {len(lacking)} of {len(expected)} values, such as {next(iter(lacking))}")
        if more := values - expected:
            found.append(f"MLflow has {len(more)} values more, such as {next(iter(more))}")
        return found


def is_aside(name: str) -> bool:
    """Return whether a file holds the lines that a resumed run has set aside."""
    return name.startswith(("metrics.", "samples.")) and name not in ("metrics.jsonl", "samples.txt")


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without times and speeds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "time" and not key.startswith("perf/")} for row in rows]


def last_step(run: Path) -> int | None:
    """Return the last step in metrics.jsonl."""
    rows = rows_of(run)
    return rows[-1]["step"] if rows else None


def run_dir(outputs: Path) -> Path:
    """Return the only run directory."""
    (path,) = (path.parent for path in outputs.rglob("metrics.jsonl"))
    return path


def names_in(folder: Path) -> set[str]:
    """Return the files and folders below a folder, relative."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def measure(folder: Path, layout: str, kills: int, seed: int, is_forked: bool, seconds: float, per_run: int) -> Report:
    """Kill a layout `kills` times, as far as that many seconds reach -> what happened."""
    started = time.monotonic()
    driver = Kills(folder, layout, seed, is_forked)
    driver.reference()
    while driver.report.kills < kills and time.monotonic() - started < seconds:
        num_findings = len(driver.report.findings)
        left = min(per_run, kills - driver.report.kills)
        driver.one(folder / f"killed-{driver.report.runs}", left)
        sys.stdout.write(f"{driver.report.kills} kills, {len(driver.report.findings)} findings\n")
        for finding in driver.report.findings[num_findings:]:
            sys.stdout.write(f"  {finding}\n")
        sys.stdout.flush()
        driver.report.seconds = time.monotonic() - started
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        driver.report.cpu_s = usage.ru_utime + usage.ru_stime
    return driver.report


def main(arguments: list[str] | None = None) -> None:
    """Kill, compare, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=len(PHASES), help="kills of one run before it may end")
    parser.add_argument("--layout", choices=LAYOUTS, default="single")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="end after the run that is killed then")
    parser.add_argument("--process", action="store_true", help="start python train.py, imports included, not a child")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    if not options.process:
        starts.import_all()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        report = measure(Path(folder).resolve() / "files", options.layout, options.kills, options.seed,
                         not options.process, options.seconds, options.per_run)  # fmt: skip
    sys.stdout.write(report.markdown())
    if options.report:
        options.report.write_text(report.markdown(), encoding="utf-8")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
