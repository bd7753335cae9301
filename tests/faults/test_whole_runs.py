"""Whole runs that are killed, or whose terminal is closed: the short forms of `tests.faults.kills` and `.signals`."""

import re
import subprocess
import sys

import pytest

from tests.support.small_runs import ROOT


def report_of(module, *options, tmp_path):
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", f"tests.faults.{module}", *options, "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return report.read_text()


@pytest.mark.launch
def test_a_run_that_is_killed_at_random_instants_equals_one_that_is_not(tmp_path):
    report = report_of("kills", "--kills", "3", tmp_path=tmp_path)
    counts = re.search(r"\| kills, single \| 3 in (\d+) runs, (\d+) starts \|", report)
    assert counts, report
    runs, num_starts = int(counts[1]), int(counts[2])  # a run that ends before it is hit needs another run
    assert 4 + runs <= num_starts <= 4 + 2 * runs
    assert f"| steps compared with the undisturbed run | {12 * runs} |" in report


@pytest.mark.launch
def test_a_run_whose_terminal_is_closed_saves_and_goes_on_from_there(tmp_path):
    (row,) = report_of("signals", "--target", "terminal", tmp_path=tmp_path).splitlines()[2:]
    assert row.startswith("| HUP to terminal | training | 129 |")
    assert row.endswith("| KILLED | identical |")
