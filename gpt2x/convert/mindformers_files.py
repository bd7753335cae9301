"""The files of a MindFormers checkpoint: whole, in shards, or one per rank with strategy files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gpt2x.checkpoint.tensors import open_safetensors
from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.convert.directories import read_json
from gpt2x.convert.mindformers_config import read_config
from gpt2x.convert.mindformers_names import is_weight, plain_name, sort_parameters
from gpt2x.convert.mindspore_ckpt import Readable, open_ckpt, verify_ckpt
from gpt2x.convert.mindspore_slices import join_slices, read_strategies
from gpt2x.errors import UserError

CKPT, SAFETENSORS = ".ckpt", ".safetensors"
INDEX = "mindspore_model.ckpt.index.json"
RANK = re.compile(r"rank_(\d{1,6})")
OUTPUTS = ("checkpoint_network", "checkpoint")  # of MindFormers' output folder
STRATEGY = "strategy"  # in the name of a strategy file, or of a folder of them

MINDFORMERS_FILES = Format(
    "MindFormers: files of load=",
    "`load=FILE.ckpt`, or the folder that holds it; MindFormers 1.3 and MindSpore 2.10 write them.",
    (
        Entry("*.ckpt", Use.READ, "the only one of a folder; several are listed, and one has to be named"),
        Entry("*.safetensors", Use.READ, "MindSpore's, with MindFormers' names of parameters"),
        Entry(INDEX, Use.READ, "names the shards `mindspore_model-0000N-of-0000M.ckpt`"),
        Entry("*.yaml", Use.READ, "`model.model_config`: of the file's name, or the only one"),
        Entry("config.json", Use.READ, "the same keys, or Hugging Face's, if there is no YAML file"),
        Entry("rank_N/*.ckpt", Use.READ, "slices of a distributed run, joined by the strategy files"),
        Entry("*strategy*.ckpt", Use.READ, "beside rank_N, in `strategy/` there or one folder above; also `.json`"),
        Entry("tokenizer.json", Use.READ, "and the other files of a tokenizer; else tokenizer.path"),
        *entries(Use.REJECTED, ("*.ckpt with enc_key",), "encrypted"),
        *entries(Use.REJECTED, ("*.ckpt of PyTorch Lightning",), "a zip archive; no pickle is opened"),
        *entries(Use.IGNORED, ("meta.json", "*.mindir", "*.air", "*.onnx"), "the training's last step; graphs"),
    ),
    "ignored.",
)


@dataclass(frozen=True)
class Opened:
    """What `load=` names: the parameters by their stored names, and where they are.

    Attributes:
        stored: parameters; slices are joined.
        files: the files that hold them.
        config_file: the YAML file or config.json beside them, or None.
        folder: where a tokenizer's files are looked for.
    """

    stored: Mapping[str, Readable]
    files: tuple[Path, ...]
    config_file: Path | None
    folder: Path

    def verify(self) -> None:
        """Compare CRC-32 sums, in files that state them.

        Raises:
            UserError: a file is damaged.
        """
        for file in self.files:
            if file.suffix == CKPT:
                verify_ckpt(file)


def is_mindformers(path: Path) -> bool:
    """Return whether a path is a file or folder that MindSpore wrote; its content is checked when it is opened."""
    if path.is_file():
        return path.suffix == CKPT or _has_reference_names(path)
    if not path.is_dir():
        return False
    files = _weight_files(path)
    return (
        any(file.suffix == CKPT or _has_reference_names(file) for file in files)
        or bool(_rank_folders(path))
        or bool(_outputs(path))
    )


def open_files(path: Path, key: str) -> Opened:
    """Open what `is_mindformers` recognises.

    Args:
        path: a file or folder.
        key: of the configuration, for messages: load or adapters.

    Raises:
        UserError: several files could be meant, one cannot be read, or ranks or strategies are missing.
    """
    origin = f"{key}={path}"
    if path.is_file():
        return _open_file(path, origin)
    outputs = _outputs(path)
    if len(outputs) > 1:
        raise UserError(f"{origin} has several checkpoints. Give one of: {', '.join(map(str, outputs))}.")
    if outputs:
        return _open_ranks(outputs[0], _one_per_rank(outputs[0], origin), origin)
    if (path / INDEX).is_file():
        return _open_shards(path, origin)
    if _rank_folders(path):
        return _open_ranks(path, _one_per_rank(path, origin), origin)
    files = _weight_files(path)
    if len(files) > 1:
        raise UserError(
            f"{origin} has {len(files)} weight files. Give one of: {', '.join(str(file) for file in files[:10])}."
        )
    return _open_file(files[0], origin)


def _open_file(file: Path, origin: str) -> Opened:
    """Open one file; if it is a slice of a rank, with the files of the same name of the other ranks."""
    stored = _open_tensors(file)
    rank = RANK.fullmatch(file.parent.name)
    if rank and _strategy_files(file.parent.parent):
        ranks = {}
        for number, folder in _rank_folders(file.parent.parent).items():
            sibling = folder / re.sub(rf"rank_{rank[1]}(?!\d)", f"rank_{number}", file.name)
            if sibling.is_file():
                ranks[number] = sibling
        return _open_ranks(file.parent.parent, ranks, origin)
    return Opened(stored, (file,), _config_beside(file, origin), file.parent)


def _open_shards(path: Path, origin: str) -> Opened:
    """Open the shards that an index names."""
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path / INDEX} has no weight_map of names to files. Copy it again.")
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if Path(name).name != name or not (path / name).is_file()]
    if absent:
        raise UserError(f"{origin}: {INDEX} names {', '.join(absent)}, which is not there. Copy all shards.")
    stored = {key: tensor for name in names for key, tensor in _open_tensors(path / name).items()}
    files = tuple(path / name for name in names)
    return Opened(stored, files, _config_beside(path / INDEX.removesuffix(".index.json"), origin), path)


def _open_ranks(root: Path, files: dict[int, Path], origin: str) -> Opened:
    """Open one file per rank, and join slices by the strategy files."""
    ranks = {number: _open_tensors(file) for number, file in sorted(files.items())}
    strategies = _strategy_files(root)
    if strategies:
        stored = join_slices(ranks, read_strategies(strategies), origin)
    else:
        first, stored = next(iter(ranks.items()))
        if not _is_whole(stored, origin):
            raise UserError(
                f"{origin}: rank_{first} holds slices of a distributed run, and there is no strategy file (such as "
                f"{root.parent / STRATEGY / 'ckpt_strategy_rank_0.ckpt'}). Copy the folder `{STRATEGY}` of the run "
                "beside it."
            )
    config_file = _config_beside(root / "any", origin) or _config_beside(root.parent / "any", origin)
    return Opened(stored, tuple(files.values()), config_file, root)


def _is_whole(stored: Mapping[str, Readable], origin: str) -> bool:
    """Return whether the parameters of one rank are a whole model: square projections of consecutive layers."""
    parameters = sort_parameters(stored, origin)
    words = next((t for name, t in parameters.weights.items() if name.endswith("word_embedding.embedding_table")), None)
    projections = [t for name, t in parameters.weights.items() if name.endswith("attention.projection.weight")]
    return words is not None and all(t.shape == (words.shape[-1],) * 2 for t in projections)


def _open_tensors(file: Path) -> dict[str, Readable]:
    if file.suffix == CKPT:
        return open_ckpt(file)
    return dict(open_safetensors(file))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that could hold a model."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in (CKPT, SAFETENSORS) and STRATEGY not in file.name and file.is_file()
    )


def _rank_folders(folder: Path) -> dict[int, Path]:
    """Return the folders rank_N that have weight files, by rank."""
    matches = ((RANK.fullmatch(each.name), each) for each in folder.iterdir() if each.is_dir())
    return {int(match[1]): each for match, each in matches if match and _weight_files(each)}


def _outputs(folder: Path) -> list[Path]:
    """Return the folders of checkpoints in MindFormers' output folder."""
    return [folder / name for name in OUTPUTS if (folder / name).is_dir() and _rank_folders(folder / name)]


