"""The damage table: `python -m tests.faults.damage --report damage.md`.

A run stops halfway. Then one file is damaged: of its newest checkpoint, of its directory, of the prepared rows, of the
tokenizer, of the compiled graphs. The same command with `resume=auto` has to end the run with the losses, the samples
and the checkpoints of an undisturbed one, or to end with one message that names the file. Lines of metrics and samples
that are damaged cannot be restored; they have to be named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import starts
from tests.faults.kills import START_S, STEPS, last_step, rows_of
from tests.support.small_runs import small

RUN = [f"trainer.max_steps={STEPS}", "trainer.checkpoint_every_steps=2", "trainer.eval_every_steps=4",
       "trainer.sample_prompts=['the cat']", "generation.max_new_tokens=8", "generation.min_new_tokens=1",
       "model.dropout=0.1", "trainer.keep_last=3", "tracker=mlflow", "tracker.system_metrics=false"]  # fmt: skip
HALF = 6
UNREAD = ("command.txt", "run.log", ".mlflow_run.live", ".mlflow_run.lock", ".mlflow_sender.lock", "loss.png",
          "report.html")  # fmt: skip  # nothing depends on them; they are written again or appended to
FAULT_WORDS = ("error", "warning", "damaged", "missing", "cannot", "no index", "no directory", "a directory", "lost")


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Keep the first half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Keep nothing."""
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    """Append bytes."""
    with path.open("ab") as file:
        file.write(b"\0" * 7)


def remove(path: Path) -> None:
    """Delete it."""
    path.unlink()


def become_directory(path: Path) -> None:
    """Put a directory in its place."""
    path.unlink()
    path.mkdir()


KINDS: tuple[Callable[[Path], None], ...] = (flip, truncate, empty, lengthen, remove, become_directory)


class Damage:
    """The runs, below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "cwd").mkdir(parents=True)
        self.work, self.half = folder / "work", folder / "half"
        options = [option for option in small(folder) if not option.startswith(("paths.", "trainer.sample", "tracker"))]
        paths = [f"paths.outputs={self.work}/outputs", f"paths.cache={self.work}/cache",
                 f"tracker.uri=sqlite:///{self.work}/mlflow.db"]  # fmt: skip
        self.options = [*options, *RUN, *paths]
        self.run("trainer.stop_after_steps=6")
        shutil.copytree(self.work, self.half, symlinks=True)
        self.run("resume=auto")
        self.expected = self.result()

    def run(self, *more: str) -> tuple[int, str]:
        """Run the command -> status and what it printed."""
        run = starts.fork([*self.options, *more], self.folder / "cwd", self.folder / "printed")
        return run.wait(START_S), run.printed()

    def run_dir(self) -> Path:
        """Return the run's directory."""
        (path,) = {path.parent for path in (self.work / "outputs").rglob("checkpoints")}
        return path

    def result(self) -> tuple:
        """Return what has to be the same."""
        run_dir = self.run_dir()
        samples = (run_dir / "samples.txt").read_text(errors="replace")
        return rows_of(run_dir), samples, sorted(path.name for path in run_dir.glob("checkpoints/step_[0-9]*"))

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield what a file belongs to, and the file, relative."""
        half = self.half
        for path in sorted(half.rglob("*")):
            relative = path.relative_to(half)
            if path.is_file() and path.stat().st_size and path.name not in UNREAD and not path.name.endswith(".lock"):
                if "checkpoints" in relative.parts:
                    if f"step_{HALF}" in relative.parts:
                        yield "checkpoint", relative
                elif relative.parts[0] == "cache":
                    yield f"cache: {relative.parts[1]}", relative
                elif relative.parts[0] == "outputs":
                    yield "run directory", relative

    def one(self, file: Path, kind: Callable[[Path], None]) -> tuple[str, str]:
        """Damage a file of the run that is half done, and continue it -> what was said, and what does not hold."""
        shutil.rmtree(self.work)
        shutil.copytree(self.half, self.work, symlinks=True)
        kind(self.work / file)
        status, printed = self.run("resume=auto")
        said = [line for line in printed.splitlines() if file.name in line or file.parent.name in line]
        said = [line.replace(f"{self.work}/", "") for line in said if any(word in line for word in FAULT_WORDS)]
        if "Traceback" in printed:
            return "", f"a traceback: {printed.strip().splitlines()[-1][:200]}"
        if status == 2:
            return (said or [printed.strip().splitlines()[-1]])[0], "" if said else "the message does not name it"
        if status:
            return "", f"status {status}: {printed[-300:]}"
        if last_step(self.run_dir()) != STEPS:
            return "", f"it ended at step {last_step(self.run_dir())}"
        names = ("metrics.jsonl", "samples.txt", "checkpoints")
        differing = [name for name, a, b in zip(names, self.result(), self.expected, strict=True) if a != b]
        if said and differing == [file.name]:  # nobody can compute again what these two had
            return f"{said[0]} (not restored)", ""
        return (said[0] if said else "nothing"), f"{', '.join(differing)} differ" if differing else ""


def main() -> None:
    """Damage file after file, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", help=f"of {', '.join(kind.__name__ for kind in KINDS)}; all by default")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.kinds or kind.__name__ in options.kinds]
    starts.import_all()
    lines, num_faults = ["| of | file | damage | said | fault |", "|---|---|---|---|---|"], 0
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        driver = Damage(Path(name).resolve() / "files")
        for of, file in list(driver.files()):
            for kind in kinds:
                said, fault = driver.one(file, kind)
                num_faults += bool(fault)
                lines.append(f"| {of} | {file.name} | {kind.__name__} | {said[:160]} | {fault} |")
                sys.stdout.write(lines[-1] + "\n")
                sys.stdout.flush()
    lines.append(f"\n{len(lines) - 2} cases, {num_faults} faults")
    sys.stdout.write(lines[-1] + "\n")
    if options.report:
        options.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(num_faults))


if __name__ == "__main__":
    main()
