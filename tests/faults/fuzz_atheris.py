"""`python -m tests.faults.fuzz_atheris FORMAT CORPUS -max_total_time=600`: parsers, guided by their coverage.

Atheris (https://github.com/google/atheris) is not a dependency; `pip install --target DIR atheris` and
`PYTHONPATH=DIR:.` are enough. What follows FORMAT are a folder of inputs and libFuzzer's options.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Return by format the name of its file and what reads it."""
    from gpt2x.checkpoint.tensors import open_safetensors
    from gpt2x.convert.mindspore_ckpt import open_ckpt, verify_ckpt
    from gpt2x.convert.mindspore_slices import read_strategies
    from gpt2x.convert.torch_pickle import open_torch
    from gpt2x.data.template import load_template
    from gpt2x.runtime.expressions import expression_fault
    from gpt2x.runtime.json_text import read_json

    def values(tensors):
        for tensor in tensors.values():
            tensor.read()

    return {
        "torch": ("x.bin", lambda path: values(open_torch(path))),
        "safetensors": ("x.safetensors", lambda path: values(open_safetensors(path))),
        "ckpt": ("x.ckpt", lambda path: (values(open_ckpt(path)), verify_ckpt(path))),
        "strategy": ("strategy.ckpt", lambda path: read_strategies([path])),
        "json": ("x.json", read_json),
        "yaml": ("x.yaml", lambda path: load_template(str(path), "template")),
        "expression": ("x.txt", lambda path: expression_fault(path.read_bytes().decode("latin-1"))),
    }


def main(arguments: list[str]) -> None:
    """Fuzz one format until libFuzzer's limits; a fault ends the process with its input."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install --target DIR atheris, and set PYTHONPATH=DIR:.")
    with atheris.instrument_imports(include=["gpt2x"]):
        choices = readers()
    from gpt2x.errors import UserError

    if not arguments or arguments[0] not in choices:
        sys.exit(f"{__doc__}\nFORMAT: {', '.join(choices)}")
    name, read = choices[arguments[0]]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="atheris-", dir="/dev/shm") as folder:
        path = Path(folder) / name

        def execute(content: bytes) -> None:
            path.write_bytes(content)
            try:
                read(path)
            except UserError:
                return

        atheris.Setup([sys.argv[0], *arguments[1:]], execute)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
