"""A trained model as a model of EleutherAI's lm-evaluation-harness (`lm_eval`): importing this registers `gpt2x`.

What a request means is what it means to lm_eval's `hf` backend (lm_eval 0.4.13, `lm_eval/models/huggingface.py`), so
that its numbers are those of the same weights in transformers. The division of texts, the order of batches, rolling
windows and stop strings are lm_eval's own functions; scores and texts come from gpt2x.

Legend: B batch, R <= B rows of a batch, L tokens of its longest row, in powers of two.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_OTHER_SEED
from lm_eval.models.utils import Collator, handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from gpt2x import __version__
from gpt2x.config import GenerationConfig, HardwareConfig, TokenizerConfig
from gpt2x.config.options import read_option
from gpt2x.config.rules import validate_generation
from gpt2x.convert.special_ids import GENERATION_FILE
from gpt2x.errors import UserError
from gpt2x.evaluate.results import trained_steps
from gpt2x.evaluate.scoring import GreedyScorer, padded
from gpt2x.generate.completion import Generator, Row, excerpt
from gpt2x.generate.lengths import bucket
from gpt2x.model.stats import num_params
from gpt2x.pretrained import load_pretrained, open_adapters
from gpt2x.runtime.device import set_up_device
from gpt2x.tracking.provenance import package_versions

TRANSFORMERS_TOP_K = 50  # what transformers samples from where a task does not say (its `GenerationConfig`)
SAMPLING = ("temperature", "top_k", "top_p")
DECODING = ("min_new_tokens", "repetition_penalty")

log = logging.getLogger(__name__)

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]  # (context, continuation), and the ids of each


@register_model("gpt2x")
class GPT2XLM(TemplateLM):
    """Answers lm_eval's requests with the weights, the tokenizer and the decoder of gpt2x, in one process.

    Args:
        load: a gpt2x checkpoint, a run or a Hugging Face directory.
        hardware: an option of `conf/hardware`.
        tokenizer: a directory, for a `load` that has no tokenizer.
        adapter: an adapter of lora= or of PEFT, which is merged into the weights.
        batch_size: B; does not change results.
        seed: seed of sampling.
        device: a torch device, which lm_eval's command passes to every model; ignored, `hardware` decides.
        max_batch_size: for lm_eval's batch size "auto", which gpt2x does not have.

    Raises:
        UserError: as `load_pretrained`; also a classifier, an unknown hardware, or a batch size that is not a number.
    """

    def __init__(
        self,
        load: str,
        hardware: str = "cpu",
        tokenizer: str | None = None,
        adapter: str | None = None,
        batch_size: int | str = 8,
        seed: int = DEFAULT_OTHER_SEED,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise UserError(
                f"batch_size={batch_size}: give a number of at least 1; gpt2x does not search for the largest."
            )
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.hardware = read_option("hardware", hardware, HardwareConfig)
        set_up_device(self.hardware)
        tokenizer_config = TokenizerConfig(name="checkpoint", path=tokenizer)
        adapters = open_adapters([adapter] if adapter else [])
        self.pretrained = load_pretrained(str(load), self.hardware, tokenizer_config, adapters=adapters)
        if self.pretrained.model.is_classifier:
            raise UserError(
                f"load={load} is a classifier, but lm_eval's tasks are for language models; use evaluate.py."
            )
        net, model = self.pretrained.net, self.pretrained.model
        self.max_length = model.max_seq_len
        self.scorer = GreedyScorer(net, self.batch_size)
        ids = self.pretrained.special_ids
        self.generator = Generator(net, model, self.hardware, self.pretrained.tokenizer, special_ids=ids)
        if unused := {key: value for key, value in ids.options().items() if key not in (*DECODING, "do_sample")}:
            log.warning("%s: lm_eval's hf backend decodes with %s, gpt2x without", f"{load}/{GENERATION_FILE}", unused)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        return self.pretrained.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without context: BOS, EOS if the tokenizer has no BOS."""
        return self.pretrained.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; GPT-2 adds none at either end."""
        return self.pretrained.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation in nats, and whether greedy decoding would choose it.

        Raises:
            UserError: a context or a continuation without tokens.
        """
        for context, continuation in (request.args for request in requests):
            if not context and not self.tok_encode(continuation):
                raise UserError(
                    f"the task has a continuation ({excerpt(continuation)}) of 0 tokens and no context. Correct its "
                    "doc_to_choice or doc_to_target."
                )
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in nats, the first token after `prefix_token_id`.

        Windows do not overlap, except for the last one's context (`get_rolling_token_windows`).
        """
        texts = [text for (text,) in (request.args for request in requests)]
        windows: list[list[Encoded]] = []
        for text in texts:
            pairs = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            windows.append([(None, *make_disjoint_window(pair)) for pair in pairs])
        scores = iter(self._loglikelihood_tokens([one for of_text in windows for one in of_text], disable_tqdm))
        totals = [sum(total for total, _ in islice(scores, len(of_text))) for of_text in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation in nats, and whether greedy decoding would choose it.

        What does not fit the model's positions is cut off at the left.

        Raises:
            UserError: a context without tokens; a continuation without tokens, or with more than the model has
                positions.
        """
        window = self.max_length + 1  # the last token is predicted, not seen
        for texts, context, continuation in requests:
            if not context:
                raise UserError(
                    f"the task has a context of blanks only ({excerpt(texts[0] if texts else '')}): lm_eval moves "
                    "blanks to the continuation, and nothing remains before it. Correct its doc_to_text; an empty "
                    "context is one BOS."
                )
            if not 1 <= len(continuation) <= self.max_length:
                text = excerpt(texts[1] if texts else "")
                raise UserError(
                    f"the task has a continuation ({text}) of {len(continuation)} tokens; 1 to "
                    f"model.max_seq_len={self.max_length} can be scored. Correct its doc_to_choice or doc_to_target."
                )
        warn_of_cuts([len(context) + len(continuation) for _, context, continuation in requests], window)
        ordered = Collator(requests, sort_fn=lambda one: (-len(one[1] + one[2]), tuple(one[1] + one[2])))
        answers = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as progress:
            for batch in ordered.get_batched(n=self.batch_size):
                rows = [(context + continuation)[-window:] for _, context, continuation in batch]
                length = bucket(len(rows[0]) - 1, self.max_length) + 1  # the first is the longest
                nll, is_likeliest = self.scorer.score_greedy(padded(rows, length))  # (R, L - 1)
                for row, (texts, _, continuation) in enumerate(batch):
                    end = len(rows[row]) - 1
                    columns = slice(end - len(continuation), end)
                    answer = (-float(nll[row, columns].sum()), bool(is_likeliest[row, columns].all()))
                    answers.append(answer)
                    if texts is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answer)
                progress.update(len(batch))
        return ordered.get_original(answers)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context up to its first stop string, EOS or max_gen_toks tokens.

        Contexts are cut off at the left, so that max_gen_toks tokens fit after them.

        Raises:
            UserError: decoding options that gpt2x does not have, or that leave no room for a context.
        """
        grouped = Collator(
            [request.args for request in requests],
            sort_fn=lambda one: (-len(self.tok_encode(one[0])), one[0]),
            group_by="gen_kwargs",
            group_fn=lambda one: one[1],
        )
        texts = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as progress:
            for group in grouped.get_batched(n=len(requests)):  # the generator makes the batches
                config, until = self.decoding(group[0][1])
                room = self.max_length - config.max_new_tokens
                if room < 1:
                    raise UserError(
                        f"max_gen_toks={config.max_new_tokens} leaves no room for a context within "
                        f"model.max_seq_len={self.max_length}: give a smaller one in the task's generation_kwargs."
                    )

                def on_token(row: Row, until: Sequence[str] = until) -> None:
                    text = self.pretrained.tokenizer.decode(row.new)  # a stop string may be a special token
                    if row.finish_reason is None and any(stop in text for stop in until):
                        row.finish_reason = "stop"
                    progress.update(row.finish_reason is not None)

                contexts = self.generator.encode([context for context, _ in group])
                warn_of_cuts([len(ids) for ids in contexts], room)
                completions = self.generator.generate_ids(
                    [ids[-room:] for ids in contexts], config, self.seed, on_token
                )
                for arguments, ids in zip(group, completions, strict=True):
                    text = postprocess_generated_text(self.tok_decode(ids), until, think_end_token=None)
                    texts.append(text)
                    self.cache_hook.add_partial("generate_until", arguments, text)
        return grouped.get_original(texts)

    def tok_decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens, such as EOS."""
        return self.pretrained.tokenizer.decode(ids, skip_special=True)

    def decoding(self, gen_kwargs: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
        """Return a task's `generation_kwargs` as decoding options, and its stop strings.

        Decoding is greedy if do_sample is false or temperature is 0. Missing options are those of the model's
        generation_config.json, else transformers' defaults.

        Raises:
            UserError: an option that gpt2x does not have, or a value out of range.
        """
        requested: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, DEFAULT_MAX_GEN_TOKS))
        until = handle_stop_sequences(requested.pop("until"), self.pretrained.tokenizer.eos_token)
        options = {"max_new_tokens": requested.pop("max_gen_toks"), "do_sample": requested.pop("do_sample")}
        if requested.get("num_beams") == 1:
            del requested["num_beams"]
        if unknown := sorted(requested.keys() - {*SAMPLING, *DECODING}):
            raise UserError(
                f"generation_kwargs.{unknown[0]}={requested[unknown[0]]}: gpt2x has no such option; it has until, "
                f"max_gen_toks, do_sample, {', '.join((*SAMPLING, *DECODING))}."
            )
        if options["do_sample"]:
            defaults = {"temperature": 0.0, "top_k": TRANSFORMERS_TOP_K} | self.model_decoding("top_k", "top_p")
            requested = defaults | requested
        else:
            requested = {key: value for key, value in requested.items() if key not in SAMPLING}
        requested = self.model_decoding(*DECODING) | requested
        config = GenerationConfig(**options, **requested, batch_size=self.batch_size)
        validate_generation(config)
        return config, until

    def model_decoding(self, *keys: str) -> dict[str, Any]:
        """Return the numbers that the model's generation_config.json gives some decoding options."""
        values = {key: self.pretrained.special_ids.generation.get(key) for key in keys}
        return {key: value for key, value in values.items() if isinstance(value, int | float)}

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval writes with its results: size, precision, and where the weights come from."""
        source = self.pretrained.source
        return {
            "model_num_parameters": num_params(self.pretrained.model),
            "model_dtype": self.hardware.precision,
            "model_source": {
                "path": str(source.path.absolute()),
                "kind": source.kind,
                "step": trained_steps(self.pretrained),
            },
            "tokenizer_fingerprint": self.pretrained.tokenizer.fingerprint,
            "versions": {"gpt2x": __version__} | package_versions(),
        }


def warn_of_cuts(lengths: Sequence[int], most: int) -> None:
    """Log a warning if texts lose tokens at the left."""
    if cut := sum(length > most for length in lengths):
        log.warning("%d of %d texts have more than %d tokens and are cut off at the left", cut, len(lengths), most)
