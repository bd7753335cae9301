"""Instructions in layouts: real processes against one."""

import pytest

from tests.parallel.runs import distance
from tests.support.layout_jobs import INSTRUCTED, INSTRUCTION_STEPS, REFERENCES
from tests.support.layout_runs import LAUNCHED, each

pytestmark = LAUNCHED


@pytest.mark.parametrize("job", each(INSTRUCTED))
def test_a_layout_trains_as_one_process(layout_runs, job):
    difference = distance(layout_runs.of(job), layout_runs.of(REFERENCES[job]), step=INSTRUCTION_STEPS)
    print(difference)
    assert difference.loss <= 1e-5
    assert difference.validation <= 1e-5
    assert difference.norm <= 1e-4
