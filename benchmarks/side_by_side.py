"""What the comparisons share: contestants in separate processes that take turns, medians, tables, pictures.

A contestant is a function (options, folder) -> run, where run(argument) does the work once and returns what JSON holds.
`serve` calls it in a process that imports nothing of the others; a `Worker` is that process, seen by the parent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FEWEST_ROUNDS = 5  # that a median and its quartiles are quoted of
PACKAGES = ("gpt2x", "mindspore", "torch", "transformers", "ctranslate2", "llama_cpp_python", "tokenizers", "numpy")

Run = Callable[[Any], Any]
Contestant = Callable[[argparse.Namespace, Path], Run]


# what limits oneDNN, MKL, PyTorch and CTranslate2 to instructions; gpt2x: `limit_kernels`
ISA_VARIABLES = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
             "CT2_FORCE_CPU_ISA": "AVX2"},
}  # fmt: skip


# ---- command line


def parser(description: str, rounds: int, rounds_help: str) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    found = argparse.ArgumentParser(description=description.splitlines()[0])
    found.add_argument("--out", type=Path, required=True, help="JSON file to write")
    found.add_argument("--picture", type=Path, help="PNG file to write")
    found.add_argument("--rounds", type=int, default=rounds, help=f"{rounds_help}; default {rounds}")
    found.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPUs of each contestant")
    found.add_argument("--isa", choices=("avx2",), help="limits libraries to instructions; llama.cpp cannot be limited")
    return found


def parse(found: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; what cannot be measured or written is rejected before any work."""
    options = found.parse_args()
    if options.rounds < 1:
        found.error(f"--rounds {options.rounds} measures nothing: give {FEWEST_ROUNDS} or more")
    if options.rounds < FEWEST_ROUNDS:
        print(f"--rounds {options.rounds}: a trial; results to quote need {FEWEST_ROUNDS} or more", file=sys.stderr)
    if not 1 <= options.threads <= len(os.sched_getaffinity(0)):
        found.error(f"--threads {options.threads}: this machine gives 1 to {len(os.sched_getaffinity(0))}")
    for name in ("out", "picture"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            found.error(f"--{name} {path}: its folder does not exist")
    # the default would leave processes running, or stopped for ever
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return options


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Options that say what was measured: all but paths."""
    return {key: value for key, value in vars(options).items() if not isinstance(value, Path) and key != "picture"}


# ---- processes


def is_worker() -> bool:
    """Whether this process was started by a `Worker`."""
    return sys.argv[1:2] == ["--worker"]


def serve(contestants: Mapping[str, Contestant], argument: Callable[[argparse.Namespace, Any], Any]) -> None:
    """A worker: for each line of JSON on stdin one run, answered by a line of JSON.

    Args:
        contestants: by name.
        argument: (options, request) -> what run is given; its making is not timed.
    """
    task = json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    options = argparse.Namespace(**task["options"])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    limit_kernels(options.isa)
    run = contestants[task["name"]](options, Path(task["folder"]))
    for line in sys.stdin:
        given = argument(options, json.loads(line))
        start = time.perf_counter()
        value = run(given)
        seconds = time.perf_counter() - start
        print(json.dumps({"value": value, "seconds": seconds, "peak_rss_gb": peak_rss_gb()}), file=answers, flush=True)


def limit_kernels(isa: str | None) -> None:
    """Have gpt2x use the kernels for `isa`, if any, in this process."""
    if isa:
        from gpt2x import native

        for name in set(native.VARIANTS) - {isa}:
            del native.VARIANTS[name]


class Worker:
    """A contestant's process; stopped while it is not its turn, since idle thread pools spin.

    Args:
        script: the file whose `main` calls `serve`.
        name: of the contestant.
        options: what it is to do; paths stay with the parent.
        folder: where weights lie, and its log.
    """

    def __init__(self, script: str, name: str, options: argparse.Namespace, folder: Path):
        threads = str(options.threads)
        task = json.dumps({"name": name, "options": settings(options), "folder": str(folder)})
        self.name, self.log = name, folder / f"{name}.log"
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        environment |= ISA_VARIABLES.get(options.isa, {})
        # compiles as a user's first call does, and within this process, which can be stopped
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", task], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open("w"), text=True, env=os.environ | environment,
        )  # fmt: skip

    def run(self, request: Any) -> dict[str, Any]:
        """Have it run once: what it returned (`value`), `seconds`, `peak_rss_gb` of the process so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self) -> None:
        """End it, also where it is stopped."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def working(script: str, names: Sequence[str], options: argparse.Namespace, folder: Path) -> Iterator[list[Worker]]:
    """Workers, which end with the block: a stopped process would otherwise outlive an error."""
    workers: list[Worker] = []
    try:
        for name in names:
            workers.append(Worker(script, name, options, folder))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def in_turn(workers: Sequence[Worker], round_: int) -> Sequence[Worker]:
    """The order of a round: it alternates, so that none always follows the same."""
    return workers if round_ % 2 == 0 else workers[::-1]


# ---- memory of this process


def status_gb(key: str, pid: int | str = "self") -> float:
    """A size in /proc/PID/status. Not `ru_maxrss`: it starts with what the parent had when it forked."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e9


