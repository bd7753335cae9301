"""Responses to instructions: a language model that learns only the response of each example.

Rows are those of `gpt2x.data.rows.instruction`. The model that comes out is a language model with a template, so
inference and the head are those of `gpt2x.tasks.language_modeling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.errors import require
from gpt2x.tasks.base import Baseline, Direction, NoSettings, Run, Task, Validates
from gpt2x.tasks.language_modeling import TASK as LANGUAGE_MODELING

if TYPE_CHECKING:
    from mindspore import nn

    from gpt2x.data.mindrecord import Split
    from gpt2x.data.prepare import PreparedData
    from gpt2x.data.rows.base import RowForm
    from gpt2x.data.sampling import Batch, Inputs
    from gpt2x.parallel.mesh import Mesh


class Instruction(Task):
    """The tokens of responses, each with its EOS, are learnt; prompts are only read."""

    unit = "token"
    rows = "blocks"
    metrics: ClassVar[Mapping[str, Direction]] = {"val/loss": "lower", "val/ppl": "lower"}
    samples_text = True
    inference = LANGUAGE_MODELING.inference
    settings = NoSettings

    def check(self, config: TrainConfig) -> None:
        """Reject text without responses."""
        from gpt2x.data.sources.registry import source_of

        require(
            source_of(config.dataset).row_form == "instruction",
            f"dataset={config.dataset.name} has no responses, which task={config.task.name} learns; use "
            "dataset=alpaca, or dataset=instructions for your own .json or .jsonl.",
        )

    def row_form(self, config: TrainConfig) -> RowForm:
        """Cut rows of seq_len + 1 tokens."""
        from gpt2x.data.rows.instruction import InstructionRows

        return InstructionRows(config.trainer.seq_len)

    def fit_model(self, model: ModelConfig, data: PreparedData | None, loaded: ModelConfig | None) -> ModelConfig:
        """Return a language model."""
        return LANGUAGE_MODELING.fit_model(model, data, loaded)

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """Return the weighted sum of token losses."""
        return LANGUAGE_MODELING.loss(config, net)

    def inputs(self, config: TrainConfig, batch: Batch) -> Inputs:
        """Return a batch at the length that holds its longest row; packed rows, and those of stages, have seq_len."""
        from gpt2x.data.rows.instruction import inputs_of

        packing, parallel = config.dataset.packing, config.parallel
        has_one_length = packing or parallel.pipeline > 1 or parallel.splits_weights
        inputs = inputs_of(batch, width=config.trainer.seq_len if has_one_length else None)
        return inputs if packing else inputs._replace(starts=None)

    def global_units(self, config: TrainConfig) -> int:
        """Return the targets of a global batch, those of prompts and padding included."""
        return LANGUAGE_MODELING.global_units(config)

    def validation(self, run: Run, net: Any, mesh: Mesh) -> Validates:
        """Compute loss and perplexity over the tokens of responses."""
        from gpt2x.evaluate.validation import build_validation

        return build_validation(run.config, run.model, run.data.val, net, mesh, partial(self.inputs, run.config))

    def describe(self, split: Split) -> str:
        """Return examples, tokens and rows."""
        rows = f"in {split.num_blocks:,} rows of {split.block_len} at most"
        return f"{split.num_documents:,} examples, {split.num_tokens:,} tokens {rows}"

    def baseline(self, run: Run) -> Baseline | None:
        """Return None: a unigram model of responses is not computed."""
        return None

    def summary(self, metric: str, best: float) -> str:
        """Return the perplexity of responses."""
        return LANGUAGE_MODELING.summary(metric, best)


TASK = Instruction()
