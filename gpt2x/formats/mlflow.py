"""An MLflow model, which `mlflow models serve` serves: the checkpoint, the code that loads it, and its signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gpt2x
from gpt2x.checkpoint.manifest import MANIFEST, seal
from gpt2x.checkpoint.store import Checkpoint, list_checkpoints, open_checkpoint
from gpt2x.config import GenerationConfig
from gpt2x.config.options import CONF, options
from gpt2x.convert import WeightsSource
from gpt2x.convert.directories import require_empty
from gpt2x.data.template import stored_template
from gpt2x.errors import UserError
from gpt2x.formats.base import Change, describe, open_model
from gpt2x.formats.gpt2x import write_checkpoint
from gpt2x.lora.open import adapter_of_checkpoint
from gpt2x.runtime.files import new_directory
from gpt2x.tracking.mlflow_model import REGISTERED
from gpt2x.tracking.mlflow_store import import_mlflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ParamSpec

MODEL_FOLDER = "mlflow_model"  # in the directory of a run with tracker.log_model=true
DATA = "checkpoint"  # the folder within `data`
LOADER = "gpt2x.serve.pyfunc"  # imported by MLflow when it loads the model, not here
# What the loader imports, by package or module, and the groups of conf/ that it reads
CODE = ("__init__", "checkpoint", "compatibility", "config", "convert", "data", "errors", "extensions", "generate",
        "lora", "model", "native", "ops", "parallel", "pretrained", "runtime", "serve")  # fmt: skip
OPTIONS = ("hardware", "model")
# Decoding options that a caller may set. The others cost the server memory or read its files.
PARAMS = ("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty",
          "eos_ids", "seed")  # fmt: skip
MODEL_CONFIG = {"hardware": "cpu", "batch_size": 8, "weights": "fp32"}  # what the server decides
# What the loader and the code that it runs import; MindSpore and tokenizers bring the rest.
PACKAGES = ("mlflow", "mindspore", "numpy", "omegaconf", "pandas", "psutil", "PyYAML", "rich", "safetensors",
            "scipy", "tokenizers")  # fmt: skip
EXAMPLE = "To be, or not to be"


def export(source: Path, output: Path, change: Change | None) -> str:
    """Write an MLflow model of the model at `source`, or of its base with the adapter at `source`."""
    source, change = base_of(source, change)
    model = open_model(source, change)
    require_empty(output)
    write_model(model, tokenizer_of(model), output, origin_of(source, change))
    return describe(model)


def export_checkpoint(checkpoint: Path, output: Path, registered_model: str | None) -> None:
    """Write the MLflow model of a run's checkpoint; an older one at `output` is replaced.

    Args:
        checkpoint: of a whole model, or of an adapter, which is merged into its base.
        output: the directory.
        registered_model: the name in MLflow's registry, under which the tracker registers it.

    Raises:
        UserError: the base of an adapter cannot be opened, or `output` cannot be written.
    """
    source, change = base_of(checkpoint, None)
    model = open_model(source, change)
    facts = origin_of(source, change) | ({REGISTERED: registered_model} if registered_model else {})
    write_model(model, tokenizer_of(model), output, facts)


def base_of(source: Path, change: Change | None) -> tuple[Path, Change | None]:
    """Return the model to open and what to merge: for an adapter's checkpoint or run, its base and itself."""
    checkpoint = checkpoint_of(source)
    if change is None and checkpoint is not None and "adapter" in checkpoint.groups():
        return Path(adapter_of_checkpoint(checkpoint).base or ""), Change(str(checkpoint.path), 1)
    return source, change


def tokenizer_of(model: WeightsSource) -> Path:
    """Return the tokenizer's directory.

    Raises:
        UserError: there is none.
    """
    if model.tokenizer_dir is None:
        raise UserError(
            f"{model.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), and a served model reads "
            "text. Copy the tokenizer with which it was trained into that directory."
        )
    return model.tokenizer_dir


def checkpoint_of(directory: Path) -> Checkpoint | None:
    """Return the gpt2x checkpoint in a directory, the newest one of a run; None if it holds none."""
    path = directory.expanduser()
    if complete := list_checkpoints(path):
        path = complete[-1]
    return open_checkpoint(path) if (path / MANIFEST).is_file() else None


def origin_of(source: Path, change: Change | None) -> dict[str, Any]:
    """Return where a model comes from: run, step and the checkpoint's sha256, those of the adapter if one is merged."""
    trained = Path(change.adapter) if change and change.sign > 0 else source
    facts: dict[str, Any] = {"gpt2x": gpt2x.__version__}
    checkpoint = checkpoint_of(trained)
    if checkpoint is None:
        return facts | {"source": trained.name}
    facts |= {"checkpoint": checkpoint.path.name, "checkpoint_sha256": seal(checkpoint.manifest)}
    step = checkpoint.loop_state.get("step")
    if isinstance(step, int):  # a converted checkpoint has none
        facts |= {"run": checkpoint.path.absolute().parents[1].name, "step": step}
    hardware = checkpoint.run_config.get("hardware", {}).get("name")
    return facts | ({"hardware": hardware} if hardware else {})


