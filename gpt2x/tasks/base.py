"""What a run trains for: its data, its loss, its validation. The loop knows no more of it than `Task` says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import micro_batch_size
from gpt2x.data.mindrecord import Split
from gpt2x.data.prepare import PreparedData, prepare
from gpt2x.data.rows.base import RowForm
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.rows.instruction import Inputs, InstructionRows, inputs_of
from gpt2x.data.rows.labelled import LabelledRows, compact
from gpt2x.data.sampling import Batch, batches
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.unigram import unigram_perplexity
from gpt2x.errors import UserError

if TYPE_CHECKING:
    from mindspore import nn

    from gpt2x.parallel.mesh import Mesh
    from gpt2x.train.decision import Decision

UNIGRAM_MAX_TOKENS = 50_000_000  # counting more would delay the start


class Baseline(NamedTuple):
    """What a model that reads nothing reaches on the validation part.

    Attributes:
        name: in the legend of the loss curve.
        loss: in nats.
        key: its line in the start panel.
        text: of that line.
        comparison: the end of the last line of a run.
    """

    name: str
    loss: float
    key: str
    text: str
    comparison: str


class Validates(Protocol):
    """A validation, made once and run many times."""

    def run(self) -> dict[str, float]:
        """Metrics by name, the same on every process; those of `gpt2x.config.rules.METRICS` among them."""


class Task(Protocol):
    """What `task.objective` chooses."""

    unit: str  # what the loss is a mean over

    def prepare(self, config: TrainConfig, own: Tokenizer | None) -> PreparedData:
        """The data; `own`: a loaded checkpoint's tokenizer."""

    def fit_model(self, model: ModelConfig, data: PreparedData, loaded: ModelConfig | None) -> ModelConfig:
        """The model that the data ask for; raises UserError where the loaded one cannot become it."""

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """A Cell of (ids (B, T + 1) int32, weights (B, T) fp32, randomness) -> scalar fp32."""

    def inputs(self, config: TrainConfig, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Of a batch: the loss' ids (B, T + 1), or what it takes in their place, and a 1 for each unit that counts,
        (B, T).
        """

    def global_units(self, config: TrainConfig) -> int:
        """Units of a full global batch, by which the loss is divided."""

    def validation(self, decision: Decision, net: Any, mesh: Mesh) -> Validates:
        """The validation by all processes."""

    def describe(self, split: Split) -> str:
        """A split in one line."""

    def baseline(self, decision: Decision) -> Baseline | None:
        """What a model that reads nothing reaches; None where it is not known."""

    def summary(self, metric: str, best: float) -> str:
        """The best validation in words."""


def prepare_rows(config: TrainConfig, form: RowForm, checkpoint_tokenizer: Tokenizer | None) -> PreparedData:
    """Return the rows of a training run."""
    cache = Path(config.paths.cache)
    return prepare(config.dataset, config.tokenizer, form, cache=cache, checkpoint_tokenizer=checkpoint_tokenizer)


class LanguageModeling:
    """Next tokens: pretraining and fine-tuning."""

    unit = "token"

    def prepare(self, config: TrainConfig, own: Tokenizer | None) -> PreparedData:
        """Blocks of seq_len + 1 tokens."""
        return prepare_rows(config, Blocks(config.trainer.seq_len), own)

    def fit_model(self, model: ModelConfig, data: PreparedData, loaded: ModelConfig | None) -> ModelConfig:
        """`model` itself; a classifier has no head for tokens."""
        if loaded is not None and loaded.labels:
            raise UserError(
                f"load= holds a classifier ({', '.join(loaded.labels)}), no language model: use task=classification, "
                "or load the language model that it was made from"
            )
        return replace(model, labels=None)

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """The weighted sum of the tokens' losses."""
        from gpt2x.model.losses.language_modeling import WeightedLoss

        return WeightedLoss(net)

    def inputs(self, config: TrainConfig, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The blocks, and their targets that attention_mask covers."""
        return batch["input_ids"], batch["attention_mask"][:, 1:].astype(np.float32)

    def global_units(self, config: TrainConfig) -> int:
        """Targets."""
        return config.trainer.global_batch_size * config.trainer.seq_len

    def validation(self, decision: Decision, net: Any, mesh: Mesh) -> Validates:
        """Loss and perplexity."""
        from gpt2x.train.layout_builders import build_validation

        return build_validation(decision, net, mesh)

    def describe(self, split: Split) -> str:
        """Tokens, blocks, words."""
        words = f", {split.num_words:,} words" if split.num_words else ""
        return f"{split.num_tokens:,} tokens in {split.num_blocks:,} blocks of {split.block_len}{words}"

    def baseline(self, decision: Decision) -> Baseline | None:
        """A unigram model, where there is validation text and counting is quick."""
        train, val = decision.train_split, decision.data.val
        if val is None or train.num_tokens > UNIGRAM_MAX_TOKENS:
            return None
        perplexity = unigram_perplexity(train, val, decision.data.tokenizer.vocab_size)
        return Baseline(
            f"unigram model, ppl {perplexity:,.0f}", math.log(perplexity), "unigram perplexity",
            f"{perplexity:,.1f} a validation token: what token counts alone reach",
            f"a unigram model has {perplexity:,.1f}",
        )  # fmt: skip

    def summary(self, metric: str, best: float) -> str:
        """As a perplexity, which both metrics are."""
        return f"best validation perplexity {math.exp(best) if metric == 'val/loss' else best:.2f}"


class Instruction(LanguageModeling):
    """Responses to instructions; the rows are those of `gpt2x.data.rows.instruction`."""

    def prepare(self, config: TrainConfig, own: Tokenizer | None) -> PreparedData:
        """Rows of seq_len + 1 tokens."""
        return prepare_rows(config, InstructionRows(config.trainer.seq_len), own)

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """The weighted sum of the tokens' losses."""
        if not config.dataset.packing:
            return super().loss(config, net)
        from gpt2x.model.losses.instruction import PackedLoss

        return PackedLoss(net)

    def rows(self, config: TrainConfig, batch: Batch) -> Inputs:
        """A batch at the length that serves its longest row; stages exchange rows of seq_len alone."""
        has_one_length = config.dataset.packing or config.parallel.pipeline > 1
        return inputs_of(batch, width=config.trainer.seq_len if has_one_length else None)

    def inputs(self, config: TrainConfig, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The rows, packed ones followed by the columns at which their examples begin, and the responses."""
        ids, counted, starts = self.rows(config, batch)
        return (np.concatenate([ids, starts], axis=1) if config.dataset.packing else ids), counted

    def validation(self, decision: Decision, net: Any, mesh: Mesh) -> Validates:
        """Loss and perplexity of responses."""
        from gpt2x.train.layout_builders import build_validation

        def targets(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
            ids, counted, starts = self.rows(decision.config, batch)
            return ids, counted > 0, starts if decision.config.dataset.packing else None

        return build_validation(decision, net, mesh, targets)

    def describe(self, split: Split) -> str:
        """Examples, tokens, rows."""
        rows = f"in {split.num_blocks:,} rows of {split.block_len} at most"
        return f"{split.num_documents:,} examples, {split.num_tokens:,} tokens {rows}"

    def baseline(self, decision: Decision) -> Baseline | None:
        """Not known."""


class Classification:
    """Classes of texts."""

    unit = "text"

    def prepare(self, config: TrainConfig, own: Tokenizer | None) -> PreparedData:
        """Labelled rows of seq_len tokens."""
        return prepare_rows(config, LabelledRows(config.trainer.seq_len), own)

    def fit_model(self, model: ModelConfig, data: PreparedData, loaded: ModelConfig | None) -> ModelConfig:
        """`model` with the data's labels."""
        return replace(model, labels=list(data.labels))

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """The weighted sum of the texts' losses."""
        from gpt2x.model.losses.classification import WeightedClassLoss

        return WeightedClassLoss(net)

    def inputs(self, config: TrainConfig, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The texts without padding that no row needs, followed by their classes; a 1 at each last token."""
        from gpt2x.evaluate.classification import last_tokens

        rows, lengths = compact(batch["input_ids"], batch["attention_mask"], config.trainer.seq_len)
        ids = np.concatenate([rows, batch["labels"].reshape(-1, 1)], axis=1)
        return ids, last_tokens(lengths, rows.shape[1])

    def global_units(self, config: TrainConfig) -> int:
        """Texts."""
        return config.trainer.global_batch_size

    def validation(self, decision: Decision, net: Any, mesh: Mesh) -> Validates:
        """Loss, accuracy, F1, Matthews' correlation."""
        from gpt2x.evaluate.classification import ClassValidation

        config, split = decision.config, decision.data.val
        assert split is not None
        batch_size = min(micro_batch_size(config.parallel, config.trainer), split.num_blocks)
        return ClassValidation(net, split, batch_size, config.trainer.seq_len, config.trainer.max_eval_batches, mesh)

    def describe(self, split: Split) -> str:
        """Texts and tokens."""
        return f"{split.num_blocks:,} texts, {split.num_tokens:,} tokens, {split.block_len} a text at most"

    def baseline(self, decision: Decision) -> Baseline | None:
        """The training part's class frequencies, where there are validation texts."""
        val, num_labels = decision.data.val, len(decision.data.labels)
        if val is None:
            return None
        frequencies = label_counts(decision.train_split, num_labels) + 1
        counts = label_counts(val, num_labels)
        loss = float(-(counts * np.log(frequencies / frequencies.sum())).sum() / counts.sum())
        accuracy = counts[frequencies.argmax()] / counts.sum()
        frequent = decision.data.labels[frequencies.argmax()]
        return Baseline(
            "class frequencies", loss, "most frequent class",
            f"{frequent}: accuracy {accuracy:.4f}; frequencies alone: loss {loss:.4f}",
            f"the most frequent class has accuracy {accuracy:.4f}",
        )  # fmt: skip

    def summary(self, metric: str, best: float) -> str:
        """The metric as it is."""
        return f"best {metric} {best:.4f}"


def label_counts(split: Split, num_labels: int) -> np.ndarray:
    """Texts of each class, int64 (num_labels,)."""
    counts = np.zeros(num_labels, np.int64)
    for batch in batches(split, batch_size=1024, seed=0, epoch=0, shuffle=False, drop_last=False):
        counts += np.bincount(batch["labels"].reshape(-1), minlength=num_labels)
    return counts


TASKS: dict[str, Task] = {
    "language_modeling": LanguageModeling(),
    "classification": Classification(),
    "instruction": Instruction(),
}
