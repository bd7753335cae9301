"""`evaluate.py` of a classifier: loss, accuracy, F1 and Matthews' correlation, each with its standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import Progress

from gpt2x.checks import require_labelled
from gpt2x.cli import save_config
from gpt2x.config import EvaluateConfig
from gpt2x.data.classes import prepare_labelled
from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import Batch, num_batches
from gpt2x.errors import UserError
from gpt2x.evaluate.classification import ClassScorer, Predictions, predict
from gpt2x.evaluate.metrics import METRICS, class_scores, standard_error
from gpt2x.evaluate.run import circumstances, display_name, log_metrics, tracked, trained_steps, write_json
from gpt2x.pretrained import Pretrained, require_single
from gpt2x.runtime.console import console
from gpt2x.tracking import Tracker
from gpt2x.tracking.confusion import plot_confusion


def evaluate_classifier(
    config: EvaluateConfig, pretrained: Pretrained, run_dir: Path, target: Path, tracker: Tracker
) -> None:
    """A table, `results.json`, and beside it `predictions.jsonl` and `confusion.png`.

    Raises:
        UserError: a data set without labels, labels that the model does not know, a length that it has not.
    """
    require_single(config, pretrained.model)
    require_labelled(config.dataset, "a classifier")
    labels, longest = pretrained.model.labels or [], pretrained.model.max_seq_len
    seq_len = config.evaluation.seq_len or longest
    if seq_len > longest:
        raise UserError(
            f"evaluation.seq_len={seq_len} does not fit the model, which has {longest} positions: use {longest} or "
            "less, or null"
        )
    evaluation = replace(config.evaluation, seq_len=seq_len, protocols=[], stride=None)
    data = prepare_labelled(
        config.dataset, config.tokenizer, seq_len=seq_len, cache=Path(config.paths.cache).expanduser(),
        own_tokenizer=pretrained.tokenizer, splits=(evaluation.split,), labels=labels,
    )  # fmt: skip
    split = data.val if evaluation.split == "val" else data.train
    assert split is not None
    save_config(config, run_dir / "config.yaml")
    step, name = trained_steps(pretrained), display_name(pretrained)
    with tracked(config, tracker, run_dir, f"{name}/{config.dataset.name}", data.fingerprint):
        for note in data.facts["notes"]:  # type: ignore[attr-defined]
            console.notice(f"note: {note}")
        scorer = ClassScorer(pretrained.net, min(evaluation.batch_size, split.num_blocks), seq_len)  # type: ignore[arg-type]
        found = predict(scorer, split, track=lambda rows: progress(rows, split, scorer.batch_size))
        results = scores(found)
        log_metrics(tracker, run_dir, step, {f"eval/{key}": value for key, (value, _) in results.items()})
        report = {"results": as_json(found, results, labels)}
        write_json(target, report | circumstances(config, evaluation, pretrained, step, data.fingerprint))
        write_predictions(target.with_name("predictions.jsonl"), found, labels)
        draw(target.with_name("confusion.png"), found, labels, f"{name} on {config.dataset.name} ({evaluation.split})")
        for file in (target, target.with_name("predictions.jsonl"), target.with_name("confusion.png")):
            tracker.log_artifact(file)
        rows = [(key, value, error) for key, (value, error) in results.items()]
        title = f"{name} on {config.dataset.name} ({evaluation.split}), {split.num_blocks:,} texts"
        console.table(title, ("metric", "value", "standard error"), rows)
        console.notice(f"results: {target}")


def scores(found: Predictions) -> dict[str, tuple[float, float]]:
    """Loss, accuracy, f1 and mcc, each with its standard error."""
    losses, confusion = found.losses, found.confusion
    error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else float("nan")
    return {"loss": (float(losses.mean()), error)} | {
        name: (metric(confusion), standard_error(metric, confusion)) for name, metric in METRICS.items()
    }


def as_json(found: Predictions, results: dict[str, tuple[float, float]], labels: list[str]) -> dict[str, object]:
    """The results as plain data, with those of each class."""
    each = class_scores(found.confusion)
    classes = {
        label: {key: getattr(each, key)[i].item() for key in ("precision", "recall", "f1", "support")}
        for i, label in enumerate(labels)
    }
    values = {key: {"value": value, "standard_error": error} for key, (value, error) in results.items()}
    return values | {"num_texts": len(found.labels), "classes": classes, "confusion": found.confusion.tolist()}


def write_predictions(target: Path, found: Predictions, labels: list[str]) -> None:
    """A JSON line a text, in the order of the file: its number, label, prediction and probabilities."""
    with target.open("w", encoding="utf-8") as file:
        rows = zip(found.labels, found.predicted, np.exp(found.log_probabilities), strict=True)
        for index, (label, predicted, probabilities) in enumerate(rows):
            shares = {name: round(float(p), 6) for name, p in zip(labels, probabilities, strict=True)}
            row = {"index": index, "label": labels[label], "predicted": labels[predicted], "probabilities": shares}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def draw(target: Path, found: Predictions, labels: list[str], title: str) -> None:
    """The confusion matrix and each class' scores, as a picture."""
    each = class_scores(found.confusion)
    columns = {"precision": each.precision, "recall": each.recall, "F1": each.f1, "texts": each.support}
    plot_confusion(found.confusion, labels, columns, target, title)


def progress(rows: Iterable[Batch], split: Split, batch_size: int) -> Iterable[Batch]:
    """A bar over the batches; nothing where no bar can be drawn."""
    if not console.is_interactive:
        yield from rows
        return
    total = num_batches(split, batch_size, drop_last=False)
    with Progress(console=console.rich, transient=True) as bar:
        yield from bar.track(rows, total=total, description="classifying")
