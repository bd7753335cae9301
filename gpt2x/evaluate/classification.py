"""Predictions of a classifier for a split, and its validation while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import Batch, evaluation_batches
from gpt2x.evaluate.bootstrap import TextScores
from gpt2x.evaluate.metrics import METRICS, confusion_matrix
from gpt2x.generate.class_scorer import ClassScorer
from gpt2x.model.classifier import Classifier
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.replica_batches import ALONE, ReplicaBatches, exact_sum


@dataclass(frozen=True)
class Predictions:
    """Predictions for the texts of a split.

    Attributes:
        labels: the true classes, (R,).
        log_probabilities: (R, K).
    """

    labels: np.ndarray
    log_probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most likely classes, (R,)."""
        return self.log_probabilities.argmax(axis=1)

    @property
    def losses(self) -> np.ndarray:
        """Negative log-likelihood of each true class in nats, (R,)."""
        return -np.take_along_axis(self.log_probabilities, self.labels[:, None], axis=1)[:, 0]

    @property
    def confusion(self) -> np.ndarray:
        """(K, K): rows are true classes, columns predicted classes."""
        return confusion_matrix(self.labels, self.predicted, self.log_probabilities.shape[1])

    @property
    def metrics(self) -> dict[str, float]:
        """Loss, accuracy, f1 and mcc."""
        confusion = self.confusion
        return {"loss": exact_sum(self.losses) / len(self.losses)} | {
            name: metric(confusion) for name, metric in METRICS.items()
        }

    @property
    def scores(self) -> TextScores:
        """What the metrics are computed from, text by text."""
        return TextScores(self.losses, self.labels, self.predicted)


def predict(
    scorer: ClassScorer, split: Split, *, max_rows: int | None = None, replicas: ReplicaBatches = ALONE,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda rows: rows,
    before_round: Callable[[], None] = lambda: None,
) -> Predictions:  # fmt: skip
    """Return the predictions for this replica's batches of a split, in their order."""
    labels: list[np.ndarray] = []
    log_probabilities: list[np.ndarray] = []
    rows = evaluation_batches(split, scorer.batch_size, max_rows)
    for batch, is_local in replicas.rounds(track(rows)):
        before_round()
        scores = scorer.score(batch["input_ids"], batch["attention_mask"])
        if is_local:
            log_probabilities.append(scores)
            labels.append(batch["labels"].reshape(-1).astype(np.int64))
    return Predictions(
        np.concatenate([np.empty(0, np.int64), *labels]),
        np.concatenate([np.empty((0, scorer.num_labels)), *log_probabilities]),
    )


class ClassValidation:
    """The validation of a classifier while it trains; created once and run many times.

    Args:
        net: the model, with the weights that it has at each run.
        split: labelled rows.
        batch_size: texts per forward pass; does not change the result.
        seq_len: maximum number of tokens of a text; the first ones are kept.
        max_rows: how many texts, see `gpt2x.data.sampling.evaluation_rows`; None for all.
        mesh: the processes; replicas take turns at batches.
    """

    def __init__(self, net: Classifier, split: Split, batch_size: int, seq_len: int, max_rows: int | None, mesh: Mesh):
        self.scorer, self.split, self.max_rows = ClassScorer(net, batch_size, seq_len, mesh), split, max_rows
        self.replicas = ReplicaBatches(mesh)

    def run(self, before_round: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return `val/loss` in nats per text, `val/accuracy`, `val/f1` (the mean over classes), `val/mcc`.

        `before_round` is called before each batch.
        """
        predictions = predict(
            self.scorer, self.split, max_rows=self.max_rows, replicas=self.replicas, before_round=before_round
        )
        confusion = self.replicas.totals(predictions.confusion)
        loss = self.replicas.total(predictions.losses) / confusion.sum()
        return {"val/loss": loss} | {f"val/{name}": metric(confusion) for name, metric in METRICS.items()}
