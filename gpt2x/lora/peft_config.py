"""PEFT's adapter_config.json: what its keys mean for a module, and which of them gpt2x cannot compute.

Sources: peft 0.21, src/peft/tuners/lora (config.py, layer.py), tuners/tuners_utils.py and utils/other.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.errors import UserError
from gpt2x.runtime.expressions import expression_fault
from gpt2x.runtime.json_text import read_json

log = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
FIX = "Merge it with PEFT first (merge_and_unload), and give the result as load=."
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = ["c_attn"]  # of a GPT-2, if target_modules is null

# init_lora_weights: beside true, false and null, with these PEFT uses the base as it is
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# with these it takes the initial product out of the base again whenever it loads the adapter; pissa_niter_N as pissa
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
# task_type -> whether the file must hold a classifier's head
TASKS = {None: False, "CAUSAL_LM": False, "FEATURE_EXTRACTION": False, "SEQ_CLS": True}
SAVED_MODULES = ("score", "classifier")  # in modules_to_save; GPT-2 has no `classifier`

# key -> the values with which it is off, and what it does otherwise
CHANGING: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_dora": ((False, None), "scales columns by trained magnitudes (DoRA)"),
    "bias": (("none", None), "trains the biases of the base"),
    "lora_bias": ((False, None), "adds a trained bias to B"),
    "trainable_token_indices": ((None, {}), "trains rows of the embedding"),
    "target_parameters": ((None, []), "adapts parameters instead of modules"),
    "layer_replication": ((None, []), "repeats layers of the base"),
    "alora_invocation_tokens": ((None, []), "adapts only tokens after an invocation (aLoRA)"),
    "use_qalora": ((False, None), "pools inputs for a quantized base (QA-LoRA)"),
    "arrow_config": ((None,), "routes between adapters (Arrow)"),
    "use_bdlora": ((None,), "has block-diagonal factors (BD-LoRA)"),
    "kasa_config": ((None,), "truncates the base's weights (KaSA)"),
    "monteclora_config": ((None,), "adds sampled perturbations (MonteCLoRA)"),
    "megatron_config": ((None, {}), "adapts Megatron's parallel linears"),
}

FORMAT = Format(
    title="PEFT: adapter_config.json",
    what="The configuration of a LoRA adapter, as `save_pretrained` of huggingface/peft 0.21 writes it.",
    entries=(
        Entry("peft_type", Use.READ, "`LORA`; every other type is rejected"),
        Entry("task_type", Use.READ, f"null, {', '.join(f'`{task}`' for task in TASKS if task)}; others are rejected"),
        Entry("base_model_name_or_path", Use.READ, "named in messages; `load=` says which base is used"),
        Entry("r", Use.READ, "must be the rank of the tensors"),
        Entry("lora_alpha", Use.READ, "the scale is alpha / r, or alpha / sqrt(r) with `use_rslora`"),
        Entry("use_rslora", Use.READ),
        Entry("lora_dropout", Use.READ, "the rate with which training continues"),
        Entry("rank_pattern", Use.READ, "matched against the names of the model that was adapted, as PEFT does"),
        Entry("alpha_pattern", Use.READ, "matched against the names of the model that was adapted, as PEFT does"),
        Entry(
            "target_modules",
            Use.READ,
            "a list, an expression, `all-linear` or null; the tensors are those of its modules",
        ),
        Entry("exclude_modules", Use.READ, "with target_modules"),
        Entry("layers_to_transform", Use.READ, "with target_modules"),
        Entry("layers_pattern", Use.READ, "with layers_to_transform"),
        Entry("modules_to_save", Use.READ, "a classifier's `score`; every other module is rejected"),
        Entry(
            "init_lora_weights",
            Use.READ,
            "true, false, null, `gaussian`, `eva`, `orthogonal`, `mica` and `lora_ga` do not change how an adapter is "
            "used; `pissa`, `pissa_niter_N`, `olora`, `corda` and `loftq` change the base and are rejected, and so is "
            "every other value",
        ),
        *(Entry(key, Use.REJECTED, f"if it is on: it {does}") for key, (_, does) in CHANGING.items()),
        *entries(
            Use.IGNORED, ("corda_config", "eva_config", "loftq_config", "lora_ga_config"), "for initial values only"
        ),
        Entry("velora_config", Use.IGNORED, "changes only the backward pass"),
        Entry("fan_in_fan_out", Use.IGNORED, "true for GPT-2, whatever it says, as in PEFT"),
        Entry("ensure_weight_tying", Use.IGNORED, "about embeddings, whose adapters are rejected"),
        Entry("qalora_group_size", Use.IGNORED, "of use_qalora"),
        Entry("megatron_core", Use.IGNORED, "of megatron_config"),
        *entries(Use.IGNORED, ("auto_mapping", "inference_mode", "peft_version", "revision", "runtime_config")),
    ),
    others="a warning names the key, which is ignored, as PEFT does.",
)


@dataclass(frozen=True)
class PeftConfig:
    """What adapter_config.json says about an adapter; `open_config` has checked it.

    Attributes:
        where: directory and file, for messages.
        keys: the content of the file.
    """

    where: str
    keys: dict[str, Any]

    @property
    def dropout(self) -> float:
        """The rate with which the adapter was trained."""
        return float(self.keys.get("lora_dropout") or 0.0)

    @property
    def rank_stabilized(self) -> bool:
        """Whether a scale is alpha / sqrt(r) instead of alpha / r."""
        return bool(self.keys.get("use_rslora"))

    @property
    def needs_head(self) -> bool:
        """Whether PEFT requires the tensor of a classifier's head."""
        task = self.keys.get("task_type")
        return TASKS[task] or (task is None and "score" in (self.keys.get("modules_to_save") or []))

    def scale(self, name: str, rank: int) -> float:
        """Return the scale of a module's product.

        Args:
            name: the module in the model that was adapted, such as `transformer.h.0.attn.c_attn`.
            rank: of the module's tensors.

        Raises:
            UserError: alpha is not a number, or the configuration's rank is not that of the tensors.
        """
        alpha = by_pattern(self.keys.get("alpha_pattern"), name, self.keys.get("lora_alpha", 8))
        stated = by_pattern(self.keys.get("rank_pattern"), name, self.keys.get("r", 8))
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise UserError(f"{self.where} has lora_alpha={alpha!r} for {name}; it must be a number.")
        if type(stated) is not int or stated != rank:
            raise UserError(
                f"{self.where} has r={stated!r}, but {name} has rank {rank}, so its files do not belong together. "
                "Copy or download the adapter again."
            )
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def targets(self, name: str) -> bool:
        """Return whether PEFT adapts the linear with this name (tuners_utils.py, check_target_module_exists)."""
        modules = self.keys.get("target_modules")
        if is_listed(self.keys.get("exclude_modules") or [], name):
            return False
        if isinstance(modules, str) and modules.lower() == ALL_LINEAR:
            return True
        if isinstance(modules, list) and name in modules:  # whole names are not asked for their layer
            return True
        if not is_listed(DEFAULT_TARGETS if modules is None else modules, name):
            return False
        layers = self.keys.get("layers_to_transform")
        return layers in (None, []) or self._layer(name) in (layers if isinstance(layers, list) else [layers])

    def _layer(self, name: str) -> int | None:
        """Return the number of a module's layer, by `layers_pattern`; None if the name does not match."""
        before = [rf"(?:^|.*?\.){pattern}" for pattern in listed(self.keys.get("layers_pattern"))]
        for expression in before or [r".*?\.[^.]*"]:
            if match := re.match(rf"{expression}\.(?P<idx>\d+)\.", name):
                return int(match["idx"])
        return None


