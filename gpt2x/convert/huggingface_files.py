"""Files of weights in a Hugging Face directory: which one is read, shards, and what else such a directory can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gpt2x.checkpoint.tensors import StoredTensor, open_safetensors
from gpt2x.compatibility import Entry, Format, Use
from gpt2x.convert.directories import read_json
from gpt2x.convert.torch_pickle import open_torch
from gpt2x.errors import UserError
from gpt2x.runtime.hub import check_blob

# in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Foreign(NamedTuple):
    """Files of a different format: their pattern, what they are, and what to do."""

    pattern: str
    what: str
    fix: str


RENAME = "If it is the only one, rename it to {name}."
CONVERT = "Convert it to model.safetensors with a version of transformers before 5: {call}."
FOREIGN = (
    Foreign("adapter_model.*", "a PEFT adapter", "Give load=BASE 'adapters=[{path}]'."),
    Foreign("adapter_config.json", "a PEFT adapter", "Give load=BASE 'adapters=[{path}]'."),
    Foreign(
        "model.*.safetensors*", "weights of a variant, such as fp16", RENAME.format(name="the name without the variant")
    ),
    Foreign(
        "pytorch_model.*.bin*", "weights of a variant, such as fp16", RENAME.format(name="the name without the variant")
    ),
    Foreign("model-*-of-*.safetensors", "shards without their index", "Copy model.safetensors.index.json as well."),
    Foreign("pytorch_model-*-of-*.bin", "shards without their index", "Copy pytorch_model.bin.index.json as well."),
    Foreign("consolidated*", "weights in their author's format", "Get the files that transformers loads."),
    Foreign(
        "tf_model*.h5", "weights of TensorFlow",
        CONVERT.format(call="AutoModelForCausalLM.from_pretrained(DIR, from_tf=True).save_pretrained(NEW)"),
    ),
    Foreign(
        "flax_model*.msgpack", "weights of Flax",
        CONVERT.format(call="AutoModelForCausalLM.from_pretrained(DIR, from_flax=True).save_pretrained(NEW)"),
    ),
    Foreign(
        "*.ckpt.index", "a checkpoint of TensorFlow 1",
        CONVERT.format(call="transformers.models.gpt2.convert_gpt2_original_tf_checkpoint_to_pytorch"),
    ),
    Foreign(
        "model.ckpt-*", "a checkpoint of TensorFlow 1",
        CONVERT.format(call="transformers.models.gpt2.convert_gpt2_original_tf_checkpoint_to_pytorch"),
    ),
    Foreign("*.ckpt", "a checkpoint of MindSpore or of Lightning", "Give the file itself, or model.safetensors."),
    Foreign(
        "*.gguf", "weights of llama.cpp",
        "Load and save them with transformers: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE)"
        ".save_pretrained(NEW).",
    ),
    Foreign("*ggml*", "weights of llama.cpp", "Get the files that transformers loads."),
    Foreign("*.onnx", "a graph of ONNX", "Get the weights as model.safetensors."),
    Foreign("openvino_model.*", "a graph of OpenVINO", "Get the weights as model.safetensors."),
    Foreign("rust_model.ot", "weights of rust-bert", "Get the weights as model.safetensors."),
    Foreign("*.mlmodel*", "a model of Core ML", "Get the weights as model.safetensors."),
    Foreign("*.tflite", "a graph of TensorFlow Lite", "Get the weights as model.safetensors."),
    Foreign("saved_model.pb", "a graph of TensorFlow", "Get the weights as model.safetensors."),
    Foreign(
        "*.distcp", "a checkpoint of FSDP", "Join it: accelerate merge-weights DIR NEW."
    ),
    Foreign("zero_to_fp32.py", "a checkpoint of DeepSpeed", "Join it: python zero_to_fp32.py DIR NEW."),
    Foreign("mp_rank_*_model_states.pt", "a checkpoint of DeepSpeed", "Join it: python zero_to_fp32.py DIR NEW."),
    Foreign("*.npz", "arrays of numpy", "Get the weights as model.safetensors."),
    Foreign("*.safetensors", "safetensors of a different name", RENAME.format(name="model.safetensors")),
    Foreign("*.pth", "a PyTorch file of a different name", RENAME.format(name="pytorch_model.bin")),
    Foreign("*.pt", "a PyTorch file of a different name", RENAME.format(name="pytorch_model.bin")),
    Foreign("*.bin", "a PyTorch file of a different name", RENAME.format(name="pytorch_model.bin")),
)  # fmt: skip
STATES = (
    Foreign("optimizer.*", "a state of transformers' Trainer", "Copy the weights of the checkpoint as well."),
    Foreign("scheduler.pt", "a state of transformers' Trainer", "Copy the weights of the checkpoint as well."),
    Foreign("rng_state*.pth", "a state of transformers' Trainer", "Copy the weights of the checkpoint as well."),
    Foreign("training_args.bin", "the options of transformers' Trainer", "Copy the weights of the checkpoint as well."),
    Foreign("trainer_state.json", "a state of transformers' Trainer", "Copy the weights of the checkpoint as well."),
)


def beside(foreign: Foreign) -> str:
    """Return what happens to a foreign file if another file has the weights."""
    is_adapter = foreign.pattern.startswith("adapter_")
    return "beside a model a warning, as transformers adds it" if is_adapter else "ignored beside a file that is read"


WEIGHTS_FORMAT = Format(
    title="Hugging Face: files of weights",
    what="The first of the files that are read, in this order; transformers defines it.",
    entries=(
        Entry("transformers_weights", Use.READ, "the file that this key of config.json names, before all others"),
        *(Entry(name, Use.READ, "shards by relative paths below the directory" if "index" in name else "") for name
          in WEIGHT_FILES),
        *(Entry(foreign.pattern, Use.REJECTED, f"{foreign.what}; {beside(foreign)}") for foreign
          in (*FOREIGN, *STATES)),
        Entry("whole pickled modules", Use.REJECTED, "`torch.save(model)`: loading one runs code"),
        Entry("other names in a pickle", Use.REJECTED, "a file is read without running what its pickle names"),
    ),
    others="ignored.",
)  # fmt: skip


def open_weights(path: Path, config: dict[str, Any]) -> dict[str, StoredTensor]:
    """Return the tensors of the first kind of weight file that exists, under their names in the file.

    Raises:
        UserError: there is none, a shard is missing or outside of the directory, or a tensor is in two shards.
    """
    name = weight_file(path, config)
    open_file = open_safetensors if "safetensors" in name else open_torch
    if not name.endswith(".index.json"):
        return _opened(open_file, path / name)
    check_blob(path / name)
    weight_map = read_json(path / name).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(file, str) for file in weight_map.values())):
        raise UserError(f"{path / name} has no weight_map of names to files. Copy or download it again.")
    shards = sorted(set(weight_map.values()))
    require_inside(path, name, shards)
    absent = [file for file in shards if not (path / file).is_file()]
    if absent:
        raise UserError(
            f"load={path}: {name} names {', '.join(absent)}, which the directory does not contain. "
            "Copy or download all shards."
        )
    return _joined(path, name, weight_map, {file: _opened(open_file, path / file) for file in shards})


def _opened(open_file: Callable[[Path], dict[str, StoredTensor]], file: Path) -> dict[str, StoredTensor]:
    """Open one file; a damaged one of the hub's cache is named as such, with what to delete there."""
    try:
        return open_file(file)
    except UserError:
        check_blob(file)
        raise


