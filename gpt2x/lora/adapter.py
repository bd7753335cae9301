"""A trained adapter, read from a checkpoint of a run with lora= or from a PEFT directory (no mindspore)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt2x.checkpoint.store import MANIFEST, Checkpoint, list_checkpoints, open_checkpoint
from gpt2x.checkpoint.tensors import LazyTensors, pieces
from gpt2x.config import LoraConfig, ModelConfig
from gpt2x.config.patterns import adapted_modules, scaling
from gpt2x.errors import UserError
from gpt2x.lora.shapes import GROUP, A, B, module_shapes, trained_shapes
from gpt2x.model.stats import HEAD


@dataclass(frozen=True)
class Product:
    """What a module's adapter adds to its weight: scale * a @ b, with a (in, r) and b (r, out), fp32."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[1]

    def box(self, rows: slice, columns: slice) -> np.ndarray:
        """Its values in a box of the weight."""
        return self.a[rows] @ self.b[:, columns] * np.float32(self.scale)


@dataclass(frozen=True)
class Adapter:
    """Adapters of any modules of a model.

    Attributes:
        path: the directory.
        products: by module, such as `h.0.attn.q`.
        dropout: that it was trained with.
        rank_stabilized: whether scales count alpha over sqrt(r).
        base: where the weights are that it was trained on, as far as it says.
        fingerprint: of those weights; None where it does not say.
        num_layers: of the model; None where it does not say.
        head: a classifier's `score.weight` (K, D), which was trained with the adapters; None: of a language model.
        labels: its classes' names; None where it does not say, or has no head.
    """

    path: Path
    products: dict[str, Product]
    dropout: float = 0.0
    rank_stabilized: bool = False
    base: str | None = None
    fingerprint: str | None = None
    num_layers: int | None = None
    head: np.ndarray | None = None
    labels: list[str] | None = None

    @property
    def name(self) -> str:
        """That of its run, or of its directory."""
        path = self.path.absolute()
        return path.parents[1].name if path.parent.name == "checkpoints" else path.name

    def factors(self) -> dict[str, np.ndarray]:
        """The factors as logical tensors."""
        named = {f"{module}.{A}": product.a for module, product in self.products.items()}
        return named | {f"{module}.{B}": product.b for module, product in self.products.items()}

    def adapted(self, model: ModelConfig) -> ModelConfig:
        """What a model becomes with it: a classifier, where it has a head; classes without names as transformers'."""
        if self.head is None:
            return model
        return replace(model, labels=self.labels or [f"LABEL_{i}" for i in range(len(self.head))])


def is_adapter(path: Path) -> bool:
    """Whether a directory is a PEFT adapter, or a run or a checkpoint of one."""
    if complete := list_checkpoints(path):
        path = complete[-1]
    if (path / MANIFEST).is_file():
        return GROUP in open_checkpoint(path).groups()
    return (path / "adapter_config.json").is_file()


def open_adapter(directory: Path | str) -> Adapter:
    """The adapter in a directory: a run of lora= (its newest checkpoint), a checkpoint of one, or PEFT's.

    Raises:
        UserError: naming the directory, what is wrong and what to give.
    """
    from gpt2x.lora.peft import CONFIG_FILE, open_peft

    path = Path(directory).expanduser()
    if complete := list_checkpoints(path):
        path = complete[-1]
    if (path / MANIFEST).is_file():
        checkpoint = open_checkpoint(path)
        if GROUP not in checkpoint.groups():
            raise UserError(f"adapters={directory}: {path} is a whole model, no adapter; give it as load={directory}")
        checkpoint.verify()
        return of_checkpoint(checkpoint)
    if (path / CONFIG_FILE).is_file():
        return open_peft(path)
    fault = f"holds neither a gpt2x checkpoint ({MANIFEST}) nor a PEFT adapter ({CONFIG_FILE})"
    raise UserError(
        f"adapters={directory} {fault if path.is_dir() else 'is no directory'}: give the directory of a run with "
        "lora=, of its checkpoint, or of a PEFT adapter"
    )


def lora_config(run_config: Mapping[str, object]) -> LoraConfig:
    """The adapters of a stored configuration."""
    values = run_config["lora"]
    assert isinstance(values, dict)
    return LoraConfig(**values)


