"""Intervals of metrics: against the bootstrap written out, coverage on drawn data, pairs, the same for each seed."""

import numpy as np
import pytest

from gpt2x.evaluate.bootstrap import (
    TextScores,
    WindowScores,
    differences,
    flat,
    intervals,
    load_scores,
    save_scores,
)
from gpt2x.evaluate.metrics import METRICS, accuracy, confusion_matrix
from gpt2x.evaluate.protocols import reference, strided, word
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.runtime.console import format_estimate, format_interval


def windows(seed=0, number=80):
    random = np.random.default_rng(seed)
    weight = random.integers(20, 64, number).astype(float)
    return WindowScores(weight * random.normal(3, 0.4, number), weight)


def texts(seed=0, number=120, num_labels=3):
    random = np.random.default_rng(seed)
    label = random.integers(0, num_labels, number)
    predicted = np.where(random.random(number) < 0.7, label, random.integers(0, num_labels, number))
    return TextScores(random.exponential(0.6, number), label, predicted)


def drawn(number, resamples, seed):
    """The numbers of what each draw holds, as scipy draws them."""
    return np.random.default_rng(seed).integers(0, number, (resamples, number))


def test_a_perplexitys_interval_is_the_bootstraps():
    scores = windows()
    losses = [scores.nll[rows].sum() / scores.weight[rows].sum() for rows in drawn(80, 300, 7)]
    found = intervals(scores, 300, 7)
    assert found["loss"] == pytest.approx(np.quantile(losses, [0.025, 0.975]), abs=1e-12)
    assert found["ppl"] == pytest.approx(np.quantile(np.exp(losses), [0.025, 0.975]), abs=1e-10)


def test_a_classifiers_interval_is_the_bootstraps():
    scores = texts()
    found = intervals(scores, 200, 3)
    assert list(found) == ["loss", "accuracy", "f1", "mcc"]
    rows = drawn(120, 200, 3)
    assert found["loss"] == pytest.approx(np.quantile(scores.loss[rows].mean(axis=1), [0.025, 0.975]), abs=1e-12)
    for name, metric in METRICS.items():
        values = [metric(confusion_matrix(scores.label[draw], scores.predicted[draw], 3)) for draw in rows]
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_an_accuracys_interval_is_as_long_as_its_standard_error_says():
    scores = texts(number=1000)
    low, high = intervals(scores, 2000, 0)["accuracy"]
    p = accuracy(confusion_matrix(scores.label, scores.predicted, 3))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 1000), rel=0.1)


def test_of_a_hundred_intervals_about_five_miss_the_truth():
    """Windows drawn from a distribution whose mean is known; their own numbers of tokens, too."""
    hits = sum(low <= 3 <= high for low, high in (intervals(windows(seed), 400, seed)["loss"] for seed in range(200)))
    assert 178 <= hits <= 199  # 190 expected: the middle 99.9 % of a binomial, and a little less


def test_draws_are_the_seeds_and_memory_bounds_change_nothing(monkeypatch):
    scores = windows()
    found = intervals(scores, 300, 1)
    assert intervals(scores, 300, 1) == found != intervals(scores, 300, 2)
    monkeypatch.setattr("gpt2x.evaluate.bootstrap.VALUES_AT_ONCE", 1000)
    assert intervals(scores, 300, 1) == found


@pytest.mark.parametrize("scores", [
    WindowScores(np.array([3.0]), np.array([1.0])), WindowScores(np.array([3.0, np.inf]), np.array([1.0, 1.0])),
])  # fmt: skip
def test_no_interval_of_one_window_or_of_infinity(scores):
    assert intervals(scores, 50, 0) == {}


def test_an_infinite_perplexity_has_an_interval_of_its_loss_alone():
    found = intervals(WindowScores(np.array([900.0, 1000.0, 800.0]), np.ones(3)), 50, 0)
    assert list(found) == ["loss"]


