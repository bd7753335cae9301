"""What an update counts: positions of dropout, tokens, seconds; and where a resumed run continues in its epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.data.sampling import num_tokens
from gpt2x.model.gpt2 import dropout_randomness
from gpt2x.train import trainer as loop
from gpt2x.train.state import resumed_state
from gpt2x.train.trainer import Trainer


@pytest.mark.usefixtures("hardware")
def test_dropout_counts_positions_by_the_longest_row():
    key, first = Tensor(7), Tensor(3)
    (_, wide), (_, narrow) = (dropout_randomness(True, key, first, 2, length, 8) for length in (8, 5))
    expected = np.arange(24, 40).reshape(2, 8)
    assert (wide.asnumpy().reshape(2, 8) == expected).all()
    assert (narrow.asnumpy().reshape(2, 5) == expected[:, :5]).all()
    assert (dropout_randomness(True, key, first, 2, 8)[1].asnumpy() == wide.asnumpy()).all()


def test_tokens_of_a_batch_are_without_padding():
    mask = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 0, 0], [0, 0, 0, 0, 1]])
    assert num_tokens({"attention_mask": mask}, 4) == 4 + 3 + 1


def test_the_time_of_a_step_contains_reading(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock.now)

    def source():
        while True:
            clock.now += 2.0
            yield {}

    def update(batch, progress):
        clock.now += 3.0
        return {}, 100

    saving = SimpleNamespace(take_stall_s=lambda: 1.5)
    run = SimpleNamespace(update=update, speed=lambda rate, seconds: {"rate": rate, "seconds": seconds}, saving=saving)
    metrics = Trainer.timed_update(run, source(), None)
    assert (metrics["rate"], metrics["seconds"], metrics["perf/checkpoint_stall_s"]) == (20.0, 5.0, 1.5)


@pytest.mark.parametrize(("stored", "batches", "expected"), [(8, 10, 20), (2, 10, 5), (3, 5, 4), (4, 7, 7)])
def test_an_epoch_continues_after_the_rows_that_were_read(stored, batches, expected):
    """Under trainer.global_batch_size=4."""
    options = SimpleNamespace(batch=4)
    config = SimpleNamespace(trainer=options, hardware=SimpleNamespace(precision="fp32"))
    decision = SimpleNamespace(config=config, data=SimpleNamespace(fingerprint=""), base=None)
    written = {"batch": batches, "loss_scale": {"scale": 1.0, "factor": 1.0, "window": 1}, "best_value": 2.0,
               "bests": {"val/loss": [2.0, 3]}}  # fmt: skip
    of_run = {"hardware": {"precision": "fp32"}, "trainer": {"global_batch_size": stored}}
    state = resumed_state(decision, written, of_run, is_branch=False, is_comparable=True)
    assert (state.batch, state.best_value, state.bests) == (expected, 2.0, {"val/loss": [2.0, 3]})
    branch = resumed_state(decision, written, of_run, is_branch=True, is_comparable=True)
    assert (branch.best_value, branch.bests) == (None, {"val/loss": [2.0, 3]})
    assert resumed_state(decision, written, of_run, is_branch=False, is_comparable=False).bests == {}