def of_checkpoint(checkpoint: Checkpoint) -> Adapter:
    """The adapter of a checkpoint.

    Raises:
        UserError: its tensors are not those of its configuration.
    """
    lora, model = lora_config(checkpoint.run_config), checkpoint.model
    tensors = checkpoint.tensors(GROUP)
    if tensors.shapes != trained_shapes(lora, model):
        raise UserError(
            f"checkpoint {checkpoint.path}: its adapter's tensors are not those of lora.rank={lora.rank} and "
            f"lora.targets=[{','.join(lora.targets)}]; use another checkpoint"
        )
    return Adapter(
        path=checkpoint.path,
        products={
            module: Product(tensors[f"{module}.{A}"], tensors[f"{module}.{B}"], scaling(lora))
            for module in adapted_modules(lora, model.num_layers)
        },
        dropout=lora.dropout,
        rank_stabilized=lora.rank_stabilized,
        base=checkpoint.loop_state["base_path"],
        fingerprint=checkpoint.loop_state["base_fingerprint"],
        num_layers=model.num_layers,
        head=tensors[HEAD] if model.labels else None,
        labels=model.labels,
    )


def check_fits(adapter: Adapter, model: ModelConfig, load: str) -> None:
    """Compare an adapter with the model that it is to change.

    Raises:
        UserError: lists every module that the model has not, or has in another size.
    """
    shapes = module_shapes(model)
    faults = [
        f"{module} {(product.a.shape[0], product.b.shape[1])} instead of {shapes.get(module, 'nothing')}"
        for module, product in adapter.products.items()
        if (product.a.shape[0], product.b.shape[1]) != shapes.get(module)
    ]
    if adapter.head is not None and adapter.head.shape[1] != model.hidden_size:
        faults.append(f"{HEAD} {adapter.head.shape} instead of (classes, {model.hidden_size})")
    if faults:
        shown = ", ".join(faults[:5]) + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(
            f"adapters={adapter.path} is of another model than load={load} ({model.num_layers} layers, hidden size "
            f"{model.hidden_size}): {shown}; give the base that it was trained on" + of_base(adapter)
        )


def check_base(adapters: Sequence[Adapter], weights: LazyTensors, load: str) -> None:
    """Reject weights that differ from those that an adapter was trained beside, if it says which; hashes them once.

    Raises:
        UserError: naming where the weights were.
    """
    if all(adapter.fingerprint is None for adapter in adapters):
        return
    actual = fingerprint(weights)
    for adapter in adapters:
        if adapter.fingerprint not in (None, actual):
            raise UserError(
                f"adapters={adapter.path} was trained beside other weights than those of load={load} (sha256 "
                f"{str(adapter.fingerprint)[:12]}, here {actual[:12]}). Give load={adapter.base}, or where they are "
                "now."
            )


def of_base(adapter: Adapter) -> str:
    """Where an adapter says that its base is, as the end of a message."""
    return f": {adapter.base}" if adapter.base else ""


def adapted_model(model: ModelConfig, adapters: Sequence[Adapter], load: str) -> ModelConfig:
    """What a model becomes with any of some adapters, each of which fits it.

    Raises:
        UserError: one has a head and another none, or their classes differ: no one model serves them all.
    """
    found = [adapter.adapted(model) for adapter in adapters] or [model]
    if any(other.labels != found[0].labels for other in found):
        kinds = "; ".join(
            f"{adapter.name}: {', '.join(other.labels) if other.labels else 'a language model'}"
            for adapter, other in zip(adapters, found, strict=True)
        )
        raise UserError(f"load={load}: adapters= make different models of it ({kinds}): use them in several calls")
    return found[0]


def named(directories: list[str]) -> dict[str, Adapter]:
    """Adapters by name.

    Raises:
        UserError: one cannot be read, or two have one name.
    """
    found: dict[str, Adapter] = {}
    for directory in directories:
        adapter = open_adapter(directory)
        if adapter.name in found:
            raise UserError(
                f"adapters=[{','.join(directories)}]: two are called {adapter.name}; rename one of the directories"
            )
        found[adapter.name] = adapter
    return found


def fingerprint(weights: LazyTensors) -> str:
    """sha256 of the values of logical tensors as fp32, whatever files, layout or order they are stored in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights.specs[name].shape}".encode())
        for piece in pieces(weights.box(name)):
            digest.update(np.ascontiguousarray(piece, np.float32).data)
    return digest.hexdigest()
