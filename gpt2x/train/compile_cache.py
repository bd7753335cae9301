"""The compiled update, kept for the next start with the same graphs (docs/design/startup.md).

MindSpore's compile cache compares only the entry script and numbers graphs by their order in the process. With a
different model, or a different order, it would run a stale graph. Here each set of graphs has its own directory, named
by a hash of everything that may shape them: among it every key of the configuration whose effect in
`gpt2x/config/schema.py` is not known to spare the graphs. A directory is complete or absent, its files are compared
with their digests before they are used, and MindSpore's cache is on only while the update is compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gpt2x
from gpt2x.checkpoint.files import sha256
from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.keys import flatten, leaves
from gpt2x.data.cache import examined, write_index
from gpt2x.errors import UserError
from gpt2x.ops import backend_of
from gpt2x.parallel.mesh import Mesh
from gpt2x.runtime.building import if_sole_builder, remove
from gpt2x.runtime.console import console
from gpt2x.runtime.files import new_directory

MAX_KEPT = 32  # sets of graphs, of a few MB each
# Set by the launcher and by `compiler_dumps`; other values give the same graphs
MEETING = {"MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM", "MS_NODE_ID", "MS_TOPO_TIMEOUT",
           "MS_CPU_COMM_OP_TIMEOUT", "MS_OM_PATH"}  # fmt: skip

INITIALIZED_AGAIN = ("stderr", "__stderr__", "excepthook")  # of sys, when it is initialized a second time

_used: list[Path] = []  # MindSpore accepts a directory for its cache once per process


@contextmanager
def kept_graphs(
    config: TrainConfig, model: ModelConfig, mesh: Mesh, graphs: Sequence[tuple[Any, tuple]]
) -> Iterator[None]:
    """Take the graphs of the update from the cache while they are compiled, or put them there.

    Args:
        config: of the run.
        model: with its final vocabulary.
        mesh: the processes; either all of them take their graphs from the cache, or none does.
        graphs: Cells in the order in which they are compiled, with example inputs.
    """
    if not applies(config):
        yield
        return
    directory = Path(config.paths.cache).expanduser().absolute() / "graphs" / key(config, model, mesh, graphs)
    kept, damage = examined(directory)
    if damage:
        console.notice(f"{damage}; the update is compiled again")
    if mesh.agree(kept is not None):
        with suppress(OSError):  # a cache that can only be read
            os.utime(directory)
        with caching(directory):
            yield
        return
    with if_sole_builder(directory) as may_keep:
        if may_keep:
            yield from _compiled_into(directory)
        else:  # another process keeps them, or the cache cannot be written
            yield


def _compiled_into(directory: Path) -> Iterator[None]:
    compiled = False
    try:
        if not directory.is_dir():
            remove(directory)
        with new_directory(directory, key="paths.cache") as temporary:
            with caching(temporary):
                yield
            compiled = True
            write_index(temporary, {"directory": directory.name})
    except UserError as error:
        if not compiled:
            raise
        console.warn(f"the compiled update is not kept for the next start: {error}")
    prune(directory.parent)


def applies(config: TrainConfig) -> bool:
    """Return whether the cache is requested, and was shown to be right: on the CPU, in a process that has all layers
    and whole weights, once per process (docs/design/startup.md).
    """
    return (
        config.trainer.compile_cache
        and config.hardware.is_cpu
        and config.hardware.mode == "graph"
        and config.parallel.pipeline == 1
        and not config.parallel.splits_weights
        and "MS_COMPILER_CACHE_ENABLE" not in os.environ  # the user has switched on MindSpore's
        and Path(sys.argv[0]).is_file()  # MindSpore reads the entry script
        and not _used
    )


def key(config: TrainConfig, model: ModelConfig, mesh: Mesh, graphs: Sequence[tuple[Any, tuple]]) -> str:
    """Return a name that differs if anything differs that may shape the graphs of this process."""
    import mindspore as ms

    facts = {
        "gpt2x": sources_hash(Path(gpt2x.__file__).parent),
        "kernels": str(backend_of(config.hardware).library),  # graphs name the file
        "entry": sha256(Path(sys.argv[0])),
        "versions": [ms.__version__, sys.version, platform.machine()],
        "environment": {k: v for k, v in os.environ.items() if k.startswith("MS_") and k not in MEETING},
        "config": values_in_graphs(replace(config, model=model)),
        "process": [mesh.rank, mesh.size],
        "graphs": [
            {
                "inputs": [None if value is None else [list(value.shape), str(value.dtype)] for value in inputs],
                "parameters": [
                    [name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in cell.parameters_dict().items()
                ],
            }
            for cell, inputs in graphs
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def values_in_graphs(config: TrainConfig) -> dict[str, Any]:
    """Return the values of the keys that graphs may depend on."""
    root = type(config)
    facts = {name: leaf.facts for name, leaf in leaves(root).items()}
    return {key: value for key, value in flatten(asdict(config), root).items() if facts[key].effect.part_of_graph}


def sources_hash(package: Path) -> str:
    """Return the sha256 of the names and contents of a package's files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def caching(directory: Path) -> Iterator[None]:
    """Switch MindSpore's compile cache on, in `directory`.

    To list the files of a program, MindSpore initializes each module that one imports a second time. That gives sys
    the standard error of Python's own start, which fails on a closed terminal; here it gets back what it had.
    """
    import mindspore as ms

    _used.append(directory)
    before = {name: getattr(sys, name) for name in INITIALIZED_AGAIN}
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(directory))
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)
        vars(sys).update(before)


def prune(folder: Path) -> None:
    """Remove the least recently used sets of graphs beyond MAX_KEPT."""
    used: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process has just removed it
            used += [(path.stat().st_mtime, path)] if not path.name.startswith(".") else []
    for _, path in sorted(used, reverse=True)[MAX_KEPT:]:
        remove(path)
