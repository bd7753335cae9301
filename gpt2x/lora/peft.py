"""Read PEFT's adapter directories (huggingface/peft 0.21, src/peft/tuners/lora and utils/save_and_load.py)."""

from __future__ import annotations

from pathlib import Path

from gpt2x.config.patterns import MODULES, SEGMENTS
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.lora.peft_config import PeftConfig, open_config
from gpt2x.lora.peft_tensors import PeftTensors, open_tensors


def open_peft(path: Path) -> Adapter:
    """Open the adapter of a PEFT directory, with a classifier's head if it has one.

    Raises:
        UserError: it is not a LoRA adapter of a GPT-2, uses an option that gpt2x lacks, or its files are incomplete.
    """
    config = open_config(path)
    tensors = open_tensors(path)
    check_targets(config, tensors)
    if config.needs_head and tensors.head is None:
        raise UserError(
            f"{config.where} is of a classifier (task_type={config.keys.get('task_type')!r}, modules_to_save="
            f"{config.keys.get('modules_to_save')}), but the weight file has no score.weight. Save the adapter again."
        )
    return Adapter(
        path=path,
        products={
            module: Product(a, b, config.scale(tensors.prefix + module, a.shape[1]))
            for module, (a, b) in tensors.factors.items()
        },
        dropout=config.dropout,
        rank_stabilized=config.rank_stabilized,
        base=config.keys.get("base_model_name_or_path"),
        head=tensors.head,
        labels=tensors.labels,
        is_of_stored=True,
    )


def check_targets(config: PeftConfig, tensors: PeftTensors) -> None:
    """Check that the tensors are those of the modules that the configuration names.

    PEFT leaves out tensors of other modules, and leaves named modules without tensors at their initial values.

    Raises:
        UserError: lists the modules.
    """
    layers = 1 + max(int(module.split(".")[1]) for module in tensors.factors)
    modules = [f"h.{layer}.{part}" for layer in range(layers) for part in MODULES[len(SEGMENTS) :]]
    named = {module for module in modules if config.targets(tensors.prefix + module)}
    further, absent = tensors.factors.keys() - named, named - tensors.factors.keys()
    if further or absent:
        keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        stated = ", ".join(f"{key}={config.keys[key]!r}" for key in keys if config.keys.get(key) is not None)
        fault = "has also" if further else "lacks"
        raise UserError(
            f"{config.where} has {stated or 'target_modules=None'}, but the weight file {fault} "
            f"{', '.join(sorted(further or absent)[:5])}, so they do not belong together. Copy or download both again."
        )
