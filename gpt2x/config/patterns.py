"""Which modules `lora.targets` names, and tensors `trainer.frozen`: arithmetic on names (floor 0; no mindspore).

GPT-2 computes queries, keys and values in one linear, `attn.c_attn`. Adapters can stand beside all of it, as PEFT's
do, or beside the columns of one: `attn.q`, `attn.k`, `attn.v`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from fnmatch import fnmatchcase

from gpt2x.config.schema import LoraConfig
from gpt2x.errors import UserError, did_you_mean

SEGMENTS = ("attn.q", "attn.k", "attn.v")  # thirds of the columns of attn.c_attn, in this order
FUSED = "attn.c_attn"
MODULES = (*SEGMENTS, FUSED, "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # of each block


def adapted_modules(lora: LoraConfig, num_layers: int) -> list[str]:
    """The modules that get an adapter, such as `h.0.attn.q`, in the order of the model.

    A target is a module's name or its last parts (`q`, `attn.c_proj`, `h.0.mlp.c_fc`), with `*`, `?` and `[...]` as in
    file names; it stands for every module that it fits, as PEFT's `target_modules`.

    Raises:
        UserError: a target fits nothing, there is none, or two of them adapt the same columns.
    """
    names = [f"h.{layer}.{module}" for layer in range(num_layers) for module in MODULES]
    fitting = {target: {name for name in names if fits(name, target)} for target in lora.targets}
    unknown = [target for target, found in fitting.items() if not found]
    if unknown or not fitting:
        fault = f"{', '.join(map(repr, unknown))} fits no module" if unknown else "it is empty"
        raise UserError(
            f"lora.targets=[{','.join(lora.targets)}]: {fault}; modules are q, k, v, c_attn (q, k and v as one), "
            f"attn.c_proj, mlp.c_fc, mlp.c_proj (c_proj: both), of one layer as h.0.attn.q to "
            f"h.{num_layers - 1}.mlp.c_proj, and patterns of them as 'h.[0-3].mlp.*'"
        )
    found = set().union(*fitting.values())
    for layer in range(num_layers):
        twice = [f"h.{layer}.{module}" for module in SEGMENTS if f"h.{layer}.{module}" in found]
        if twice and f"h.{layer}.{FUSED}" in found:
            raise UserError(
                f"lora.targets=[{','.join(lora.targets)}]: h.{layer}.{FUSED} holds {', '.join(twice)}, which would be "
                "adapted twice; give either c_attn, or some of q, k, v"
            )
    return [name for name in names if name in found]


def trained_tensors(frozen: list[str], names: Collection[str]) -> list[str]:
    """The tensors that `trainer.frozen` leaves to be trained, in the order of the model.

    A pattern is a tensor's name or its last parts (`wte.weight`, `ln_1.*`, `h.[0-3].*`); it stands for every tensor
    that it fits, as `lora.targets` do for modules.

    Raises:
        UserError: a pattern fits nothing, or nothing is left.
    """
    for pattern in frozen:
        if not any(fits(name, pattern) for name in names):
            raise UserError(
                f"trainer.frozen=[{','.join(frozen)}]: {pattern!r} fits no tensor; {similar_patterns(pattern, names)}"
                "tensors are wte.weight, wpe.weight, those of layers as h.0.attn.c_attn.weight, ln_f.weight, and "
                "patterns of them as 'h.[0-3].*', 'ln_1.*' or 'bias'"
            )
    trained = [name for name in names if not any(fits(name, pattern) for pattern in frozen)]
    if not trained:
        raise UserError(f"trainer.frozen=[{','.join(frozen)}] leaves nothing to train; give fewer patterns")
    return trained


def similar_patterns(pattern: str, names: Collection[str]) -> str:
    """'did you mean X? ' or nothing: a module for its tensors, or another spelling."""
    if any(fits(name, f"{pattern}.*") for name in names):
        return f"did you mean '{pattern}.*'? "
    tails = {".".join(parts[at:]) for parts in (name.split(".") for name in names) for at in range(len(parts))}
    return did_you_mean(pattern, sorted(tails))


def fits(name: str, target: str) -> bool:
    """Whether a target stands for the module, or a pattern for the tensor, `name`."""
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def scaling(lora: LoraConfig) -> float:
    """What the product of the factors is multiplied with: alpha / r (Hu et al., arXiv:2106.09685, section 4.1), or
    alpha / sqrt(r), which keeps the size of the update whatever the rank (Kalajdzievski, arXiv:2312.03732).
    """
    assert lora.rank is not None
    assert lora.alpha is not None
    return lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilized else lora.rank)
