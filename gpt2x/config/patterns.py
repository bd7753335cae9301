"""The modules that `lora.targets` names and the tensors that `trainer.frozen` names (imports no mindspore).

GPT-2 computes queries, keys and values in one linear, `attn.c_attn`. Adapters can stand beside all of it, as in PEFT,
or beside the columns of queries, keys or values: `attn.q`, `attn.k`, `attn.v`.
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
    """Return the modules that get an adapter, such as `h.0.attn.q`, in the order of the model.

    A target is a module's name or its last parts (`q`, `attn.c_proj`, `h.0.mlp.c_fc`), with `*`, `?` and `[...]` as in
    file names. It names every module that it matches, as `target_modules` in PEFT.

    Raises:
        UserError: a target matches nothing, there is no target, or two of them adapt the same columns.
    """
    names = [f"h.{layer}.{module}" for layer in range(num_layers) for module in MODULES]
    matching = {target: {name for name in names if fits(name, target)} for target in lora.targets}
    unknown = [target for target, matches in matching.items() if not matches]
    if unknown or not matching:
        fault = f"{', '.join(map(repr, unknown))} matches no module" if unknown else "it is empty"
        raise UserError(
            f"lora.targets=[{','.join(lora.targets)}]: {fault}; modules are q, k, v, c_attn (q, k and v as one), "
            f"attn.c_proj, mlp.c_fc, mlp.c_proj (c_proj: both), of one layer as h.0.attn.q to "
            f"h.{num_layers - 1}.mlp.c_proj, and patterns of them as 'h.[0-3].mlp.*'."
        )
    adapted = set().union(*matching.values())
    for layer in range(num_layers):
        twice = [f"h.{layer}.{module}" for module in SEGMENTS if f"h.{layer}.{module}" in adapted]
        if twice and f"h.{layer}.{FUSED}" in adapted:
            raise UserError(
                f"lora.targets=[{','.join(lora.targets)}]: h.{layer}.{FUSED} contains {', '.join(twice)}, which would "
                "be adapted twice; give either c_attn, or some of q, k, v."
            )
    return [name for name in names if name in adapted]


def trained_tensors(frozen: list[str], names: Collection[str]) -> list[str]:
    """Return the tensors that `trainer.frozen` leaves to be trained, in the order of the model.

    A pattern is a tensor's name or its last parts (`wte.weight`, `ln_1.*`, `h.[0-3].*`); it names every tensor that
    it matches, as `lora.targets` do for modules.

    Raises:
        UserError: a pattern matches nothing, or nothing is left.
    """
    for pattern in frozen:
        if not any(fits(name, pattern) for name in names):
            raise UserError(
                f"trainer.frozen=[{','.join(frozen)}]: {pattern!r} matches no tensor; "
                f"{similar_patterns(pattern, names)}tensors are wte.weight, wpe.weight, those of layers as "
                "h.0.attn.c_attn.weight, ln_f.weight, and patterns of them as 'h.[0-3].*', 'ln_1.*' or 'bias'."
            )
    trained = [name for name in names if not any(fits(name, pattern) for pattern in frozen)]
    if not trained:
        raise UserError(f"trainer.frozen=[{','.join(frozen)}] leaves nothing to train; give fewer patterns.")
    return trained


def similar_patterns(pattern: str, names: Collection[str]) -> str:
    """Return a did-you-mean: the tensors of a module, or the nearest spelling; '' if nothing is similar."""
    if any(fits(name, f"{pattern}.*") for name in names):
        return f"did you mean '{pattern}.*'? "
    tails = {".".join(parts[at:]) for parts in (name.split(".") for name in names) for at in range(len(parts))}
    return did_you_mean(pattern, sorted(tails))


def fits(name: str, target: str) -> bool:
    """Return whether a target or a pattern names the module or tensor `name`."""
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def scaling(lora: LoraConfig) -> float:
    """Return the factor of the product B A.

    It is alpha / r (Hu et al., arXiv:2106.09685, section 4.1), or alpha / sqrt(r), with which the size of the update
    does not depend on the rank (Kalajdzievski, arXiv:2312.03732).
    """
    assert lora.rank is not None
    assert lora.alpha is not None
    return lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilized else lora.rank)