def weight_file(path: Path, config: dict[str, Any]) -> str:
    """Return the name of the file of weights, or of the index of several, that transformers reads.

    Raises:
        UserError: there is none, or config.json names one that is not there.
    """
    stated = config.get("transformers_weights")
    if stated is not None:
        if not isinstance(stated, str) or not stated.endswith((".safetensors", ".safetensors.index.json")):
            raise UserError(
                f"load={path}: config.json has transformers_weights={stated!r}; it must name a file of safetensors. "
                "Correct it, or remove the key."
            )
        require_inside(path, "config.json", [stated])
        if not (path / stated).is_file():
            raise UserError(f"load={path}: config.json names the weights {stated}, which do not exist. Copy them.")
        return stated
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return name
    raise UserError(
        f"load={path} has a config.json but no weights: none of {', '.join(WEIGHT_FILES)} exists. "
        + (other_format(path) or "Copy or download the weights.")
    )


def require_inside(path: Path, origin: str, files: list[str]) -> None:
    """Check that relative paths stay below a directory, also through links within it.

    A link to a file is followed, as the cache of the hub consists of them; a folder that leads outside is rejected.

    Raises:
        UserError: a path is absolute, has `..`, or leads outside.
    """
    for file in files:
        parts = PurePosixPath(file.replace("\\", "/"))
        is_below = not parts.is_absolute() and ".." not in parts.parts and ":" not in file and bool(file)
        if not is_below or not (path / file).parent.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"load={path}: {origin} names {file!r}, which is outside of the directory. Copy the file into it, and "
                "name it by its relative path."
            )


def _joined(
    path: Path, index: str, weight_map: dict[str, str], shards: dict[str, dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """Return the tensors of all shards. Like transformers, take from a shard also what the index does not name."""
    joined: dict[str, StoredTensor] = {}
    for file, tensors in shards.items():
        twice = [name for name in tensors if name in joined]
        if twice:
            raise UserError(
                f"load={path}: {', '.join(twice)} stand in {joined[twice[0]].file.name} and in {file}, two shards of "
                f"{index}. Remove the wrong ones."
            )
        joined |= tensors
    absent = [name for name in weight_map if name not in joined]
    if absent:
        raise UserError(f"load={path}: {index} names {', '.join(absent)}, which no shard has. Download it again.")
    return joined


def other_format(path: Path) -> str | None:
    """Return what the directory holds instead of weights that are read, and what to do; None if it holds none."""
    files = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    states = [name for name in files if _first(STATES, [name])]
    foreign = _first(FOREIGN, [name for name in files if name not in states])
    below = next(_weights_below(path), None)
    if foreign is None and below is not None:
        return f"{below} has weights; give load={below}."
    foreign = foreign or _first(STATES, states)
    return None if foreign is None else f"{foreign[1]} is {foreign[0].what}. {foreign[0].fix.format(path=path)}"


def _first(patterns: tuple[Foreign, ...], files: list[str]) -> tuple[Foreign, str] | None:
    return next(((one, name) for one in patterns for name in files if fnmatch(name, one.pattern)), None)


def _weights_below(path: Path) -> Iterator[Path]:
    """Yield the folders with weights, such as checkpoint-500, the highest number first."""
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    for folder in sorted(folders, key=lambda folder: (len(folder.name), folder.name), reverse=True):
        if any((folder / name).is_file() for name in WEIGHT_FILES):
            yield folder
