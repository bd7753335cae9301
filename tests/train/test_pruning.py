"""Which jobs of a sweep end early."""

import pytest

from gpt2x.errors import UserError
from gpt2x.train.pruning import Prune, create_pruner


def prunes(own, others, direction="lower", name="median", **settings):
    prune = object.__new__(Prune)
    prune.pruner = create_pruner(name, settings)
    return prune.prunes(own, others, direction)


OTHERS = [{10: 3.0, 20: 2.0}, {10: 4.0, 20: 3.0}, {10: 5.0, 20: 4.0}]


@pytest.mark.parametrize(
    ("own", "direction", "expected"),
    [
        ({10: 4.5}, "lower", True),
        ({10: 3.5}, "lower", False),
        ({10: 4.5}, "higher", False),
        ({10: 3.5}, "higher", True),
        ({10: 3.5, 20: 3.5}, "lower", True),  # Optuna compares the best value so far with the median at this step
        ({30: 9.0}, "lower", False),  # nobody was evaluated there
        ({}, "lower", False),
    ],
)
def test_a_job_worse_than_the_median_at_its_step_ends(own, direction, expected):
    assert prunes(own, OTHERS, direction, n_startup_trials=3) is expected


def test_it_waits_for_as_many_jobs_and_steps_as_asked():
    assert not prunes({10: 9.0}, OTHERS, n_startup_trials=4)
    assert not prunes({10: 9.0}, OTHERS, n_startup_trials=1, n_warmup_steps=15)


def test_other_pruners_of_optuna():
    assert prunes({10: 3.5}, OTHERS, name="percentile", percentile=10.0, n_startup_trials=1)
    assert not prunes({10: 3.5}, OTHERS, name="percentile", percentile=90.0, n_startup_trials=1)
    assert prunes({10: 11.0}, [], name="threshold", upper=10.0)


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r'sweep.settings=\{"foo": 1\}: Optuna\'s MedianPruner says: .*foo'):
        create_pruner("median", {"foo": 1})
