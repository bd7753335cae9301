"""Classes of texts: a classifier whose head reads the last token of each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gpt2x.config import CommonConfig, EvaluateConfig, ModelConfig, PredictConfig, TrainConfig
from gpt2x.config.layout import micro_batch_size, world_size
from gpt2x.errors import require
from gpt2x.tasks.base import Baseline, Direction, Inference, NoSettings, Run, Task, Validates

if TYPE_CHECKING:
    from mindspore import nn

    from gpt2x.convert import WeightsSource
    from gpt2x.data.mindrecord import Split
    from gpt2x.data.prepare import PreparedData
    from gpt2x.data.rows.base import RowForm
    from gpt2x.data.sampling import Batch, Inputs
    from gpt2x.data.tokenizer import Tokenizer
    from gpt2x.evaluate.measurement import Measurement
    from gpt2x.generate.output import Lines
    from gpt2x.generate.prompts import Prompt
    from gpt2x.lora.adapter import Adapter
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.pretrained import Pretrained


class ClassifierInference(Inference):
    """Accuracy, F1 and Matthews' correlation on labelled texts; the class of each prompt."""

    def serves(self, model: ModelConfig) -> bool:
        """Serve every model with a head for classes."""
        return model.is_classifier

    def measurement(self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer) -> Measurement:
        """Measure a labelled split, in one process."""
        from gpt2x.evaluate.classifier import ClassMeasurement

        require_one_process(config)
        return ClassMeasurement(config, model, tokenizer)

    def check_prompts(
        self,
        config: PredictConfig,
        prompts: Sequence[Prompt],
        source: WeightsSource,
        adapters: Sequence[Adapter],
        model: ModelConfig,
    ) -> None:
        """Reject a layout of several processes."""
        require_one_process(config)

    def predict(
        self,
        config: PredictConfig,
        prompts: list[Prompt],
        pretrained: Pretrained,
        adapters: Sequence[Adapter],
        mesh: Mesh,
        lines: Lines | None,
    ) -> str:
        """Classify the prompts."""
        from gpt2x.generate.predict_classes import classify_prompts

        return classify_prompts(config, prompts, pretrained, lines)


class Classification(Task):
    """The class of each text is learnt."""

    unit = "text"
    rows = "texts"
    metrics: ClassVar[Mapping[str, Direction]] = {
        "val/loss": "lower",
        "val/accuracy": "higher",
        "val/f1": "higher",
        "val/mcc": "higher",
    }
    samples_text = False
    inference = ClassifierInference()
    settings = NoSettings

    def check(self, config: TrainConfig) -> None:
        """Reject text without labels, and layouts that split what a classifier's head reads."""
        from gpt2x.data.rows.labelled import require_labelled

        require_labelled(config.dataset, f"task={config.task.name}")
        parallel = config.parallel
        require(
            parallel.tensor == parallel.pipeline == 1,
            f"parallel={parallel.name} (parallel.tensor={parallel.tensor}, parallel.pipeline={parallel.pipeline}): "
            f"task={config.task.name} runs under data layouts; use parallel=single, or dp2 and its like.",
        )

    def row_form(self, config: TrainConfig) -> RowForm:
        """Cut labelled rows of seq_len tokens, with the classes of the model if it has some."""
        from gpt2x.data.rows.labelled import LabelledRows

        model = config.model
        if model.labels is None or model.has_unnamed_labels:
            return LabelledRows(config.trainer.seq_len, num_classes=len(model.labels or []) or None)
        return LabelledRows(config.trainer.seq_len, tuple(model.labels))

    def fit_model(self, model: ModelConfig, data: PreparedData | None, loaded: ModelConfig | None) -> ModelConfig:
        """Return `model` with the data's labels."""
        if data is None:
            return replace(model, labels=(loaded.labels if loaded else None) or ["any"])
        return replace(model, labels=list(data.labels))

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """Return the weighted sum of the texts' losses."""
        from gpt2x.model.losses.classification import WeightedClassLoss

        return WeightedClassLoss(net)

    def inputs(self, config: TrainConfig, batch: Batch) -> Inputs:
        """Return the texts without padding that no row needs, followed by their classes; a 1 at each last token."""
        from gpt2x.data.rows.labelled import compact
        from gpt2x.data.sampling import Inputs
        from gpt2x.generate.class_scorer import last_tokens

        seq_len = config.trainer.seq_len
        width = seq_len if config.parallel.splits_weights else None  # graphs per block are compiled once
        rows, lengths = compact(batch["input_ids"], batch["attention_mask"], seq_len, width)
        ids = np.concatenate([rows, batch["labels"].reshape(-1, 1)], axis=1)
        return Inputs(ids, last_tokens(lengths, rows.shape[1]))

    def global_units(self, config: TrainConfig) -> int:
        """Return the texts of a global batch."""
        return config.trainer.batch

    def validation(self, run: Run, net: Any, mesh: Mesh) -> Validates:
        """Compute loss, accuracy, F1 and Matthews' correlation."""
        from gpt2x.evaluate.classification import ClassValidation

        config, split = run.config, run.data.val
        assert split is not None
        batch_size = min(micro_batch_size(config.parallel, config.trainer), split.num_blocks)
        return ClassValidation(net, split, batch_size, config.trainer.seq_len, config.trainer.max_eval_rows, mesh)

    def describe(self, split: Split) -> str:
        """Return texts and tokens."""
        return f"{split.num_blocks:,} texts, {split.num_tokens:,} tokens, {split.block_len} per text at most"

    def baseline(self, run: Run) -> Baseline | None:
        """Return what the training split's class frequencies reach, if there are validation texts."""
        val, labels = run.data.val, run.data.labels
        if val is None:
            return None
        frequencies = label_counts(run.train_split, len(labels)) + 1
        counts = label_counts(val, len(labels), run.config.trainer.max_eval_rows)
        loss = float(-(counts * np.log(frequencies / frequencies.sum())).sum() / counts.sum())
        accuracy = counts[frequencies.argmax()] / counts.sum()
        return Baseline(
            name="class frequencies",
            loss=loss,
            key="most frequent class",
            text=f"{labels[frequencies.argmax()]}: accuracy {accuracy:.4f}; frequencies alone: loss {loss:.4f}",
            comparison=f"the most frequent class has accuracy {accuracy:.4f}",
        )

    def summary(self, metric: str, best: float) -> str:
        """Return the metric as it is."""
        return f"best {metric} {best:.4f}"


def require_one_process(config: CommonConfig) -> None:
    """Raise UserError if a classifier would be evaluated or asked by several processes."""
    require(
        world_size(config.parallel) == 1,
        f"parallel={config.parallel.name}: load={config.load} holds a classifier, which is evaluated and asked by one "
        "process; use parallel=single.",
    )


def label_counts(split: Split, num_labels: int, max_rows: int | None = None) -> np.ndarray:
    """Return the number of texts per class, int64 (num_labels,), of the rows that a validation reads."""
    from gpt2x.data.sampling import evaluation_batches

    counts = np.zeros(num_labels, np.int64)
    for batch in evaluation_batches(split, 1024, max_rows):
        counts += np.bincount(batch["labels"].reshape(-1), minlength=num_labels)
    return counts


TASK = Classification()
