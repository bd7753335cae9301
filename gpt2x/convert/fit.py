"""Checks that weights fit a model, and that a loaded model is the configured one. All faults are in one message."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, Shape, pieces
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.model.stats import ffn_size, tensor_shapes
from gpt2x.parallel.placement import Readable

LINEARS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
TRANSPOSED = (
    "The matrices are those of torch.nn.Linear, such as nanoGPT's: transpose attn.c_attn.weight, attn.c_proj.weight, "
    "mlp.c_fc.weight and mlp.c_proj.weight of each layer."
)


def check_weights(weights: Mapping[str, np.ndarray], model: ModelConfig, *, origin: str = "weights") -> None:
    """Compare names and shapes with the model's logical tensors. The values of `LazyTensors` are not read.

    Args:
        weights: arrays by name.
        model: its vocabulary size is known.
        origin: where the weights come from, for the message.

    Raises:
        UserError: lists every missing, unexpected and mis-shaped name, and those of dtypes that are not floats.
    """
    expected = tensor_shapes(model)
    specs = weights.specs if isinstance(weights, LazyTensors) else weights
    shapes = {name: tuple(spec.shape) for name, spec in specs.items()}
    misshaped = [name for name, shape in expected.items() if shapes.get(name, shape) != tuple(shape)]
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "mis-shaped": [f"{name} {shapes[name]} instead of {tuple(expected[name])}" for name in misshaped],
        "not floating-point": [f"{n} {specs[n].dtype}" for n in expected if n in specs and specs[n].dtype.kind != "f"],
    }
    if any(faults.values()):
        listed = "".join(f"\n  {fault}: {_first_of(names)}" for fault, names in faults.items() if names)
        is_transposed = [shapes[name] == expected[name][::-1] for name in misshaped if name.endswith(LINEARS)]
        hint = f"\n  {TRANSPOSED}" if is_transposed and all(is_transposed) else ""
        raise UserError(
            f"{origin}: the weights do not fit the model ({model.num_layers} layers, hidden size {model.hidden_size}, "
            f"{model.max_seq_len} positions, vocabulary {model.vocab_size}); nothing was loaded. Use the "
            f"configuration that belongs to these weights, or complete files.{listed}{hint}"
        )


def _first_of(names: list[str], most: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:200] for name in names[:most]) + more


def check_model_matches(
    configured: ModelConfig, loaded: ModelConfig, load: str, options: Mapping[str, ModelConfig]
) -> None:
    """Check that the loaded model is the configured one, in everything that changes what the weights compute.

    Args:
        configured: the run's model. `vocab_size=None` matches any.
        loaded: the model of the directory `load`.
        load: the directory, as the user typed it.
        options: the options of conf/model by name, for the fix.

    Raises:
        UserError: says what differs and what to type instead.
    """
    differences = _differences(configured, loaded)
    if not differences:
        return
    stated = ", ".join(f"model.{key}={_typed(ours)} (loaded: {_typed(theirs)})" for key, ours, theirs in differences)
    fitting = next((name for name, model in options.items() if not _differences(model, loaded)), None)
    overrides = " ".join(f"model.{key}={_typed(theirs)}" for key, _, theirs in differences)
    fix = f"model={fitting}" if fitting else overrides
    raise UserError(f"load={load} is a different model than model={configured.name}: {stated}. Give {fix}.")


def _differences(configured: ModelConfig, loaded: ModelConfig) -> list[tuple[str, object, object]]:
    """Return (key, configured value, loaded value) of each decisive key in which two models differ."""

    def decisive(model: ModelConfig) -> dict[str, object]:
        return {
            "num_layers": model.num_layers,
            "num_heads": model.num_heads,
            "hidden_size": model.hidden_size,
            "max_seq_len": model.max_seq_len,
            "vocab_size": loaded.vocab_size if model.vocab_size is None else model.vocab_size,
            "ffn_size": ffn_size(model),
            "activation": model.activation,
            "layer_norm_eps": model.layer_norm_eps,
            "tie_embeddings": model.tie_embeddings,
        }

    ours, theirs = decisive(configured), decisive(loaded)
    differences = [(key, ours[key], theirs[key]) for key in ours if not _equal(ours[key], theirs[key])]
    if (configured.ffn_size, loaded.ffn_size) == (None, None):  # follows from hidden_size, which is named
        differences = [entry for entry in differences if entry[0] != "ffn_size"]
    return differences


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs


def _typed(value: object) -> str:
    """Return a value as the user types it on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Finite:
    """Tensors that are rejected when a part of them is read that has a value which is NaN or infinite.

    Args:
        tensors: what is read.
        origin: where they come from; begins the message.
    """

    def __init__(self, tensors: Readable, origin: str) -> None:
        self.tensors, self.origin = tensors, origin

    def read(self, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """Return the values of a box.

        Raises:
            UserError: one is NaN or infinite, with which nothing that a model computes has a meaning.
        """
        values = self.tensors.read(name, start, shape)
        if not is_finite(values):
            raise UserError(
                f"{self.origin}: values of {name} are NaN or infinite, so that the model computes nothing. Use a "
                "checkpoint from before the loss became NaN."
            )
        return values


def is_finite(values: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite; both extremes would be. At the speed of memory, without a copy."""
    if values.size == 0 or values.dtype.kind != "f":
        return True
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def not_finite(tensors: LazyTensors) -> list[str]:
    """Return the names of tensors that have values which are NaN or infinite, reading a piece of each at a time."""
    return [name for name in tensors if not all(map(is_finite, pieces(tensors.box(name))))]
