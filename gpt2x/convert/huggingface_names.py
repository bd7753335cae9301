"""Names of the tensors in Hugging Face's files: prefixes, tied matrices, and heads that are not loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt2x.checkpoint.tensors import LazyBox, LazyTensors, Spec, StoredTensor, pieces
from gpt2x.compatibility import Entry, Format, Use
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError

log = logging.getLogger(__name__)

PREFIX = "transformer."
HEAD, EMBEDDING, SCORE = "lm_head.weight", "wte.weight", "score.weight"
HEADS = ("lm_head.", "score.")  # tensors without the prefix
WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel and DeepSpeed, torch.compile, Lightning
CONSTANTS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|position_ids|.*_extra_state")
OTHER_HEADS = re.compile(r"(multiple_choice_head|v_head|value_head|qa_outputs|classifier)\..*")
UNMERGED = re.compile(r".*\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\b.*")

NAMES_FORMAT = Format(
    title="Hugging Face: names of tensors",
    what="The tensors of a file of weights. transformers defines them (modeling_gpt2.py, and its loading code).",
    entries=(
        Entry("transformer.*", Use.READ, "the prefix may be missing, for each tensor"),
        *(Entry(f"{wrapper}*", Use.READ, "a prefix of all tensors, which is removed") for wrapper in WRAPPERS),
        Entry(HEAD, Use.READ, "the only matrix of a tied model; a head of its own if it differs from wte.weight"),
        Entry(EMBEDDING, Use.READ, "the only matrix of a tied model"),
        Entry(SCORE, Use.READ, "the head of a classifier; a language model has it ignored by a notice"),
        Entry("h.*.attn.bias, h.*.attn.masked_bias", Use.IGNORED, "causal masks of old versions"),
        Entry("position_ids, *_extra_state", Use.IGNORED, "constants"),
        Entry(
            "multiple_choice_head.*, v_head.*, value_head.*, qa_outputs.*, classifier.*", Use.IGNORED,
            "heads of other tasks: a notice; the language model is loaded, as by AutoModelForCausalLM",
        ),
        Entry("entries that are no tensors", Use.IGNORED, "of a pickle: a notice"),
        Entry("state_dict, model_state_dict, model, module", Use.READ, "the table of tensors within a pickle"),
        Entry("*.lora_A, *.lora_B, *.base_layer", Use.REJECTED, "an adapter of PEFT that is not merged"),
        Entry("int8, uint8, bool, float8, complex, sparse", Use.REJECTED, "dtypes that are not weights"),
    ),
    others="rejected; one error names all of them.",
)  # fmt: skip


def lazy_tensors(stored: Mapping[str, StoredTensor]) -> LazyTensors:
    """Return stored tensors as `LazyTensors`: each is read on access."""
    specs = {name: Spec(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return LazyTensors(specs, lambda name, start, shape: stored[name].read(start, shape))


def logical_names(stored: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Drop prefixes and constants.

    Raises:
        UserError: a name occurs with and without the prefix, or the tensors are those of an adapter.
    """
    unmerged = [name for name in stored if UNMERGED.fullmatch(name)]
    if unmerged:
        raise UserError(
            f"load={path}: {unmerged[0]} belongs to an adapter that is not merged. Merge it with PEFT "
            "(merge_and_unload), or give load=BASE 'adapters=[ADAPTER]'."
        )
    logical: dict[str, StoredTensor] = {}
    wrapper = _wrapper(stored)
    for name, tensor in stored.items():
        short = name.removeprefix(wrapper).removeprefix(PREFIX)
        if CONSTANTS.fullmatch(short):
            continue
        if short in logical:
            raise UserError(f"load={path}: {short} occurs twice, with and without {PREFIX!r}. Remove one of them.")
        logical[short] = tensor
    return logical


def _wrapper(names: Iterable[str]) -> str:
    """Return the prefixes of wrapped modules that all names share."""
    names, wrapper = list(names), ""
    while names and (shared := next((one for one in WRAPPERS if all(n.startswith(wrapper + one) for n in names)), "")):
        wrapper += shared
    return wrapper


