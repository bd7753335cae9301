"""Classifiers in layouts: real processes against one."""

import pytest

from tests.support.layout_jobs import CLASS_STEPS, CLASSIFIED, REFERENCES
from tests.support.layout_runs import LAUNCHED, each
from tests.support.small_runs import curve

pytestmark = LAUNCHED


@pytest.mark.parametrize("job", each(CLASSIFIED))
def test_data_layouts_equal_one_process(layout_runs, job):
    keys = ("train/loss", "train/grad_norm", "train/texts", "val/loss", "val/mcc")
    mine, theirs = (curve(layout_runs.of(name), *keys) for name in (job, REFERENCES[job]))
    assert len(mine) == CLASS_STEPS
    for step in mine:
        assert mine[step][:3] == pytest.approx(theirs[step][:3], rel=1e-4), step
    assert mine[CLASS_STEPS][3:] == pytest.approx(theirs[CLASS_STEPS][3:], rel=1e-3)


@pytest.mark.parametrize("job", each(CLASSIFIED))
def test_the_tokens_of_an_update_do_not_depend_on_what_rows_are_padded_to(layout_runs, job):
    keys = ("perf/tokens_per_s", "perf/step_time_s")
    mine, theirs = (
        [round(speed * seconds) for speed, seconds in curve(layout_runs.of(name), *keys).values()]
        for name in (job, REFERENCES[job])
    )
    assert mine == theirs
    assert len(set(mine)) > 1
