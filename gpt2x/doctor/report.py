"""Findings of `gpt2x doctor`: a table for the terminal, JSON and Markdown for an issue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


class CheckFailedError(Exception):
    """Something is not as it has to be; the message says what was found."""


class NotHereError(Exception):
    """A check does not apply to this machine; the message says why."""


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        area: what it belongs to, such as operators.
        name: what is checked.
        look: returns what was found; raises CheckFailedError or NotHereError.
        advice: what to try next if it fails.
    """

    area: str
    name: str
    look: Callable[[], str]
    advice: str


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        status: ok, failed or skipped.
        detail: what was found.
        seconds: how long it took.
        advice: what to try next; empty unless it failed.
    """

    area: str
    name: str
    status: str
    detail: str
    seconds: float
    advice: str = ""


@dataclass
class Report:
    """All findings on a machine.

    Attributes:
        machine: facts by name.
        findings: in the order of the checks.
    """

    machine: dict[str, str]
    findings: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[Finding]:
        """The findings that need attention."""
        return [finding for finding in self.findings if finding.status == FAILED]

    def advice(self) -> dict[str, list[str]]:
        """Return what to try next, each with the names of the failed checks."""
        names: dict[str, list[str]] = {}
        for finding in self.failed:
            names.setdefault(finding.advice, []).append(finding.name)
        return names

    def verdict(self) -> str:
        """Return how many checks passed, in one sentence."""
        count = {status: sum(f.status == status for f in self.findings) for status in (OK, FAILED, SKIPPED)}
        return f"{count[OK]} checks passed, {count[FAILED]} failed, {count[SKIPPED]} do not apply here."

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield area, name, status and detail of each finding."""
        for finding in self.findings:
            yield finding.area, finding.name, finding.status, finding.detail

    def markdown(self) -> str:
        """Return the report as Markdown, for an issue."""
        lines = ["# gpt2x doctor", "", self.verdict(), "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.machine.items()]
        lines += ["", "| area | check | status | found | s |", "|---|---|---|---|---|"]
        lines += [
            f"| {f.area} | {f.name} | {f.status} | {f.detail.replace('|', '/')} | {f.seconds:.1f} |"
            for f in self.findings
        ]
        if self.failed:
            lines += ["", "## What to try next", ""]
            lines += [f"- {', '.join(names)}: {advice}" for advice, names in self.advice().items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write doctor.json and doctor.md into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"machine": self.machine, "verdict": self.verdict(), "findings": [asdict(f) for f in self.findings]}
        (folder / "doctor.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        (folder / "doctor.md").write_text(self.markdown(), encoding="utf-8")


def examine(check: Check) -> Finding:
    """Run a check. Whatever it raises is a finding: the checks after it are run all the same."""
    started = time.perf_counter()
    try:
        status, detail = OK, check.look()
    except NotHereError as reason:
        status, detail = SKIPPED, str(reason)
    except CheckFailedError as error:
        status, detail = FAILED, str(error)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        status, detail = FAILED, f"{type(error).__name__}: {lines[0]}"
    seconds = time.perf_counter() - started
    return Finding(check.area, check.name, status, detail, seconds, check.advice if status == FAILED else "")
