"""The Ascend branch in layouts of real processes, with references for its operators, against one process of the CPU's.

`python -m tests.ascend.test_layout_values` prints the table of docs/ascend.md.
"""

import tempfile
from pathlib import Path

import pytest

from tests.parallel.runs import distance
from tests.support.layout_jobs import ASCEND, ASCEND_EXHAUSTIVE, REFERENCES, STEPS
from tests.support.layout_runs import LAUNCHED, LayoutRuns, each, run_all, with_needs

pytestmark = LAUNCHED
TOLERANCES = {"fp32": (1e-5, 1e-4), "fp16": (1e-4, 5e-3)}  # of losses, relative; of weights, absolute


@pytest.mark.parametrize("job", [*each(ASCEND), *each(ASCEND_EXHAUSTIVE, pytest.mark.exhaustive)])
def test_a_layout_of_the_ascend_branch_equals_one_process(layout_runs, job):
    loss, weights = TOLERANCES[job[:4]]
    apart = distance(layout_runs.of(job), layout_runs.of(REFERENCES[job]), step=STEPS)
    assert apart.loss <= loss
    assert apart.validation <= loss
    assert apart.weights <= weights


def print_table() -> None:
    """Run all jobs, and print how far they are from one process."""
    names = ASCEND + ASCEND_EXHAUSTIVE
    with tempfile.TemporaryDirectory() as folder:
        run_all(Path(folder), with_needs({*names, *(REFERENCES[name] for name in names)}))
        runs = LayoutRuns(Path(folder))
        print("| run | losses | val/loss | weights |\n|---|---|---|---|")
        for name in names:
            apart = distance(runs.of(name), runs.of(REFERENCES[name]), step=STEPS)
            print(f"| {name} | {apart.loss:.0e} | {apart.validation:.0e} | {apart.weights:.0e} |")


if __name__ == "__main__":
    print_table()