def rss_gb() -> float:
    """Resident memory now."""
    return status_gb("VmRSS")


def peak_rss_gb() -> float:
    """The largest resident memory since the start, or since `reset_peak`."""
    return status_gb("VmHWM")


def reset_peak() -> None:
    """Forget the peak so far (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


# ---- results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return dict.fromkeys(("median", "quartile_1", "quartile_3"), values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def ratio(name: str, others: Sequence[float], mine: Sequence[float]) -> dict[str, Any]:
    """`name`, others' median seconds over mine (above 1: gpt2x is faster), and quartiles of the rounds' ratios."""
    rounds = [other / own for other, own in zip(others, mine, strict=True)]
    return {name: statistics.median(others) / statistics.median(mine), f"{name}_spread": spread(rounds)}


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What every result says of itself."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()}
    return {"settings": settings(options), "machine": machine, "versions": versions}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(result: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def quartiles(found: Mapping[str, float], digits: int = 0) -> str:
    return f"{found['quartile_1']:,.{digits}f} to {found['quartile_3']:,.{digits}f}"


def shown_ratio(result: Mapping[str, Any], name: str) -> str:
    """A ratio with the quartiles of its rounds; nothing if there is none."""
    return f"{result[name]:.2f} ({quartiles(result[f'{name}_spread'], 2)})" if name in result else ""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    found = Table(title=title)
    for number, column in enumerate(columns):
        found.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        found.add_row(*row)
    Console(width=132).print(found)


def pyplot():
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def bars(panels: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], label: str, path: Path) -> None:
    """Panels of (title, spread by name): bars of medians with their quartiles, gpt2x's in a different colour."""
    plt = pyplot()
    heights = [0.5 + 0.5 * len(found) for _, found in panels]
    figure, rows = plt.subplots(
        len(panels), figsize=(7, 0.6 + sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for (title, found), axes in zip(panels, rows[:, 0], strict=True):
        medians = [each["median"] for each in found.values()]
        below = [each["median"] - each["quartile_1"] for each in found.values()]
        above = [each["quartile_3"] - each["median"] for each in found.values()]
        colours = ["#2a6f97" if name.startswith("gpt2x") else "#8c8c8c" for name in found]
        axes.barh(list(found), medians, xerr=[below, above], height=0.6, capsize=4, color=colours)
        for row, each in enumerate(found.values()):  # beyond the whisker: a short bar has no room for a number
            value = each["median"]
            text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            axes.text(each["quartile_3"], row, f"  {text}", va="center", fontsize=9)
        axes.set_xlim(0, 1.15 * max(each["quartile_3"] for each in found.values()))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    rows[-1, 0].set_xlabel(f"{label} (bars: median, whiskers: quartiles)")
    figure.savefig(path, dpi=150)