def test_differences_are_drawn_in_pairs():
    first = windows(number=300)
    noise = np.random.default_rng(5).normal(0.02, 0.01, 300)
    second = WindowScores(first.nll + noise * first.weight, first.weight)
    value, (low, high) = differences(second, first, 500, 0)["loss"]
    assert value == pytest.approx((noise * first.weight).sum() / first.weight.sum())
    assert 0.015 < low < value < high < 0.025
    ends = [intervals(scores, 500, 0)["loss"] for scores in (first, second)]
    assert ends[0][1] > ends[1][0]  # apart, they would not tell the two from each other
    rows = drawn(300, 500, 0)
    draws = [(noise * first.weight)[draw].sum() / first.weight[draw].sum() for draw in rows]
    assert (low, high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


def test_differences_of_classifiers():
    first, second = texts(0), texts(0)
    better = TextScores(second.loss / 2, second.label, second.label)
    found = differences(better, first, 200, 0)
    p = accuracy(confusion_matrix(first.label, first.predicted, 3))
    assert found["accuracy"][0] == pytest.approx(1 - p)
    assert found["accuracy"][1][0] > 0 > found["loss"][1][1]


def test_no_difference_of_other_windows_or_kinds():
    assert differences(windows(0), windows(1), 50, 0) == {}
    assert differences(texts(0), texts(1), 50, 0) == {}
    assert differences(windows(0), texts(0), 50, 0) == {}


def test_scores_are_read_as_written(tmp_path):
    written = {"reference": windows(), "adapter/word": windows(1), "": texts()}
    save_scores(tmp_path / "scores.npz", written)
    found = load_scores(tmp_path / "scores.npz")
    assert list(found) == list(written)
    for key, scores in written.items():
        assert type(found[key]) is type(scores)
        assert np.array_equal(found[key].metrics(), scores.metrics())


def test_names_and_shown_numbers():
    assert flat({"loss": 1.0, "ppl": 2.7}, {"ppl": (2.0, 3.0)}) == {
        "loss": 1.0,
        "ppl": 2.7,
        "ppl_low": 2.0,
        "ppl_high": 3,
    }
    assert format_interval((20.3647, 20.8137)) == "[20.36, 20.81]"
    assert format_interval(None) == ""
    assert format_estimate(2249.11, (2047.2, 2453.9)) == "2249 [2047, 2454]"
    assert format_estimate(2.087e8, (1.71e8, 2.53e8)) == "2.09e8 [1.71e8, 2.53e8]"
    assert format_estimate(-0.01, (-0.02, 0.01), "+") == "-0.010 [-0.020, +0.010]"


# ---- the protocols


class Lengths:
    """Stands for a scorer: the nll of a token is its id."""

    batch_size = 3

    def score(self, ids):
        return ids[:, 1:].astype(np.float64)


class Numbers:
    """Stands for a stream: the tokens 1..n in a random order."""

    words = (4, "word")

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens
        self.ids = np.random.default_rng(0).permutation(num_tokens).astype(np.int32) + 1

    def __iter__(self):
        yield self.ids


@pytest.mark.parametrize("protocol", [
    lambda replicas: reference(Lengths(), Numbers(46), 4, replicas=replicas),  # the last batch is not whole
    lambda replicas: strided(Lengths(), Numbers(46), 4, 2, replicas=replicas),
    lambda replicas: strided(Lengths(), Numbers(47), 4, 2, replicas=replicas),  # a last window of weight 0
    lambda replicas: word(Lengths(), Numbers(46), 4, 3, 0, replicas=replicas),
])  # fmt: skip
def test_scores_weigh_windows_as_the_protocol_does(protocol):
    result = protocol(ReplicaBatches())
    assert result.scores.metrics()[0] == pytest.approx(result.loss, rel=1e-12)
    assert len(result.scores.nll) == result.num_windows


class Standing:
    """A mesh whose other ranks are asked for what they would say."""

    def __init__(self, parallel, rank, told):
        from gpt2x.config.layout import Coordinates

        self.coordinates, self.size, self.told = Coordinates(parallel, rank), parallel.data * parallel.tensor, told

    def gather(self, value):
        return self.told.pop(0)


@pytest.mark.parametrize("number", [1, 3, 8, 11, 12, 13])
@pytest.mark.parametrize("tensor", [1, 2])
def test_replicas_come_together_in_the_order_of_windows(number, tensor):
    from gpt2x.config import ParallelConfig
    from gpt2x.config.layout import Coordinates

    parallel = ParallelConfig(name="x", data=3, tensor=tensor)
    batches = [np.arange(start, min(start + 3, number), dtype=float) for start in range(0, number, 3)]
    ranks = [Coordinates(parallel, rank) for rank in range(3 * tensor)]
    own = [np.concatenate([np.empty(0), *batches[coordinates.data :: 3]]) for coordinates in ranks]
    longest = max(len(part) for part in own)
    told = [np.array([len(part) for part in own], float), np.stack([np.pad(p, (0, longest - len(p))) for p in own])]
    mesh = Standing(parallel, 0, told)
    assert ReplicaBatches(mesh).in_order(batches[::3], 3).tolist() == list(range(number))
