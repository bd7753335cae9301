"""Class probabilities of texts, and what they come to over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import Batch, batches
from gpt2x.evaluate.bootstrap import TextScores
from gpt2x.evaluate.metrics import METRICS, confusion_matrix
from gpt2x.generate.class_scorer import ClassScorer
from gpt2x.model.classifier import Classifier
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.replica_batches import ALONE, ReplicaBatches


@dataclass(frozen=True)
class Predictions:
    """Of the texts of a split.

    Attributes:
        labels: the true classes, (R,).
        log_probabilities: (R, K).
    """

    labels: np.ndarray
    log_probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest classes, (R,)."""
        return self.log_probabilities.argmax(axis=1)

    @property
    def losses(self) -> np.ndarray:
        """Negative log-likelihood of each true class in nats, (R,)."""
        return -np.take_along_axis(self.log_probabilities, self.labels[:, None], axis=1)[:, 0]

    @property
    def confusion(self) -> np.ndarray:
        """(K, K): rows are true classes, columns predicted ones."""
        return confusion_matrix(self.labels, self.predicted, self.log_probabilities.shape[1])

    @property
    def metrics(self) -> dict[str, float]:
        """Loss, accuracy, f1 and mcc."""
        confusion = self.confusion
        return {"loss": float(self.losses.mean())} | {name: metric(confusion) for name, metric in METRICS.items()}

    @property
    def scores(self) -> TextScores:
        """What the metrics are made from, text by text."""
        return TextScores(self.losses, self.labels, self.predicted)


def predict(
    scorer: ClassScorer, split: Split, *, max_batches: int | None = None, replicas: ReplicaBatches = ALONE,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda found: found,
) -> Predictions:  # fmt: skip
    """The predictions for this replica's batches of a split, in their order."""
    labels: list[np.ndarray] = []
    found: list[np.ndarray] = []
    rows: Iterator[Batch] = batches(
        split, batch_size=scorer.batch_size, seed=0, epoch=0, shuffle=False, drop_last=False
    )
    for batch in track(replicas.own(islice(rows, max_batches))):
        found.append(scorer.score(batch["input_ids"], batch["attention_mask"]))
        labels.append(batch["labels"].reshape(-1).astype(np.int64))
    num_labels = scorer.net.score.weight.shape[0]
    return Predictions(
        np.concatenate([np.empty(0, np.int64), *labels]), np.concatenate([np.empty((0, num_labels)), *found])
    )


class ClassValidation:
    """A classifier's validation during training; made once and run many times.

    Args:
        net: the model, with the weights that it has at each run.
        split: labelled rows.
        batch_size: texts a forward pass; has no influence on the result.
        seq_len: tokens of a text that are kept at most.
        max_batches: from the start of the split; None: all of it.
        mesh: the processes, of which each replica takes its turn at a batch.
    """

    def __init__(
        self, net: Classifier, split: Split, batch_size: int, seq_len: int, max_batches: int | None, mesh: Mesh
    ):
        self.scorer, self.split, self.max_batches = ClassScorer(net, batch_size, seq_len), split, max_batches
        self.replicas = ReplicaBatches(mesh)

    def run(self) -> dict[str, float]:
        """`val/loss` in nats a text, `val/accuracy`, `val/f1` (the mean over classes) and `val/mcc`."""
        found = predict(self.scorer, self.split, max_batches=self.max_batches, replicas=self.replicas)
        counts = found.confusion
        confusion = np.array([self.replicas.total(float(count)) for count in counts.flat]).reshape(counts.shape)
        loss = self.replicas.total(float(found.losses.sum())) / confusion.sum()
        return {"val/loss": loss} | {f"val/{name}": metric(confusion) for name, metric in METRICS.items()}
