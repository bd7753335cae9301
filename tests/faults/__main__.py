"""Everything long, one after the other: `python -m tests.faults --report faults.md` (docs/design/faults.md)."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.shim import build, preloaded


def main() -> None:
    """Run each command of this package in a process of its own, and join their reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("faults.md"))
    parser.add_argument("--kills", type=int, default=200, help="of one process; a seventh of it in dp2 and in tp2")
    parser.add_argument("--calls", type=int, help="calls of a whole run that fail; all by default")
    parser.add_argument("--minutes", type=int, default=60, help="of the soak; half of it are for the fuzzers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        few = [] if options.calls is None else ["--calls", str(options.calls)]
        kills = {"single": options.kills, "dp2": options.kills // 7, "tp2": options.kills // 7}
        parts = {
            "every call of an operation": ["enumeration"],
            "failing calls of a whole run": ["failures", *few, "--errors", "ENOSPC", "EIO", "EROFS", "EACCES"],
            **{
                f"kills at random instants, {layout}": ["kills", "--layout", layout, "--kills", str(number)]
                for layout, number in kills.items()
            },
            **{f"signals, {layout}": ["signals", "--layout", layout] for layout in kills},
            "damaged files": ["damage"],
            "outages of MLflow": ["outages"],
            "hostile inputs": ["hostile"],
            "fuzzers": ["fuzz", "--minutes", str(options.minutes // 2)],
            "soak": ["soak", "--minutes", str(options.minutes)],
        }
        texts, has_failed = [], False
        for title, (module, *arguments) in parts.items():
            environment = preloaded(build(folder)) if module == "enumeration" else None
            command = [sys.executable, "-m", f"tests.faults.{module}", *arguments]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            has_failed = has_failed or done.returncode != 0
            texts.append(f"## {title}\n\nStatus {done.returncode}\n\n{done.stdout}")
            options.report.write_text("\n".join(["# Faults\n", *texts]), encoding="utf-8")
    sys.exit(has_failed)


if __name__ == "__main__":
    main()
