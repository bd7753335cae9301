"""BOS, EOS and PAD of a model, and how transformers' `generate` decodes it: config.json and generation_config.json.

`generate` reads generation_config.json, and only without that file what config.json has of the same keys. It never
reads the tokenizer's files. A key that the file lacks names no token (transformers' generation/utils.py,
`adjust_generation_fn`; generation/configuration_utils.py, `from_model_config`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.convert.directories import read_json
from gpt2x.errors import UserError

GENERATION_FILE = "generation_config.json"
BOS, EOS, PAD = "bos_token_id", "eos_token_id", "pad_token_id"

NO, OFF = (None, False), (None, 0)
# option -> the values with which `generate` decodes as it does without it
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": NO,
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": OFF,
    "encoder_no_repeat_ngram_size": OFF,
    "min_length": OFF,
    "min_new_tokens": OFF,
    "max_new_tokens": (None,),
    "max_time": (None,),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "bad_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, [], {}),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "token_healing": NO,
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": OFF,
    "dola_layers": (None,),
    "constraints": (None, []),
    "force_words_ids": (None, []),
    "assistant_ensemble_weight": (None,),
}
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "renormalize_logits",
)  # fmt: skip
UNUSED = (
    "max_length", "early_stopping", "length_penalty", "diversity_penalty", "remove_invalid_values",
    "decoder_start_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory",
    "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config", "use_mtp",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind", "speculation_type", "transformers_version", "_from_model_config", "_commit_hash",
)  # fmt: skip

OPTIONS = (*NEUTRAL, *SAMPLING, *UNUSED)  # all of them but the ids

CONFIG_IDS = (
    Entry(BOS, Use.READ, f"starts an empty prompt, if there is no {GENERATION_FILE}"),
    Entry(EOS, Use.READ, f"a number or a list; ends a completion, if there is no {GENERATION_FILE}"),
    Entry(PAD, Use.READ, "trailing tokens of this id are not part of a classifier's text"),
)
GENERATION = Format(
    f"Hugging Face: {GENERATION_FILE}",
    "What transformers' `generate` does by default. Without this file, the same keys of config.json. `gpt2x convert` "
    "keeps all of it, in both directions.",
    (
        Entry(BOS, Use.READ, "starts an empty prompt"),
        Entry(EOS, Use.READ, "a number or a list; ends a completion unless `generation.eos_ids` is given"),
        Entry(PAD, Use.IGNORED, "padding is not part of a text"),
        *entries(Use.IGNORED, NEUTRAL, "`generation.*` decides; a notice names it if it changes what `generate` gives"),
        *entries(Use.IGNORED, SAMPLING, "`generation.*` decides; unused without `do_sample`, which a notice names"),
        *entries(Use.IGNORED, UNUSED, "changes no token, or has a meaning only beside other keys"),
    ),
    f"kept and not used. `{BOS}` and `{EOS}` that are no whole numbers are rejected; ids outside of the vocabulary end "
    "nothing.",
)
DECODING = frozenset((BOS, EOS, PAD, *NEUTRAL, *SAMPLING, "max_length", "early_stopping", "length_penalty"))


@dataclass(frozen=True)
class SpecialIds:
    """Which tokens start, end and pad a model's texts, by its files; the tokenizer has its tokens for itself.

    Attributes:
        config: BOS, EOS and PAD of config.json, as they stand there; a key that it lacks is absent.
        generation: generation_config.json as it stands, or the same keys of config.json.
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any]

    @property
    def bos(self) -> int | None:
        """The token that starts a text without a prompt."""
        return self.generation.get(BOS)

    @property
    def eos(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return tuple(_listed(self.generation.get(EOS)))

    @property
    def pad(self) -> int | None:
        """The token that is not part of a classifier's text where it trails."""
        return self.config.get(PAD)

    def options(self) -> dict[str, Any]:
        """Return the options of `generation` with which transformers' `generate` gives other tokens than without."""
        return {
            key: value
            for key, value in self.generation.items()
            if key in NEUTRAL and not any(value == neutral for neutral in NEUTRAL[key])
        }

    def aligned(self, eos: int, bos: int | None, pad: int | None) -> SpecialIds:
        """Return these ids with those of the tokenizer of a training, as transformers' Trainer aligns them.

        Its EOS is added before the others, since it is the one that is learnt. Its BOS and PAD replace these; None
        leaves them (transformers' trainer_utils.py, `align_special_tokens`).
        """
        named = {key: token for key, token in ((BOS, bos), (EOS, eos), (PAD, pad)) if token is not None}
        config, generation = dict(self.config) | named, dict(self.generation) | named
        generation[EOS] = _with(eos, self.generation.get(EOS))
        if isinstance(self.config.get(EOS), list):
            config[EOS] = _with(eos, self.config[EOS])
        return SpecialIds(config, generation)

    def as_plain(self) -> dict[str, Any]:
        """Return the entry `special_ids` of a checkpoint's manifest."""
        return {"config": dict(self.config), "generation": dict(self.generation)}


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _with(first: int, ids: int | list[int] | None) -> int | list[int]:
    """Return `first` and the other ids, as a number if it is the only one."""
    others = [token for token in _listed(ids) if token != first]
    return [first, *others] if others or isinstance(ids, list) else first


def special_ids_from_files(directory: Path) -> SpecialIds:
    """Return the ids in a Hugging Face directory.

    Raises:
        UserError: a file is not a JSON object, or an id is not a whole number.
    """
    config = read_json(directory / "config.json")
    ids = {key: config[key] for key in (BOS, EOS, PAD) if key in config}
    _check(ids, directory / "config.json")
    file = directory / GENERATION_FILE
    if not file.is_file():
        return SpecialIds(ids, {key: config[key] for key in config if key in DECODING and config[key] is not None})
    generation = read_json(file)
    _check(generation, file)
    return SpecialIds(ids, generation)


def special_ids_from_plain(entry: Mapping[str, Any] | None) -> SpecialIds | None:
    """Return the ids in a checkpoint's manifest; None if it has no such entry."""
    return None if entry is None else SpecialIds(entry["config"], entry["generation"])


def special_ids_of_tokenizer(
    eos: int | None, bos: int | None = None, pad: int | None = None, *, is_classifier: bool
) -> SpecialIds:
    """Return the ids of a model that was trained with a tokenizer, and whose files name none.

    Texts start from BOS, from EOS if there is no BOS. A classifier's texts are padded by PAD, else by EOS, since
    transformers locates their last token by `pad_token_id`.
    """
    ids = {BOS: eos if bos is None else bos, EOS: eos, PAD: pad}
    padded = ids | {PAD: eos if pad is None else pad}
    return SpecialIds(padded if is_classifier else ids, padded)


def _check(content: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for an id that is not a whole number; a list is an EOS."""
    for key in (BOS, EOS, PAD):
        value = content.get(key)
        ids = value if key == EOS and isinstance(value, list) else [value]
        if value is not None and not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            kind = "a whole number or a list of them" if key == EOS else "a whole number"
            raise UserError(f"{file} has {key}={json.dumps(value)}; it must be {kind}, or null. Correct the file.")