def without_other_heads(stored: dict[str, StoredTensor], model: ModelConfig, path: Path) -> dict[str, StoredTensor]:
    """Drop the heads of tasks other than the model's; a warning names those that held something learnt."""
    other = [name for name in stored if OTHER_HEADS.fullmatch(name) or (name == SCORE and not model.is_classifier)]
    if other:
        log.warning(
            "load=%s: %s belong to a head that gpt2x does not have, or config.json does not name. %s is loaded without "
            "it, as by transformers.",
            path, ", ".join(other), "The classifier" if model.is_classifier else "The language model",
        )  # fmt: skip
    dropped = {*other, *([HEAD] if model.is_classifier else [])}
    return {name: tensor for name, tensor in stored.items() if name not in dropped}


def tied(
    stored: dict[str, StoredTensor], model: ModelConfig, path: Path
) -> tuple[dict[str, StoredTensor], ModelConfig]:
    """Decide which matrices the embedding and the head are (transformers' `PreTrainedModel.tie_weights`).

    With ties, either name may stand for both. If both are stored and differ, they are not tied.

    Returns:
        The tensors that the model has, and the model as it is.

    Raises:
        UserError: config.json states no ties, but only one of the two matrices is stored.
    """
    if model.is_classifier:
        return stored, model
    here = [name for name in (HEAD, EMBEDDING) if name in stored]
    if not model.tie_embeddings:
        if len(here) == 1:
            absent = HEAD if here == [EMBEDDING] else EMBEDDING
            raise UserError(
                f"load={path}: config.json has tie_word_embeddings=false, but {absent} is missing. Write true to use "
                f"{here[0]} for both, or get the file that has {absent}."
            )
        return stored, model
    if here == [HEAD]:
        return {EMBEDDING if name == HEAD else name: tensor for name, tensor in stored.items()}, model
    if len(here) < 2:
        return stored, model
    both = lazy_tensors({name: stored[name] for name in here})
    if _equal(both.box(HEAD), both.box(EMBEDDING)):
        return {name: tensor for name, tensor in stored.items() if name != HEAD}, model
    log.warning(
        "load=%s: lm_head.weight differs from wte.weight and is used as the head, although config.json ties them (as "
        'in transformers). Write "tie_word_embeddings": false into config.json, or remove lm_head.weight from the file '
        "to use wte.weight.",
        path,
    )
    return stored, replace(model, tie_embeddings=False)


def _equal(first: LazyBox, second: LazyBox) -> bool:
    """Return whether two tensors have the same values; one piece of each is in memory at a time."""
    return first.shape == second.shape and all(
        np.array_equal(a, b) for a, b in zip(pieces(first), pieces(second), strict=True)
    )


def with_query_factors(weights: LazyTensors, factors: list[float]) -> LazyTensors:
    """Multiply the queries of each layer with a factor, by which the attention scores are multiplied.

    (q f) k = f (q k): so gpt2x computes what transformers computes with `scale_attn_by_inverse_layer_idx`. Half
    precision becomes float32, so that no bit of the product is lost but its last.
    """
    if set(factors) == {1.0}:
        return weights
    layers = {f"h.{layer}.attn.c_attn.{kind}": layer for layer in range(len(factors)) for kind in ("weight", "bias")}
    specs = {
        name: replace(spec, dtype=np.result_type(spec.dtype, np.float32)) if name in layers else spec
        for name, spec in weights.specs.items()
    }

    def read(name: str, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        values = weights.read(name, start, shape)
        if name not in layers:
            return values
        num_queries = weights.shapes[name][-1] // 3
        is_query = np.arange(start[-1], start[-1] + shape[-1]) < num_queries
        factor = np.where(is_query, factors[layers[name]], 1.0)
        return (values * factor).astype(specs[name].dtype)  # the product in float64

    return LazyTensors(specs, read)