def _one_per_rank(folder: Path, origin: str) -> dict[int, Path]:
    """Return the only weight file of each rank.

    Raises:
        UserError: a rank has several.
    """
    files = {}
    for rank, each in _rank_folders(folder).items():
        choices = _weight_files(each)
        if len(choices) > 1:
            raise UserError(
                f"{origin}: rank_{rank} has {len(choices)} weight files. Give the one of the checkpoint, and the same "
                f"name is read of the other ranks: {', '.join(str(file) for file in choices[:10])}."
            )
        files[rank] = choices[0]
    return files


def _strategy_files(root: Path) -> list[Path]:
    """Return the strategy files of the ranks in `root`: of the nearest folder that has some."""
    for folder in (root, root / STRATEGY, root.parent / STRATEGY, root.parent):
        if not folder.is_dir():
            continue
        files = [file for file in folder.iterdir() if file.suffix in (CKPT, ".json") and STRATEGY in file.name]
        if files:
            return sorted(files)
    return []


def _config_beside(file: Path, origin: str) -> Path | None:
    """Return the YAML file of the same name, the only one that describes a model, or MindFormers' config.json.

    Raises:
        UserError: there are several YAML files.
    """
    named = [file.with_suffix(suffix) for suffix in (".yaml", ".yml")]
    for candidate in named:
        if candidate.is_file():
            return candidate
    others = sorted(each for each in file.parent.iterdir() if each.suffix in (".yaml", ".yml"))
    described = [each for each in others if read_config(each) is not None]
    if len(described) > 1:
        raise UserError(
            f"{origin} has several YAML files beside it: {', '.join(each.name for each in described)}. Give the right "
            f"one the name of the weights ({named[0].name}), or move the others away."
        )
    if described:
        return described[0]
    config = file.parent / "config.json"
    return config if config.is_file() else None


def _has_reference_names(file: Path) -> bool:
    """Return whether a safetensors file has MindFormers' names."""
    if file.suffix != SAFETENSORS:
        return False
    try:
        with safe_open(file, framework="numpy") as opened:
            return any(is_weight(plain_name(name)) and name != "score.weight" for name in opened.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return False
