"""What a confusion matrix says of a classifier (imports no mindspore).

A confusion matrix C (K, K) counts: rows are true classes, columns predicted ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """labels and predicted (R,) -> (K, K) int64."""
    return np.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def accuracy(confusion: np.ndarray) -> float:
    """The share of right predictions."""
    return float(np.trace(confusion) / confusion.sum())


@dataclass(frozen=True)
class ClassScores:
    """Of each class, (K,) each; 0 where a ratio has no denominator."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # texts of the class


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN) of each class."""
    right, predicted, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return ClassScores(
        _ratio(right, predicted), _ratio(right, support), _ratio(2 * right, predicted + support), support
    )


def macro_f1(confusion: np.ndarray) -> float:
    """The unweighted mean of the F1 of the classes that occur, as labels or predictions."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(class_scores(confusion).f1[occurs].mean())


def matthews(confusion: np.ndarray) -> float:
    """The correlation of labels and predictions for K classes (Gorodkin, 2004, R_K); 0 where one of them is constant.

    (c s - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)) with c right of s texts, p_k predicted as and
    t_k truly of class k. For two classes it is Matthews' (1975).
    """
    right, total = float(np.trace(confusion)), float(confusion.sum())
    predicted, support = confusion.sum(axis=0, dtype=np.float64), confusion.sum(axis=1, dtype=np.float64)
    spread = np.sqrt((total**2 - predicted @ predicted) * (total**2 - support @ support))
    return float((right * total - predicted @ support) / spread) if spread > 0 else 0.0


METRICS: dict[str, Callable[[np.ndarray], float]] = {"accuracy": accuracy, "f1": macro_f1, "mcc": matthews}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
