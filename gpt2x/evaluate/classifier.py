"""What `evaluate.py` measures of a classifier: loss, accuracy, F1 and Matthews' correlation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gpt2x.config import EvaluateConfig, ModelConfig
from gpt2x.data.mindrecord import Split
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.labelled import LabelledRows, require_labelled
from gpt2x.data.sampling import Batch, num_batches
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import ENDS, Intervals
from gpt2x.evaluate.classification import Predictions, predict
from gpt2x.evaluate.metrics import class_scores
from gpt2x.generate.class_scorer import ClassScorer
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.console import console, format_interval
from gpt2x.tracking import DataInput, data_source
from gpt2x.tracking.confusion import plot_confusion


class ClassMeasurement:
    """A classifier's loss, accuracy, F1 and Matthews' correlation on a labelled split.

    Attributes:
        evaluation: nulls replaced by what they stand for.
        data_sha256: fingerprint of the data, as is data_hash.
        inputs: the split, for a tracker.
        extent: what the results cover, for a title.
        notes: what a user should know before reading the numbers.

    Raises:
        UserError: a data set without labels, labels that the model does not have, or too long a seq_len.
    """

    def __init__(self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer):
        self.labels, longest = model.labels or [], model.max_seq_len
        if len(self.labels) == 1:
            raise UserError(
                f"load={config.load} has a head of one score (num_labels=1), but evaluate measures a choice of "
                "classes. Use predict, which gives the score of each text."
            )
        require_labelled(config.dataset, "a classifier")
        seq_len = config.evaluation.seq_len or longest
        if seq_len > longest:
            raise UserError(
                f"evaluation.seq_len={seq_len} does not fit the model, which has {longest} positions; use {longest} or "
                "less, or null."
            )
        self.seq_len = seq_len
        self.evaluation = replace(config.evaluation, seq_len=seq_len, protocols=[], stride=None)
        data = prepare(
            config.dataset, config.tokenizer, LabelledRows(seq_len, tuple(self.labels)),
            cache=Path(config.paths.cache), checkpoint_tokenizer=tokenizer, splits=(self.evaluation.split,),
        )  # fmt: skip
        split = data.val if self.evaluation.split == "val" else data.train
        assert split is not None
        self.split, self.data_sha256, self.data_hash = split, data.fingerprint, data.fingerprint
        source = data_source(config.dataset, self.evaluation.split)
        self.inputs = [
            DataInput(
                config.dataset.name, split.sha256, "evaluation", source,
                num_rows=split.num_blocks, num_tokens=split.num_tokens,
            )
        ]  # fmt: skip
        self.extent = f"{split.num_blocks:,} texts"
        self.notes = [f"note: {note}" for note in data.summary.notes]

    def run(self, pretrained: Pretrained, replicas: ReplicaBatches) -> dict[str, Predictions]:
        """Return the predictions under the name ""; one process has all texts."""
        batch_size = min(self.evaluation.batch_size, self.split.num_blocks)
        pad_id = pretrained.special_ids.pad
        scorer = ClassScorer(pretrained.net, batch_size, self.seq_len, pad_id=pad_id)  # type: ignore[arg-type]
        return {"": predict(scorer, self.split, track=lambda rows: progress(rows, self.split, batch_size))}

    def report(self, measured: Mapping[str, Predictions], intervals: Mapping[str, Intervals]) -> dict[str, object]:
        """Return the entries for `results.json`: the metrics, and the scores of each class."""
        predictions, limits = measured[""], intervals[""]
        each = class_scores(predictions.confusion)
        classes = {
            label: {key: getattr(each, key)[i].item() for key in ("precision", "recall", "f1", "support")}
            for i, label in enumerate(self.labels)
        }
        values = {
            metric: {"value": value} | dict(zip(ENDS, limits.get(metric, ()), strict=False))
            for metric, value in predictions.metrics.items()
        }
        confusion = predictions.confusion.tolist()
        return values | {"num_texts": len(predictions.labels), "classes": classes, "confusion": confusion}

    def save(self, folder: Path, prefix: str, title: str, measured: Mapping[str, Predictions]) -> list[Path]:
        """Write `predictions.jsonl` and `confusion.png`."""
        rows, picture = folder / f"{prefix}predictions.jsonl", folder / f"{prefix}confusion.png"
        write_predictions(rows, measured[""], self.labels)
        draw(picture, measured[""], self.labels, title)
        return [rows, picture]

    def show(self, title: str, measured: Mapping[str, Predictions], intervals: Mapping[str, Intervals]) -> None:
        """Print one row per metric."""
        limits = intervals[""]
        rows = [(key, value, format_interval(limits.get(key))) for key, value in measured[""].metrics.items()]
        console.table(title, ("metric", "value", "95 % interval"), rows)


def write_predictions(target: Path, predictions: Predictions, labels: list[str]) -> None:
    """Write a JSON line per text, in the order of the file: its number, label, prediction and probabilities."""
    with target.open("w", encoding="utf-8") as file:
        rows = zip(predictions.labels, predictions.predicted, np.exp(predictions.log_probabilities), strict=True)
        for index, (label, predicted, probabilities) in enumerate(rows):
            shares = {name: round(float(p), 6) for name, p in zip(labels, probabilities, strict=True)}
            row = {"index": index, "label": labels[label], "predicted": labels[predicted], "probabilities": shares}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def draw(target: Path, predictions: Predictions, labels: list[str], title: str) -> None:
    """Draw the confusion matrix and the scores of each class."""
    each = class_scores(predictions.confusion)
    columns = {"precision": each.precision, "recall": each.recall, "F1": each.f1, "texts": each.support}
    plot_confusion(predictions.confusion, labels, columns, target, title)


def progress(rows: Iterable[Batch], split: Split, batch_size: int) -> Iterable[Batch]:
    """Show a bar over the batches, if the terminal can draw one."""
    if not console.is_interactive:
        yield from rows
        return
    total = num_batches(split, batch_size, drop_last=False)
    with Progress(console=console.rich, transient=True) as bar:
        yield from bar.track(rows, total=total, description="classifying")