def open_config(path: Path) -> PeftConfig:
    """Read the configuration of the adapter in a PEFT directory.

    Raises:
        UserError: it is not a LoRA adapter, uses an option that gpt2x lacks, or has a value that PEFT cannot use.
    """
    keys = read_json(path / CONFIG_FILE)
    where = f"adapters={path}: {CONFIG_FILE}"
    if keys.get("peft_type") != "LORA":
        raise UserError(f"{where} has peft_type={keys.get('peft_type')!r}, but gpt2x reads only 'LORA'. {FIX}")
    for key, (off, effect) in CHANGING.items():
        if keys.get(key) not in off:
            raise UserError(f"{where} has {key}={keys[key]!r}, which {effect}; gpt2x does not support this. {FIX}")
    dropout = keys.get("lora_dropout") or 0.0
    is_rate = type(dropout) in (int, float) and 0 <= dropout < 1
    require_type(is_rate, keys, "lora_dropout", "a number from 0 to below 1", where)
    check_init(keys.get("init_lora_weights", True), where)
    check_task(keys, where)
    check_modules(keys, where)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = keys.get(key) or {}
        require_type(isinstance(patterns, dict), keys, key, "an object of names and numbers", where)
        check_expressions([rf"(.*\.)?({pattern})$" for pattern in patterns], key, where)
    unknown = sorted(keys.keys() - {entry.name for entry in FORMAT.entries})
    if unknown:
        log.warning("%s has keys that PEFT 0.21 does not know; they are ignored: %s.", where, ", ".join(unknown))
    return PeftConfig(where, keys)


