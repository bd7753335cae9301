"""Where weights come from: a gpt2x checkpoint or a Hugging Face directory, told apart by content."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

from gpt2x.checkpoint.store import MANIFEST, Checkpoint, list_checkpoints, open_checkpoint
from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.config import ModelConfig
from gpt2x.convert.huggingface import WEIGHT_FILES, HuggingFaceSource, open_huggingface
from gpt2x.convert.names import check_weights
from gpt2x.errors import UserError
from gpt2x.model.stats import ffn_size

__all__ = ["GPT2XSource", "Source", "check_model_matches", "check_weights", "load_source"]


class Source(Protocol):
    """Weights that have been checked to fit `model`."""

    @property
    def kind(self) -> str:
        """gpt2x | huggingface."""

    @property
    def path(self) -> Path:
        """The directory."""

    @property
    def model(self) -> ModelConfig:
        """The shape of the model, as the directory states it."""

    @property
    def tokenizer_dir(self) -> Path | None:
        """A directory that holds the tokenizer's files, or None."""

    def weights(self) -> LazyTensors:
        """Logical tensors in their stored dtype, each read (read-only) when it is asked for, whole or a box."""

    def verify(self) -> None:
        """Hash the files, if the directory says what they should be; raises UserError naming a damaged one."""


class GPT2XSource:
    """A gpt2x checkpoint as a source."""

    kind = "gpt2x"

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.path = checkpoint.path
        self.model = checkpoint.model
        self.tokenizer_dir = checkpoint.tokenizer_dir

    def weights(self) -> LazyTensors:
        """Logical tensors."""
        return self.checkpoint.tensors("weights")

    def verify(self) -> None:
        """Hash every file (about 1 GB/s); raises UserError naming a damaged one."""
        self.checkpoint.verify()


def load_source(path: Path | str, *, verify: bool = True) -> GPT2XSource | HuggingFaceSource:
    """Opens the directory that `load=` names and checks all of it before anything is loaded.

    Of the directory of a run its newest complete checkpoint is taken: the source's `path`.

    A gpt2x checkpoint is hashed, and names and shapes are compared with the model's in both kinds.

    Args:
        path: What the user gave.
        verify: Whether to hash; not where another process just has.

    Raises:
        UserError: Naming path, fault and fix; all missing, unexpected and mis-shaped names in one.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"load={path} {fault}: give the directory of a run, of a gpt2x checkpoint or of a Hugging Face GPT-2"
        )
    if complete := list_checkpoints(path):
        path = complete[-1]
    if (path / MANIFEST).is_file():
        checkpoint = open_checkpoint(path)
        if "adapter" in checkpoint.groups():
            raise UserError(
                f"load={path} is an adapter and holds no model: give its base and the adapter, as "
                f"load={checkpoint.loop_state['base_path']} 'adapters=[{path}]'"
            )
        if verify:
            checkpoint.verify()
        source = GPT2XSource(checkpoint)
        check_weights(source.weights(), source.model, origin=f"load={path}")
        return source
    if (path / "config.json").is_file():
        return open_huggingface(path)
    if (path / "adapter_config.json").is_file():
        raise UserError(f"load={path} is a PEFT adapter and holds no model: give load=BASE 'adapters=[{path}]'")
    raise UserError(
        f"load={path} is neither a gpt2x checkpoint ({MANIFEST}) nor a Hugging Face GPT-2 "
        f"(config.json with {', '.join(WEIGHT_FILES)}): none of these files is there"
    )


def check_model_matches(wanted: ModelConfig, found: ModelConfig, load: str, known: dict[str, ModelConfig]) -> None:
    """Compares the configured model with the one that is loaded, in all that changes what the weights compute.

    Args:
        wanted: The run's configuration; a `vocab_size` of None fits any.
        found: The source's.
        load: What the user gave.
        known: The model options by name, for the fix.

    Raises:
        UserError: Says what differs and what to type instead.
    """
    differing = _differences(wanted, found)
    if not differing:
        return
    stated = ", ".join(f"model.{key}={_typed(ours)} (loaded: {_typed(theirs)})" for key, ours, theirs in differing)
    fitting = next((name for name, model in known.items() if not _differences(model, found)), None)
    overrides = " ".join(f"model.{key}={_typed(theirs)}" for key, _, theirs in differing)
    fix = f"model={fitting}" if fitting else overrides
    raise UserError(f"load={load} holds another model than model={wanted.name}: {stated}; give {fix}")


def _differences(wanted: ModelConfig, found: ModelConfig) -> list[tuple[str, object, object]]:
    def decisive(model: ModelConfig) -> dict[str, object]:
        return {
            "num_layers": model.num_layers,
            "num_heads": model.num_heads,
            "hidden_size": model.hidden_size,
            "max_seq_len": model.max_seq_len,
            "vocab_size": found.vocab_size if model.vocab_size is None else model.vocab_size,
            "ffn_size": ffn_size(model),
            "activation": model.activation,
            "layer_norm_eps": model.layer_norm_eps,
            "tie_embeddings": model.tie_embeddings,
        }

    ours, theirs = decisive(wanted), decisive(found)
    differing = [(key, ours[key], theirs[key]) for key in ours if not _equal(ours[key], theirs[key])]
    if (wanted.ffn_size, found.ffn_size) == (None, None):  # follows from hidden_size, which is named
        differing = [entry for entry in differing if entry[0] != "ffn_size"]
    return differing


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs


def _typed(value: object) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
