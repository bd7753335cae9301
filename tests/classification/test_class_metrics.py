"""Metrics of a confusion matrix: by hand, against scikit-learn, the picture."""

import numpy as np
import pytest

from gpt2x.evaluate.metrics import (
    accuracy,
    class_scores,
    confusion_matrix,
    macro_f1,
    matthews,
)
from gpt2x.tracking.confusion import plot_confusion

CONFUSION = np.array([[5, 1], [2, 4]])


def test_two_classes_by_hand():
    assert accuracy(CONFUSION) == 9 / 12
    assert macro_f1(CONFUSION) == pytest.approx((10 / 13 + 8 / 11) / 2)
    assert matthews(CONFUSION) == pytest.approx((4 * 5 - 1 * 2) / np.sqrt(5 * 6 * 7 * 6))
    scores = class_scores(CONFUSION)
    assert scores.precision.tolist() == [5 / 7, 4 / 5]
    assert scores.recall.tolist() == [5 / 6, 4 / 6]
    assert scores.support.tolist() == [6, 6]


@pytest.mark.parity
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("kind", ["random", "right", "constant", "class never predicted"])
def test_scikit_learn_agrees(num_labels, kind):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(num_labels)
    labels = random.integers(0, num_labels, 200)
    predicted = {
        "random": random.integers(0, num_labels, 200),
        "right": labels,
        "constant": np.zeros(200, np.int64),
        "class never predicted": random.integers(0, num_labels - 1, 200),
    }[kind]
    confusion = confusion_matrix(labels, predicted, num_labels)
    assert np.array_equal(confusion, metrics.confusion_matrix(labels, predicted))
    assert accuracy(confusion) == metrics.accuracy_score(labels, predicted)
    assert macro_f1(confusion) == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert matthews(confusion) == pytest.approx(metrics.matthews_corrcoef(labels, predicted), abs=1e-12)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    ours = class_scores(confusion)
    for mine, theirs in zip((ours.precision, ours.recall, ours.f1, ours.support), (precision, recall, f1, support),
                            strict=True):  # fmt: skip
        assert np.allclose(mine, theirs, atol=1e-12)


def test_the_picture_is_written(tmp_path):
    scores = class_scores(CONFUSION)
    columns = {"precision": scores.precision, "texts": scores.support}
    plot_confusion(CONFUSION, ["a", "b"], columns, tmp_path / "out" / "confusion.png", "title")
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "out").iterdir())) == 1