def check_init(value: Any, where: str) -> None:
    """Raise UserError for an initial value with which the base is not the one that was trained, or an unknown one."""
    if isinstance(value, bool) or value is None:
        return
    name = value.lower() if isinstance(value, str) else ""
    if name.startswith(BASE_CHANGING_INITS):
        raise UserError(
            f"{where} has init_lora_weights={value!r}, with which PEFT takes a part out of the base's weights when it "
            "loads the adapter; gpt2x does not. Save the adapter from PEFT with "
            "path_initial_model_for_weight_conversion=, or merge it there (merge_and_unload) and give the result as "
            "load=."
        )
    if name not in PLAIN_INITS:
        raise UserError(
            f"{where} has init_lora_weights={value!r}, which PEFT 0.21 does not have; it has true, false, "
            f"{', '.join(PLAIN_INITS + BASE_CHANGING_INITS)}. {FIX}"
        )


def check_task(keys: Mapping[str, Any], where: str) -> None:
    """Raise UserError if the adapter is of a task, or trains modules, that gpt2x has no model for."""
    task = keys.get("task_type")
    if not isinstance(task, str | None) or task not in TASKS:
        raise UserError(
            f"{where} has task_type={task!r}, but gpt2x has language models and classifiers of texts: null, "
            f"{', '.join(filter(None, TASKS))}. Give an adapter of one of them."
        )
    saved = keys.get("modules_to_save") or []
    require_type(is_texts(saved), keys, "modules_to_save", "a list of names or null", where)
    others = [name for name in saved if name not in SAVED_MODULES]
    if others:
        raise UserError(
            f"{where} has modules_to_save={saved}: {', '.join(others)} was trained as a whole, and gpt2x reads only a "
            f"classifier's score. {FIX}"
        )


def check_modules(keys: Mapping[str, Any], where: str) -> None:
    """Raise UserError if the keys that choose modules have values with which PEFT raises an error."""
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = keys.get(key)
        require_type(isinstance(value, str | None) or is_texts(value), keys, key, "a text, a list or null", where)
        if isinstance(value, str) and value.lower() != ALL_LINEAR:
            check_expressions([value], key, where)
    check_expressions([rf"(?:^|.*?\.){each}\.(?P<idx>\d+)\." for each in listed(keys.get("layers_pattern"))],
                      "layers_pattern", where)  # fmt: skip
    layers = keys.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    is_numbers = all(type(number) is int for number in numbers)
    require_type(is_numbers, keys, "layers_to_transform", "a number, a list of numbers or null", where)
    if layers is not None and isinstance(keys.get("target_modules"), str):
        raise UserError(
            f"{where} has layers_to_transform={layers} and an expression as target_modules, which PEFT rejects. "
            "Copy or download the adapter again."
        )
    if keys.get("layers_pattern") and layers is None:
        raise UserError(
            f"{where} has layers_pattern={keys['layers_pattern']!r} without layers_to_transform, which PEFT rejects. "
            "Copy or download the adapter again."
        )


def check_expressions(expressions: Iterable[str], key: str, where: str) -> None:
    """Raise UserError if one is not a regular expression of Python, or may take for ever."""
    for expression in expressions:
        if fault := expression_fault(expression):
            raise UserError(f"{where}: {key} has the expression {expression[:60]!r}, which {fault}. Write it without.")
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(
                f"{where}: {key} has the expression {expression!r}, which Python cannot compile ({error}). "
                "Copy or download the adapter again."
            ) from error


def require_type(holds: bool, keys: Mapping[str, Any], key: str, expected: str, where: str) -> None:
    """Raise UserError unless the value of a key has the type that PEFT reads."""
    if not holds:
        raise UserError(f"{where} has {key}={keys[key]!r}; it must be {expected}. Copy or download the adapter again.")


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def listed(value: str | list[str] | None) -> list[str]:
    """Return the list that a text, a list or null stands for."""
    return [value] if isinstance(value, str) and value else list(value or [])


def is_listed(names: str | list[str], module: str) -> bool:
    """Return whether an expression matches a module's name, or a list has its name or its last parts."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name (peft/utils/other.py, get_pattern_key)."""
    matches = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matches, default)
