"""Fine-tuning in layouts: real processes against one.

Some tensors are frozen, rates decay over the layers, and the embedding has two rows more than the base's.
"""

import numpy as np
import pytest

from tests.parallel.runs import check_equal, saved
from tests.support.layout_jobs import ADDED_TOKENS, REFERENCES, STEPS, TUNED, TUNED_STEPS
from tests.support.layout_runs import LAUNCHED, each

pytestmark = LAUNCHED


@pytest.mark.parametrize("job", each(TUNED))
@pytest.mark.needs("single")
def test_a_layout_fine_tunes_as_one_process(layout_runs, job):
    run_dir = layout_runs.of(job)
    check_equal(run_dir, layout_runs.of(REFERENCES[job]), step=TUNED_STEPS)
    base, after = saved(layout_runs.of("single"), STEPS), saved(run_dir, TUNED_STEPS)
    assert after.shape("weights", "wte.weight")[0] == base.shape("weights", "wte.weight")[0] + len(ADDED_TOKENS)
    for name in ("wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
        assert np.array_equal(base.tensor("weights", name), after.tensor("weights", name))
        assert f"mean.{name}" not in after.names("optimizer")
