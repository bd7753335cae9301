"""The best value of a metric and its step."""

import math

import pytest

from gpt2x.tracking.best import best_value

ROWS = [
    {"step": 1, "train/loss": 0.1},
    {"step": 2, "val/loss": 3.0, "val/accuracy": 0.5},
    {"step": 4, "val/loss": math.nan, "val/accuracy": 0.7},
    {"step": 6, "val/loss": 2.5, "val/accuracy": 0.7},
    {"step": 8, "val/loss": 2.5, "val/accuracy": math.inf},
    {"step": 10, "val/loss": -math.inf, "val/accuracy": None},
]


@pytest.mark.parametrize(
    ("metric", "direction", "expected"),
    [
        ("val/loss", "lower", (2.5, 6)),
        ("val/loss", "higher", (3.0, 2)),
        ("val/accuracy", "higher", (0.7, 4)),
        ("train/loss", "lower", (0.1, 1)),
        ("val/f1", "higher", None),
    ],
)
def test_the_first_of_the_best_finite_values(metric, direction, expected):
    assert best_value(ROWS, metric, direction) == expected
    assert best_value(reversed(ROWS), metric, direction) == expected


def test_no_finite_value():
    assert best_value([], "val/loss", "lower") is None
    assert best_value([{"step": 1, "val/loss": "NaN"}], "val/loss", "lower") is None
