"""Open adapters: from a run of `lora=`, from one of its checkpoints, from a PEFT directory or MindFormers' file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2x.checkpoint.manifest import MANIFEST
from gpt2x.checkpoint.store import Checkpoint, list_checkpoints, open_checkpoint
from gpt2x.config import LoraConfig
from gpt2x.config.keys import check_plain
from gpt2x.config.patterns import adapted_modules, scaling
from gpt2x.convert.mindformers_files import CKPT, SAFETENSORS, is_mindformers
from gpt2x.convert.special_ids import special_ids_from_plain
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.lora.mindformers import open_mindformers_adapter
from gpt2x.lora.peft import open_peft
from gpt2x.lora.peft_config import CONFIG_FILE
from gpt2x.lora.peft_tensors import WEIGHT_FILES
from gpt2x.lora.shapes import GROUP, A, B, trained_shapes
from gpt2x.model.stats import HEAD
from gpt2x.runtime.hub import Wish, check_blobs, fetch, names_repository

FIX = "Give the directory of a run with lora=, of its checkpoint, or of a PEFT adapter."
BASE_HASH = "base_fingerprint"  # in a loop state
HUB_FILES = Wish(required=((CONFIG_FILE,), tuple(WEIGHT_FILES)))


def open_adapter(directory: Path | str) -> Adapter:
    """Open the adapter in a directory: a run of `lora=` (its newest checkpoint), one of its checkpoints, or PEFT's.

    If there is no such directory, its name can be that of a repository of the Hugging Face hub.

    Raises:
        UserError: there is no adapter, or it is damaged.
    """
    is_hub = names_repository(str(directory)) and not str(directory).endswith((CKPT, SAFETENSORS))
    path = fetch("adapters", str(directory), HUB_FILES, FIX) if is_hub else Path(directory).expanduser()
    if complete := list_checkpoints(path):
        path = complete[-1]
    if (path / MANIFEST).is_file():
        checkpoint = open_checkpoint(path)
        if GROUP not in checkpoint.groups():
            raise UserError(
                f"adapters={directory}: {path} is a whole model, not an adapter. Give it as load={directory}."
            )
        checkpoint.verify()
        return adapter_of_checkpoint(checkpoint)
    if (path / CONFIG_FILE).is_file():
        check_blobs(path, HUB_FILES.names)
        return open_peft(path)
    if is_mindformers(path):
        return open_mindformers_adapter(path)
    if further := sorted(path.glob(f"*/{CONFIG_FILE}")):  # PEFT writes adapters that are not called default there
        choices = ", ".join(str(each.parent) for each in further)
        raise UserError(f"adapters={directory} holds several adapters. Give one of: {choices}.")
    fault = f"holds neither a gpt2x checkpoint ({MANIFEST}) nor a PEFT adapter ({CONFIG_FILE})"
    raise UserError(f"adapters={directory} {fault if path.is_dir() else 'is not a directory'}. {FIX}")


def adapter_of_checkpoint(checkpoint: Checkpoint) -> Adapter:
    """Return the adapter in a checkpoint of a run with `lora=`.

    Raises:
        UserError: the tensors are not those of the stored configuration.
    """
    where, state = f"checkpoint {checkpoint.path}", checkpoint.loop_state
    stored = checkpoint.run_config.get("lora")
    if not isinstance(stored, dict) or not all(isinstance(state.get(key), str) for key in ("base_path", BASE_HASH)):
        raise UserError(f"{where} has the tensors of an adapter, but not its lora or its base. Use a different one.")
    lora, model = check_plain(stored, LoraConfig, "lora.", where), checkpoint.model
    if lora.rank is None or lora.alpha is None:
        raise UserError(f"{where} has the tensors of an adapter, but no lora.rank or lora.alpha. Use a different one.")
    tensors = checkpoint.tensors(GROUP)
    if tensors.shapes != trained_shapes(lora, model):
        raise UserError(
            f"checkpoint {checkpoint.path}: its tensors are not those of lora.rank={lora.rank} and "
            f"lora.targets=[{','.join(lora.targets)}]. Use a different checkpoint."
        )
    return Adapter(
        path=checkpoint.path,
        products={
            module: Product(tensors[f"{module}.{A}"], tensors[f"{module}.{B}"], scaling(lora))
            for module in adapted_modules(lora, model.num_layers)
        },
        dropout=lora.dropout,
        rank_stabilized=lora.rank_stabilized,
        base=state["base_path"],
        fingerprint=state[BASE_HASH],
        num_layers=model.num_layers,
        head=tensors[HEAD] if model.labels else None,
        labels=model.labels,
        tokenizer_dir=checkpoint.tokenizer_dir,
        special_ids=special_ids_from_plain(checkpoint.special_ids),
    )


def adapters_by_name(directories: Sequence[str]) -> dict[str, Adapter]:
    """Open several adapters, by the name of their run or directory.

    Raises:
        UserError: one cannot be opened, or two have the same name.
    """
    adapters: dict[str, Adapter] = {}
    for directory in directories:
        adapter = open_adapter(directory)
        if adapter.name in adapters:
            raise UserError(
                f"adapters=[{','.join(directories)}]: two are called {adapter.name}. Rename one of the directories."
            )
        adapters[adapter.name] = adapter
    return adapters
