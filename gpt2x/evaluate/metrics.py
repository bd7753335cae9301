"""Metrics of a classifier, computed from its confusion matrix (imports no mindspore).

A confusion matrix C (K, K) contains counts: rows are true classes, columns predicted classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """labels and predicted (R,) -> (K, K) int64."""
    return np.bincount(labels * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def accuracy(confusion: np.ndarray) -> float:
    """Return the share of correct predictions."""
    return float(np.trace(confusion) / confusion.sum())


@dataclass(frozen=True)
class ClassScores:
    """Scores per class, (K,) each; 0 if the denominator of a ratio is 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # number of texts of the class


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Return precision, recall and F1 = 2 TP / (2 TP + FP + FN) of each class."""
    right, predicted, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return ClassScores(
        _ratio(right, predicted), _ratio(right, support), _ratio(2 * right, predicted + support), support
    )


def macro_f1(confusion: np.ndarray) -> float:
    """Return the unweighted mean of F1 over the classes that occur, as labels or as predictions."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(class_scores(confusion).f1[occurs].mean())


def matthews(confusion: np.ndarray) -> float:
    """Return the correlation of labels and predictions for K classes (Gorodkin, 2004, R_K); 0 if one is constant.

    (c s - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)) with c of s texts correct, p_k predicted as
    class k, and t_k of class k. For two classes it is the coefficient of Matthews (1975).
    """
    right, total = float(np.trace(confusion)), float(confusion.sum())
    predicted, support = confusion.sum(axis=0, dtype=np.float64), confusion.sum(axis=1, dtype=np.float64)
    spread = np.sqrt((total**2 - predicted @ predicted) * (total**2 - support @ support))
    return float((right * total - predicted @ support) / spread) if spread > 0 else 0.0


METRICS: dict[str, Callable[[np.ndarray], float]] = {"accuracy": accuracy, "f1": macro_f1, "mcc": matthews}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
