"""val/loss of the same weights does not depend on the micro batch or the layout: real processes."""

import pytest

from tests.parallel.runs import relative
from tests.support.layout_jobs import VALIDATED
from tests.support.layout_runs import LAUNCHED
from tests.support.small_runs import curve

pytestmark = LAUNCHED


@pytest.mark.needs("validated", *VALIDATED)
def test_val_loss_does_not_depend_on_how_it_is_computed(layout_runs):
    """Exactly without tensor parallelism, which alone adds the parts of a product in another order; 23 rows divide into
    none of the batches."""
    (expected,) = curve(layout_runs.of("validated"), "val/loss")[1]
    losses = {name: curve(layout_runs.of(name), "val/loss")[1][0] for name in VALIDATED}
    print(expected, losses)
    assert {loss for name, loss in losses.items() if "tp2" not in name} == {expected}
    assert relative(losses["validated in tp2"], expected) <= 1e-6