def write_model(model: WeightsSource, tokenizer_dir: Path, output: Path, facts: Mapping[str, Any]) -> None:
    """Write the directory, complete or not at all.

    Args:
        model: weights and configuration.
        tokenizer_dir: of the tokenizer's files, and of the template if prompts have one.
        output: the directory.
        facts: MLflow's metadata of the model.

    Raises:
        UserError: MLflow cannot be imported, or the directory cannot be written.
    """
    import_mlflow()
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    has_template = stored_template(tokenizer_dir) is not None
    hardware = facts.get("hardware")
    written = Model(metadata={"model": model.model.name, **facts})
    with new_directory(output) as temporary, TemporaryDirectory() as scratch:
        (Path(scratch) / DATA).mkdir()
        save_model(
            temporary,
            mlflow_model=written,
            loader_module=LOADER,
            data_path=f"{scratch}/{DATA}",  # the checkpoint is written there, not copied
            code_paths=copy_code(Path(scratch)),
            signature=signature_of(len(model.model.labels or []), has_template, model.model.max_seq_len),
            input_example=example(model.model.is_classifier, has_template),
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
            model_config=MODEL_CONFIG | ({"hardware": hardware} if hardware in options("hardware") else {}),
        )
        write_checkpoint(model, tokenizer_dir, temporary / "data" / DATA)
        written.model_size_bytes = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        written.save(temporary / "MLmodel")


def copy_code(folder: Path) -> list[str]:
    """Copy what the loader runs of gpt2x, and the options that it reads, into a folder; return the paths of both.

    Training, planning and the commands are left out: artifacts are sent to MLflow's server one file per request.
    """
    package, served = Path(gpt2x.__path__[0]), folder / "gpt2x"
    served.mkdir()
    for name in CODE:
        if (package / name).is_dir():
            copytree(package / name, served / name, ignore=ignore_patterns("__pycache__", "src"))
        else:
            copyfile(package / f"{name}.py", served / f"{name}.py")
    for group in OPTIONS:
        copytree(CONF / group, folder / "conf" / group)
    return [str(served), str(folder / "conf")]


def signature_of(num_classes: int, has_template: bool, max_seq_len: int) -> ModelSignature:
    """Return the columns of a request and of an answer, and the params with their defaults.

    Args:
        num_classes: of a classifier, 1 if it gives a score; 0 for a language model.
        has_template: whether prompts are instructions, which may have an input.
        max_seq_len: the window; the default of max_new_tokens leaves half of it for the prompt.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, ParamSchema, Schema

    inputs = [ColSpec("string", "prompt")]
    if num_classes:
        answer = ColSpec("string", "label") if num_classes > 1 else ColSpec("double", "score")
        outputs = [answer, ColSpec(Map(DataType.double), "probabilities"), ColSpec("boolean", "is_cut")]
        return ModelSignature(Schema(inputs), Schema(outputs))
    if has_template:
        inputs.append(ColSpec("string", "input", required=False))
    outputs = [ColSpec("string", "completion"), ColSpec("long", "num_tokens"), ColSpec("string", "finish_reason")]
    defaults = {field.name: field.default for field in fields(GenerationConfig)}
    defaults |= {"seed": 0, "max_new_tokens": min(defaults["max_new_tokens"], max(1, max_seq_len // 2))}
    return ModelSignature(
        Schema(inputs), Schema(outputs), ParamSchema([param(name, defaults[name]) for name in PARAMS])
    )


def param(name: str, default: Any) -> ParamSpec:
    """Return a param of the type that the schema gives the key; a list's null is the empty list, as MLflow has none."""
    from mlflow.types.schema import ParamSpec

    kind = next(str(field.type) for field in fields(GenerationConfig) if field.name == name).removesuffix(" | None")
    types = {"int": "long", "float": "double", "bool": "boolean", "list[int]": "long"}
    if kind.startswith("list"):
        return ParamSpec(name, types[kind], default or [], shape=(-1,))
    return ParamSpec(name, types[kind], default)


def example(is_classifier: bool, has_template: bool) -> Any:
    """Return the input example: a table of one prompt, and params for a language model."""
    import pandas

    table = pandas.DataFrame({"prompt": [EXAMPLE]} | ({"input": [""]} if has_template and not is_classifier else {}))
    return table if is_classifier else (table, {"max_new_tokens": 16, "temperature": 0.8, "seed": 1})
