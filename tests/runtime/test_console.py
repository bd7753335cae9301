import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gpt2x.runtime import memory
from gpt2x.runtime.console import Console, Progress, StepReport, format_duration

REPORT = {
    "loss": 3.2411,
    "lr": 1e-4,
    "grad_norm": 0.81,
    "epoch": 1.24,
    "tokens_per_s": 12345.2,
    "mfu": 0.412,
    "memory_gb": 1.9,
}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain():
    stream = io.StringIO()
    return Console(stream, interactive=False, width=80), stream


def live(width):
    stream = io.StringIO()
    return Console(stream, interactive=True, width=width), stream


def visible(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_plain_line_every_n_steps_with_fields_in_fixed_order():
    console, stream = plain()
    clock = Clock()
    with Progress(600, log_every_steps=60, console=console, clock=clock) as progress:
        for step in range(1, 121):
            progress.update(StepReport(step=step, **REPORT))
            clock.now += 0.4
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/600", "60/600", "120/600"]
    assert lines[-1] == (
        "step 120/600  epoch 1.24  loss 3.2411  ppl 25.56  lr 1.0e-04  |g| 0.81  "
        "12,345 tok/s  mfu 41.2%  mem 1.9 GB  left 0:03:12"
    )


def test_fp16_fields_and_the_last_step():
    console, stream = plain()
    with Progress(7, start_step=4, log_every_steps=100, console=console) as progress:
        for step in (5, 6, 7):
            progress.update(StepReport(step=step, loss=math.nan, loss_scale=65536.0, skipped_steps=2))
    first, last = stream.getvalue().splitlines()
    assert first.startswith("step 5/7  loss nan  ppl ")
    assert "scale 65536  skipped 2" in last
    assert last.endswith("left 0:00:00")


def test_time_left_counts_neither_compilation_nor_evaluation():
    clock = Clock()
    with Progress(100, console=plain()[0], clock=clock) as progress:
        clock.now += 60  # compilation
        progress.update(StepReport(step=1, loss=1.0))
        assert progress.time_left_s is None
        for step in range(2, 11):
            clock.now += 2
            progress.update(StepReport(step=step, loss=1.0))
        with progress.busy("evaluating"):
            clock.now += 500
        progress.evaluation(10, {"val/loss": 1.0})
        clock.now += 2
        progress.update(StepReport(step=11, loss=1.0))
        assert progress.time_left_s == pytest.approx(89 * 2)


def test_results_and_notices_on_plain_output():
    console, stream = plain()
    with Progress(600, console=console) as progress:
        progress.evaluation(120, {"val/loss": 3.1, "val/ppl": 22.1979512})
        console.warn("[red]" + "x" * 200)
    assert stream.getvalue().splitlines() == [
        "eval 120/600  val/loss 3.1000  val/ppl 22.1980",
        "warning: [red]" + "x" * 200,
    ]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_live_bar_holds_every_field_within_the_width(width):
    console, stream = live(width)
    with Progress(600, console=console) as progress:
        progress.update(StepReport(step=120, loss_scale=65536.0, skipped_steps=2, **REPORT))
    rows = [row for row in visible(stream.getvalue()).replace("\r", "\n").split("\n") if row.strip()]
    assert max(map(len, rows)) <= width
    last = " ".join(rows)
    for text in ("step 120/600", "loss 3.2411", "scale 65536", "skipped 2", "mfu 41.2%", "mem 1.9 GB", "left "):
        assert text in last


def test_on_a_terminal_results_stand_above_the_bar():
    console, stream = live(160)
    with Progress(600, console=console) as progress:
        progress.update(StepReport(step=1, **REPORT))
        progress.evaluation(1, {"val/loss": 3.1})
        console.notice("kept")
    text = visible(stream.getvalue())
    assert text.index("eval 1/600  val/loss 3.1000") < text.index("kept") < text.rindex("step 1/600")


def test_panel_table_and_samples_keep_to_80_columns_and_escape():
    console, stream = plain()
    console.panel("pretrain", {"Model": {"parameters": "12.9 M"}, "run": "/long" * 40})
    console.table("results", ["protocol", "tokens"], [["[b]strided[/b]", 1234567]])
    console.samples(5, [("The ", "cat\x1b[31m [bold]")])
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "1,234,567" in text
    assert "[b]strided[/b]" in text
    assert "\x1b" not in text
    assert "The cat\N{REPLACEMENT CHARACTER}[31m [bold]" in text


def test_a_stream_that_is_not_unicode_gets_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    console = Console(stream, interactive=False, width=80)
    console.panel("título", {"a": "ü"})
    console.notice("中…")
    assert raw.getvalue().isascii()
    assert b"t\\xedtulo" in raw.getvalue()
    assert raw.getvalue().endswith(b"\\u4e2d\\u2026\n")


def test_format_duration():
    assert format_duration(3 * 3600 + 59.6) == "3:01:00"
    assert format_duration(None) == "-:--:--"


CODE = """
from gpt2x.runtime.console import Progress, StepReport, console
with Progress(20, log_every_steps=10) as progress:
    for step in range(1, 21):
        progress.update(StepReport(step=step, loss=3.0))
    progress.evaluation(20, {"val/loss": 1.0})
"""


def environment(**values):
    return {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"} | values


@pytest.mark.launch
def test_a_pipe_gets_lines_and_no_escape_sequences():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment(FORCE_COLOR="")
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["1/20", "10/20", "20/20", "20/20"]
    assert "\x1b" not in done.stdout


@pytest.mark.launch
@pytest.mark.parametrize(("ci", "is_live"), [("", True), ("true", False)])
def test_a_terminal_gets_a_live_bar_unless_under_ci(ci, is_live):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=slave, stderr=slave, env=environment(CI=ci, COLUMNS="80")
    )
    os.close(slave)
    output = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # closed by the other side
                break
            if not chunk:
                break
            output += chunk
    os.close(master)
    assert process.wait(10) == 0
    assert (b"\x1b[?25l" in output) == is_live  # the cursor is hidden while a bar lives
    assert b"step 20/20" in output


def test_the_peak_of_the_device_stands_beside_the_memory_of_the_process():
    console, stream = plain()
    with Progress(1, console=console) as progress:
        progress.update(StepReport(step=1, **REPORT, device_memory_gb=41.26))
    assert "  mem 1.9 GB  hbm 41.3 GB  left " in stream.getvalue()


def test_device_memory_is_that_of_the_pool_and_there_is_none_on_the_cpu(monkeypatch):
    import mindspore as ms

    assert memory.device_memory_gb() == {}
    assert memory.peak_memory_gb() == memory.peak_process_memory_gb()
    monkeypatch.setattr(ms, "get_current_device", lambda: SimpleNamespace(device_target="Ascend"))
    for name, size in {"memory_allocated": 20e9, "max_memory_allocated": 30e9, "memory_reserved": 40e9}.items():
        monkeypatch.setattr(ms.runtime, name, lambda size=size: size)
    assert memory.device_memory_gb() == {"in_use": 20.0, "peak": 30.0, "reserved": 40.0}
    assert memory.peak_memory_gb() == 30.0


def test_memory():
    now, peak, machine = memory.process_memory_gb(), memory.peak_process_memory_gb(), memory.machine_memory_gb()
    assert 0.001 < now < machine
    assert 0.9 * now <= peak
