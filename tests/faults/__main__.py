"""Everything long, one after the other: `python -m tests.faults --report faults.md` (docs/design/faults.md)."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.shim import build, preloaded


def main() -> None:
    """Run the enumerations, the failing calls and the kills, each in a process, and join their reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("faults.md"))
    parser.add_argument("--kills", type=int, default=200, help="of one process; a seventh of it in dp2 and in tp2")
    parser.add_argument("--calls", type=int, help="calls of a whole run that fail; all by default")
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
