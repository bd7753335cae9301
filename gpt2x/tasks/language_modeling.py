"""Next tokens of text: pretraining and fine-tuning, perplexity, and completions of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2x.config import EvaluateConfig, ModelConfig, PredictConfig, TrainConfig
from gpt2x.errors import UserError
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

MAX_EXPONENT = 700  # of a float
UNIGRAM_MAX_TOKENS = 50_000_000  # counting more tokens would delay the start


class LanguageModelInference(Inference):
    """Perplexity under named protocols; completions of prompts."""

    def serves(self, model: ModelConfig) -> bool:
        """Serve every model with a head for tokens, also one tuned on instructions."""
        return not model.is_classifier

    def measurement(self, config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer) -> Measurement:
        """Measure the perplexities of evaluation.protocols."""
        from gpt2x.evaluate.perplexity import PerplexityMeasurement

        return PerplexityMeasurement(config, model, tokenizer)

    def check_prompts(
        self,
        config: PredictConfig,
        prompts: Sequence[Prompt],
        source: WeightsSource,
        adapters: Sequence[Adapter],
        model: ModelConfig,
    ) -> None:
        """Reject a template that does not exist, and instructions without a template."""
        from gpt2x.generate.prompts import choose_template, filled

        filled(prompts, choose_template(config, source, adapters), config)

    def predict(
        self,
        config: PredictConfig,
        prompts: list[Prompt],
        pretrained: Pretrained,
        adapters: Sequence[Adapter],
        mesh: Mesh,
        lines: Lines | None,
    ) -> str:
        """Complete the prompts."""
        from gpt2x.generate.predict_text import complete_prompts

        return complete_prompts(config, prompts, pretrained, adapters, mesh, lines)


class LanguageModeling(Task):
    """Every token of every block is learnt."""

    unit = "token"
    rows = "blocks"
    metrics: ClassVar[Mapping[str, Direction]] = {"val/loss": "lower", "val/ppl": "lower", "val/bits_per_byte": "lower"}
    samples_text = True
    inference = LanguageModelInference()
    settings = NoSettings

    def check(self, config: TrainConfig) -> None:
        """Accept every configuration."""

    def row_form(self, config: TrainConfig) -> RowForm:
        """Cut blocks of seq_len + 1 tokens."""
        from gpt2x.data.rows.blocks import Blocks

        return Blocks(config.trainer.seq_len)

    def fit_model(self, model: ModelConfig, data: PreparedData | None, loaded: ModelConfig | None) -> ModelConfig:
        """Return `model` with a head for tokens; reject a loaded classifier, which has none."""
        if loaded is not None and loaded.is_classifier:
            raise UserError(
                f"load= holds a classifier ({', '.join(loaded.labels or [])}), not a language model; use "
                "task=classification, or load the language model that it was made from."
            )
        return replace(model, labels=None)

    def loss(self, config: TrainConfig, net: Any) -> nn.Cell:
        """Return the weighted sum of token losses."""
        from gpt2x.model.losses.language_modeling import WeightedLoss

        return WeightedLoss(net)

    def inputs(self, config: TrainConfig, batch: Batch) -> Inputs:
        """Return the blocks, and a 1 for each target that attention_mask covers."""
        from gpt2x.data.rows.blocks import with_all_columns
        from gpt2x.evaluate.validation import all_targets

        return all_targets(with_all_columns(batch, config.trainer.seq_len))

    def global_units(self, config: TrainConfig) -> int:
        """Return the targets of a global batch."""
        return config.trainer.batch * config.trainer.seq_len

    def validation(self, run: Run, net: Any, mesh: Mesh) -> Validates:
        """Compute loss, perplexity and bits per byte over all targets."""
        from gpt2x.evaluate.validation import build_validation

        token_bytes = run.data.tokenizer.token_bytes()
        targets = partial(self.inputs, run.config)
        return build_validation(run.config, run.model, run.data.val, net, mesh, targets, token_bytes)

    def describe(self, split: Split) -> str:
        """Return tokens, blocks and words."""
        words = f", {split.num_words:,} words" if split.num_words else ""
        return f"{split.num_tokens:,} tokens in {split.num_blocks:,} blocks of {split.block_len}{words}"

    def baseline(self, run: Run) -> Baseline | None:
        """Return the perplexity of a unigram model, if there is validation text and counting is quick."""
        from gpt2x.data.unigram import unigram_perplexity

        train, val = run.train_split, run.data.val
        if val is None or train.num_tokens > UNIGRAM_MAX_TOKENS:
            return None
        perplexity = unigram_perplexity(train, val, run.data.tokenizer.vocab_size, run.config.trainer.max_eval_rows)
        return Baseline(
            name=f"unigram model, ppl {perplexity:,.0f}",
            loss=math.log(perplexity),
            key="unigram perplexity",
            text=f"{perplexity:,.1f} per validation token: what token counts alone reach",
            comparison=f"a unigram model has {perplexity:,.1f}",
        )

    def summary(self, metric: str, best: float) -> str:
        """Return the perplexity, to which the loss converts, or the bits per byte."""
        if metric == "val/bits_per_byte":
            return f"best validation bits per byte {best:.4f}"
        if metric == "val/loss":
            best = math.exp(best) if best < MAX_EXPONENT else math.inf
        return f"best validation perplexity {best:.2f}"


TASK = LanguageModeling()
