"""Which process keeps the others waiting, by their heartbeats (docs/design/launch.md; imports no mindspore)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2x.runtime.heartbeat import ALL, INSIDE, NOTHING, Heartbeat


@dataclass(frozen=True)
class Report:
    """A worker of this machine.

    Attributes:
        rank: its number.
        heartbeat: its last one.
        is_stopped: True if a signal or a debugger has stopped it.
        log: the file of its output, if it has one.
    """

    rank: int
    heartbeat: Heartbeat
    is_stopped: bool = False
    log: Path | None = None


@dataclass(frozen=True)
class Hang:
    """A wait that took too long.

    Attributes:
        late: the ranks that keep the others waiting; empty if none of this machine's does.
        waiting: the ranks that wait, the longest wait first.
    """

    late: list[int]
    waiting: list[int]


def find_hang(reports: Sequence[Report], size: int, limit_s: float, now: float) -> Hang | None:
    """Return who has waited longer than `limit_s`, and for whom; None if nobody is known to wait for another.

    All processes enter the same updates and exchanges. So those that have entered fewer are late, and so is a stopped
    one. If all have arrived, they may compute, or wait for the device or the network: MindSpore's own limits end that.

    Args:
        reports: of the workers of this machine.
        size: number of workers on all machines.
        limit_s: `launch.timeout_s`.
        now: on the clock of the heartbeats.
    """
    by_rank = {report.rank: report for report in reports}
    overdue = [r for r in reports if now - r.heartbeat.since > limit_s and r.heartbeat.waits_for != NOTHING]
    overdue = sorted((r for r in overdue if not r.is_stopped), key=lambda report: report.heartbeat.since)
    if not overdue:
        return None
    furthest = max(report.heartbeat.meetings for report in overdue)
    late = [report.rank for report in reports if report.is_stopped]
    late = late or [r.rank for r in reports if r.heartbeat.meetings < furthest and not r.heartbeat.waits_for.isdigit()]
    late = late or sorted({rank for report in overdue for rank in sources(report, by_rank)})
    waiting = [report.rank for report in overdue if report.rank not in late]
    waits = {report.heartbeat.waits_for for report in overdue}
    is_certain = late or waits - {INSIDE, ALL} or (ALL in waits and len(reports) < size)
    return Hang(late, waiting) if waiting and is_certain else None


def sources(report: Report, by_rank: dict[int, Report]) -> list[int]:
    """Return the rank at the end of a chain of waits for messages; none if the chain is a circle, or no message."""
    passed: list[int] = []
    rank = report.rank
    while (current := by_rank.get(rank)) is not None and current.heartbeat.waits_for.isdigit():
        if rank in passed:
            return []
        passed.append(rank)
        rank = int(current.heartbeat.waits_for)
    ends_in_exchange = current is not None and current.heartbeat.waits_for == ALL
    return [rank] if passed and not ends_in_exchange else []


def describe(hang: Hang, reports: Sequence[Report], now: float, stacks: Mapping[int, list[str]] = {}) -> str:
    """Return who is late, who waits, and what each does since when.

    Args:
        hang: what to say.
        reports: of all workers of this machine.
        now: on the clock of the heartbeats.
        stacks: the innermost calls of late ranks.
    """
    by_rank = {report.rank: report for report in reports}
    first = hang.waiting[0]
    wait = f"rank {first} has waited {now - by_rank[first].heartbeat.since:.0f} s"
    if hang.late:
        lines = [f"{ranks(hang.late)} {'is' if len(hang.late) == 1 else 'are'} late: {wait}"]
    else:
        lines = [f"{wait}, but no process of this machine is late; if there are several nodes, see the others"]
    for rank in [*hang.late, *hang.waiting]:
        lines.append(f"  rank {rank}: {status(by_rank.get(rank), now)}")
        lines += [f"  {line}" for line in stacks.get(rank, [])]
    return "\n".join(lines)


def status(report: Report | None, now: float) -> str:
    """Return what a process does, since when, and where its log is."""
    if report is None:
        return "on a different node"
    parts = [f"{report.heartbeat.doing}, for {now - report.heartbeat.since:.0f} s"]
    if report.is_stopped:
        parts.append("stopped by a signal or a debugger")
    if report.log is not None:
        parts.append(str(report.log))
    return "; ".join(parts)


def ranks(numbers: list[int]) -> str:
    """Return "rank 1", or "ranks 1, 3"."""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
