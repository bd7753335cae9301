"""`load_source` opens the directory that `load=` names: its content tells which format it has."""

from __future__ import annotations

from pathlib import Path

from gpt2x.checkpoint.manifest import MANIFEST
from gpt2x.checkpoint.store import Checkpoint, list_checkpoints, open_checkpoint
from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.convert.fit import check_weights
from gpt2x.convert.huggingface import HuggingFaceWeights, open_huggingface
from gpt2x.convert.huggingface_files import WEIGHT_FILES, other_format
from gpt2x.convert.mindformers import MindFormersWeights, open_mindformers
from gpt2x.convert.mindformers_files import CKPT, SAFETENSORS, is_mindformers
from gpt2x.convert.special_ids import special_ids_from_plain
from gpt2x.convert.tokenizer_files import TOKENIZER_FILES
from gpt2x.errors import UserError
from gpt2x.runtime.hub import Wish, fetch, names_repository

FIX = (
    "Give the directory of a run, of a gpt2x checkpoint or of a Hugging Face GPT-2, a .ckpt file of MindFormers, or a "
    "name such as gpt2."
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # which are rejected by what they are
HUB_FILES = Wish(
    required=(("config.json", "adapter_config.json"), (*WEIGHT_FILES, *ADAPTER_FILES)),
    optional=("generation_config.json", *TOKENIZER_FILES),
)


class CheckpointWeights:
    """The weights of a gpt2x checkpoint, as a `WeightsSource`."""

    kind = "gpt2x"
    query_factors = ()

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.path = checkpoint.path
        self.model = checkpoint.model
        self.tokenizer_dir = checkpoint.tokenizer_dir
        self.special_ids = special_ids_from_plain(checkpoint.special_ids)

    def weights(self) -> LazyTensors:
        """Return the logical tensors."""
        return self.checkpoint.tensors("weights")

    def verify(self) -> None:
        """Hash every file (about 1 GB/s).

        Raises:
            UserError: a file is damaged.
        """
        self.checkpoint.verify()


def local_path(load: Path | str) -> Path:
    """Return the path that `load=` names; of a repository of the Hugging Face hub, its folder in the cache.

    Raises:
        UserError: it is no path, and the hub has no such repository or cannot be reached.
    """
    if names_repository(str(load)) and not str(load).endswith((CKPT, SAFETENSORS)):
        return fetch("load", str(load), HUB_FILES, FIX)
    return Path(load).expanduser()


def load_source(
    path: Path | str, *, verify: bool = True
) -> CheckpointWeights | HuggingFaceWeights | MindFormersWeights:
    """Open the directory that `load=` names, and check all of it before anything is loaded.

    Files are hashed that have a hash: those of a gpt2x checkpoint and of the hub's cache, and MindFormers' with sums.
    In all formats, names and shapes are compared with the model's.

    Args:
        path: a run, a gpt2x checkpoint, a Hugging Face directory, a `.ckpt` file of MindFormers or its folder, or the
            name of a repository of the Hugging Face hub. For a run, the newest complete checkpoint is opened, and the
            source's `path` is that checkpoint's.
        verify: whether to hash. Pass False if a different process has just done it.

    Raises:
        UserError: the directory is none of these, is damaged, or has missing, unexpected or mis-shaped tensors.
    """
    path = local_path(path)
    if path.is_file() and is_mindformers(path):
        return opened_mindformers(path, verify=verify)
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise UserError(f"load={path} {fault}. {FIX}")
    if complete := list_checkpoints(path):
        path = complete[-1]
    if (path / MANIFEST).is_file():
        checkpoint = open_checkpoint(path)
        if "adapter" in checkpoint.groups():
            raise UserError(
                f"load={path} is an adapter and holds no model. Give its base and the adapter: "
                f"load={checkpoint.loop_state.get('base_path')} 'adapters=[{path}]'."
            )
        if verify:
            checkpoint.verify()
        source = CheckpointWeights(checkpoint)
        check_weights(source.weights(), source.model, origin=f"load={path}")
        return source
    is_huggingface = (path / "config.json").is_file() and any((path / name).is_file() for name in WEIGHT_FILES)
    if not is_huggingface and is_mindformers(path):
        return opened_mindformers(path, verify=verify)
    if (path / "config.json").is_file():
        weights = open_huggingface(path)
        if verify:
            weights.verify()
        return weights
    if (path / "adapter_config.json").is_file():
        raise UserError(f"load={path} is a PEFT adapter and holds no model. Give load=BASE 'adapters=[{path}]'.")
    raise UserError(
        f"load={path} is neither a gpt2x checkpoint ({MANIFEST}) nor a Hugging Face GPT-2 (config.json with "
        f"{', '.join(WEIGHT_FILES)}) nor MindFormers' (*{CKPT}): none of these files exists. "
        + (other_format(path) or "Give a directory that has them.")
    )


def opened_mindformers(path: Path, *, verify: bool) -> MindFormersWeights:
    """Open a file or folder of MindFormers; `verify`: compare the sums that its files state."""
    source = open_mindformers(path)
    if verify:
        source.verify()
    return source
