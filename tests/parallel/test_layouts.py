"""Every layout trains as one process does: real processes, 6 updates of a small model against the single run."""

import pytest

from tests.parallel.runs import check_equal, relative, saved
from tests.support.layout_jobs import FP16_STEPS, REFERENCES, STEPS, TRAINED, TRAINED_EXHAUSTIVE
from tests.support.layout_runs import LAUNCHED, each
from tests.support.small_runs import curve

pytestmark = LAUNCHED
exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize("job", [*each(TRAINED), *each(TRAINED_EXHAUSTIVE, exhaustive)])
def test_a_layout_equals_one_process(layout_runs, job):
    check_equal(layout_runs.of(job), layout_runs.of(REFERENCES[job]), step=STEPS)


@pytest.mark.parametrize("job", each(["spikes in pp2"]))
def test_stages_leave_out_the_same_spikes(layout_runs, job):
    run_dir = layout_runs.of(job)
    check_equal(run_dir, layout_runs.of(REFERENCES[job]), step=2 * STEPS)
    states = [saved(path, 2 * STEPS).loop_state for path in (run_dir, layout_runs.of(REFERENCES[job]))]
    assert states[0]["num_updates"] == states[1]["num_updates"] < 2 * STEPS


@pytest.mark.parametrize("job", [*each(["fp16 in dp2"], exhaustive), *each(["fp16 in tp2_pp2", "fp16 in dp2_zero3"])])
def test_fp16_skips_the_same_updates(layout_runs, job):
    single, run_dir = layout_runs.of(REFERENCES[job]), layout_runs.of(job)
    mine, theirs = (curve(path, "train/loss", "train/grad_norm", "train/loss_scale") for path in (run_dir, single))
    assert [line[2] for line in mine.values()] == [line[2] for line in theirs.values()]
    skipped = [step for step, line in mine.items() if isinstance(line[1], str)]  # "NaN" or "Infinity"
    updated = [step for step in mine if step not in skipped]
    assert 2 <= len(skipped) <= FP16_STEPS / 2
    assert saved(run_dir, FP16_STEPS).loop_state["num_updates"] == len(updated)
    losses = [relative(mine[step][0], theirs[step][0]) for step in updated]
    print(skipped, max(losses))
    assert max(losses) <= 2e-4
    assert mine[FP16_STEPS][0] < mine[updated[0]][0] - 0.5, "it learns"
