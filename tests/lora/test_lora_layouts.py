"""Adapters trained in layouts: real processes against one.

The rate is the default's, targets are column and row linears, whole and in thirds, and dropout is on.
"""

import pytest

from tests.parallel.runs import check_equal
from tests.support.layout_jobs import ADAPTED, ADAPTED_EXHAUSTIVE, REFERENCES, STEPS
from tests.support.layout_runs import LAUNCHED, each

pytestmark = LAUNCHED


@pytest.mark.parametrize("job", [*each(ADAPTED), *each(ADAPTED_EXHAUSTIVE, pytest.mark.exhaustive)])
def test_a_layout_trains_adapters_as_one_process(layout_runs, job):
    check_equal(layout_runs.of(job), layout_runs.of(REFERENCES[job]), step=STEPS, group="adapter")
