"""All that gpt2x prints: results on standard output; errors, and notices beside results, on standard error.

No other module prints (`tests/runtime/test_messages.py`). On a terminal `Progress` is a live bar, with evaluations and
notices above it. Elsewhere (a file, a pipe, CI) it is one plain line every N steps, whose fields keep their order and
spelling, so that `grep` and `awk` work on it. The plain lines are in the run's log (`gpt2x.runtime.run_log`) as well.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpt2x.runtime.run_log import RunLog, run_log

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's text may hold escape sequences
_GAP = "  "
_LOG_WIDTH = 80  # rich's outside a terminal
_TIME_WEIGHT = 0.1  # of the newest step in the moving average


class Console:
    """One stream that gpt2x prints to.

    Args:
        stream: None: standard output, looked up at each print.
        is_stderr: print to standard error, looked up at each print.
        interactive: whether a live bar can be drawn; None: on a terminal that is not dumb, and not under CI.
        width: columns; None: the terminal's, 80 elsewhere.
        log: gets all that is printed, as plain text.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        is_stderr: bool = False,
        interactive: bool | None = None,
        width: int | None = None,
        log: RunLog | None = None,
    ):
        self._log = log
        self._rich = RichConsole(
            file=stream,
            stderr=is_stderr,
            force_terminal=interactive,
            width=width,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._interactive = interactive

    @property
    def is_interactive(self) -> bool:
        """True if a live bar can be drawn."""
        if self._interactive is not None:
            return self._interactive
        isatty = getattr(self._rich.file, "isatty", lambda: False)
        return isatty() and not self._rich.is_dumb_terminal and not os.environ.get("CI")

    @property
    def rich(self) -> RichConsole:
        """The underlying console of `rich`."""
        return self._rich

    def silence(self) -> None:
        """Print nothing from now on, because one process of a run prints for all."""
        self._rich.quiet, self._interactive, self._log = True, False, None

    def notice(self, text: str) -> None:
        """Print one line of information."""
        self._line(text)

    def plain(self, text: str) -> None:
        """Print a text with its own layout and colors."""
        self._rich.file.write(text.rstrip("\n") + "\n")
        self.log(text)

    def warn(self, text: str) -> None:
        """Print one line that begins with `warning:`."""
        self._line(f"warning: {text}", style="yellow")

    def panel(self, title: str, rows: Mapping[str, object] | Mapping[str, Mapping[str, object]]) -> None:
        """Print a frame of names and values; a value that is a mapping becomes a section.

        Example:
            `console.panel("pretrain", {"Model": {"parameters": "12.9 M"}, "Data": {"blocks": "1,234"}})`
        """
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows.items():
            if isinstance(value, Mapping):
                grid.add_row(Text(self._clean(name), style="bold cyan"))
                for key, child in value.items():
                    grid.add_row(Text(f"  {self._clean(key)}"), Text(self._clean(child)))
            else:
                grid.add_row(Text(self._clean(name)), Text(self._clean(value)))
        self._print(Panel(grid, title=Text(self._clean(title)), title_align="left", expand=False))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table; columns with only numbers are aligned right."""
        rows = [list(row) for row in rows]
        table = Table(title=Text(self._clean(title)), title_justify="left")
        for index, column in enumerate(columns):
            is_number = all(isinstance(row[index], (int, float)) for row in rows)
            table.add_column(Text(self._clean(column)), justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*[Text(self._clean(_cell(value))) for value in row])
        self._print(table)

    def samples(self, step: int, samples: Iterable[tuple[str, str]]) -> None:
        """Print what the model wrote, as pairs of prompt and completion."""
        for prompt, completion in samples:
            text = Text(f"sample at step {step}: ", style="dim")
            text.append(self._clean(prompt), style="not dim bold")
            text.append(self._clean(completion), style="not dim")
            self._print(text)

    def log(self, text: str) -> None:
        """Write a text to the log only; say once that there is none if that fails."""
        error = self._log.write(_without_control(text)) if self._log else None
        if error:
            self._rich.print(f"warning: {error.filename or 'the log'} cannot be written ({error.strerror})")

    def end_bar(self) -> None:
        """Begin a new line, on a terminal, below a live bar that another process left there."""
        if getattr(self._rich.file, "isatty", lambda: False)():
            self._rich.file.write("\n")

    def _line(self, text: str, style: str = "") -> None:
        # outside a terminal a line is not wrapped, however long
        self._print(Text(self._clean(text), style=style), soft_wrap=not self.is_interactive)

    def _print(self, renderable: RenderableType, soft_wrap: bool = False) -> None:
        self._rich.print(renderable, soft_wrap=soft_wrap)
        if self._log:
            self.log(renderable.plain if isinstance(renderable, Text) else _plain(renderable))

    def _clean(self, text: object) -> str:
        encoding = self._rich.encoding or "utf-8"
        return _without_control(text).encode(encoding, "backslashreplace").decode(encoding)


def _without_control(text: object) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def _plain(renderable: RenderableType) -> str:
    """Return a panel or table as it is printed outside a terminal."""
    plain = RichConsole(file=io.StringIO(), width=_LOG_WIDTH, force_terminal=False, color_system=None)
    plain.print(renderable)
    return plain.file.getvalue()  # type: ignore[attr-defined]


console = Console(log=run_log)
stderr = Console(is_stderr=True, log=run_log)


def show_error(message: str) -> None:
    """Print `error: MESSAGE` to standard error: the one form of every message that ends a command."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    run_log.write(f"error: {message}")


@dataclass(frozen=True)
class StepReport:
    """The numbers of one optimizer step; fields that are None are not shown."""

    step: int  # steps done, including this one
    loss: float  # nats per token, or per text
    lr: float | None = None
    grad_norm: float | None = None  # before clipping
    epoch: float | None = None
    loss_scale: float | None = None  # fp16
    tokens_per_s: float | None = None
    mfu: float | None = None  # 0..1
    memory_gb: float | None = None  # of the process on the host
    device_memory_gb: float | None = None  # peak
    skipped_steps: int = 0  # updates skipped so far because a gradient was not finite
    is_per_token: bool = True  # then the loss has a perplexity


class Progress:
    """Progress of a training loop.

    Args:
        total_steps: the last step.
        start_step: steps done before, in a resumed run.
        log_every_steps: steps between two lines in the log, and in place of a live bar.
        console: None: the run's.
        clock: seconds, for tests.

    Example:
        with Progress(total_steps=600) as progress:
            progress.update(StepReport(step=1, loss=10.8))
            with progress.busy("evaluating"):
                ...
            progress.evaluation(1, {"val/loss": 10.7, "val/ppl": 44355.9})
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        log_every_steps: int = 10,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.step = start_step
        self._start_step = start_step
        self._log_every_steps = log_every_steps
        self._console = console or globals()["console"]
        self._clock = clock
        self._fields: list[str] = []
        self._doing: str | None = "compiling"
        self._step_time_s: float | None = None
        self._last_update: float | None = None  # None: the next interval is longer than a step
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_interactive:
            self._live = Live(_Bar(self), console=self._console.rich, refresh_per_second=4, vertical_overflow="visible")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._doing = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, report: StepReport) -> None:
        """Show the newest step: redraw the bar, or print a line if one is due (always at the first and last step)."""
        is_first = self.step == self._start_step
        self._measure(report.step)
        self.step = report.step
        self._doing = None
        self._fields = _fields(report, self.time_left_s)
        is_due = report.step % self._log_every_steps == 0 or report.step == self.total_steps or is_first
        if is_due:
            line = _GAP.join([f"step {report.step}/{self.total_steps}", *self._fields])
            (self._console.notice if self._live is None else self._console.log)(line)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a line of results, above the bar if there is one."""
        values = [f"{name} {_number(value)}" for name, value in metrics.items()]
        self._console.notice(_GAP.join([f"eval {step}/{self.total_steps}", *values]))
        self._last_update = None

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """Show on the bar what the loop does between steps; its time does not count in the time left."""
        self._doing = doing
        try:
            yield
        finally:
            self._doing = None
            self._last_update = None

    @property
    def time_left_s(self) -> float | None:
        """Seconds for the remaining steps, by a moving average without evaluation and compilation; None at first."""
        if self._step_time_s is None:
            return None
        return self._step_time_s * max(0, self.total_steps - self.step)

    def _measure(self, step: int) -> None:
        now = self._clock()
        if self._last_update is not None and step > self.step:
            newest = (now - self._last_update) / (step - self.step)
            old = self._step_time_s
            self._step_time_s = newest if old is None else old + _TIME_WEIGHT * (newest - old)
        self._last_update = now


class _Bar:
    """The live display: one line if the terminal is wide enough, else as few lines as fit all fields."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, rich: RichConsole, options: object) -> Iterator[Group | Table]:
        progress, width = self._progress, rich.width
        head = f"step {progress.step}/{progress.total_steps}"
        fields = progress._fields + ([f"{progress._doing}…"] if progress._doing else [])
        bar_width = min(40, width - sum(len(_GAP) + len(part) for part in [head, *fields]))
        is_one_line = bar_width >= 8
        if not is_one_line:
            last = fields.pop() if fields else ""  # the time left, or the current work, stays next to the bar
            bar_width = max(4, min(40, width - len(head) - len(last) - 2 * len(_GAP)))
        else:
            last = _GAP.join(fields)
        line = Table.grid(padding=(0, len(_GAP)))
        bar = ProgressBar(total=max(1, progress.total_steps), completed=progress.step, width=bar_width)
        line.add_row(Text(head, no_wrap=True), bar, Text(last, no_wrap=True))
        rows = [] if is_one_line else [Text(row, no_wrap=True) for row in _wrap(fields, width)]
        yield Group(line, *rows)


def _fields(report: StepReport, time_left_s: float | None) -> list[str]:
    """Return the fields of a step in their fixed order."""
    fields = [
        None if report.epoch is None else f"epoch {report.epoch:.2f}",
        f"loss {report.loss:.4f}",
        f"ppl {_perplexity(report.loss)}" if report.is_per_token else None,
        None if report.lr is None else f"lr {report.lr:.1e}",
        None if report.grad_norm is None else f"|g| {report.grad_norm:.2f}",
        None if report.loss_scale is None else f"scale {report.loss_scale:g}",
        f"skipped {report.skipped_steps}" if report.skipped_steps else None,
        None if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f} tok/s",
        None if report.mfu is None else f"mfu {100 * report.mfu:.1f}%",
        None if report.memory_gb is None else f"mem {report.memory_gb:.1f} GB",
        None if report.device_memory_gb is None else f"hbm {report.device_memory_gb:.1f} GB",
        f"left {format_duration(time_left_s)}",
    ]
    return [text for text in fields if text is not None]


def format_duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds as `0:03:12`, or `-:--:--` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Return `[20.36, 20.81]`, or "" for None."""
    return "" if interval is None else "[{}, {}]".format(*_alike(*interval))


def format_estimate(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """Return `20.58 [20.36, 20.81]`; `sign="+"` shows both signs."""
    return f"{value:{sign}.4f}" if interval is None else "{2} [{0}, {1}]".format(*_alike(*interval, value, sign=sign))


def _alike(low: float, high: float, *others: float, sign: str = "") -> list[str]:
    """Return numbers with the decimals that show two digits of the interval's length."""
    decimals = min(max(1 - math.floor(math.log10(high - low)), 0), 6) if high > low else 4
    form = f"{sign}.2e" if max(map(abs, (low, high, *others))) >= 1e6 else f"{sign}.{decimals}f"
    return [format(number, form).replace("e+0", "e").replace("e+", "e") for number in (low, high, *others)]


def _perplexity(loss: float) -> str:
    ppl = math.exp(loss) if loss < 700 else math.inf
    return f"{ppl:.2f}" if ppl < 1e6 else f"{ppl:.2e}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3e}"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return _number(value) if isinstance(value, float) else str(value)


def _wrap(fields: Sequence[str], width: int) -> list[str]:
    """Return as few lines as fit the fields, broken only between fields."""
    lines: list[str] = []
    for text in fields:
        if lines and len(lines[-1]) + len(_GAP) + len(text) <= width:
            lines[-1] += _GAP + text
        else:
            lines.append(text)
    return lines
