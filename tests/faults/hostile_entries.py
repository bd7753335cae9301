"""What reads the files that users bring: each entry point reads all of an input, as a command would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

from gpt2x.checkpoint import open_checkpoint
from gpt2x.checkpoint.tensors import pieces
from gpt2x.commands.checkpoint import main as checkpoint
from gpt2x.commands.convert import main as convert
from gpt2x.config import PredictConfig
from gpt2x.convert import load_source
from gpt2x.data.reading.files import read_documents
from gpt2x.data.template import load_template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.generate.prompts import read_prompts
from gpt2x.lora.open import open_adapter
from gpt2x.serve import requests
from gpt2x.train.resume import find_resumption
from tests.support.configs import typed

TEXT = "The ferry left — 12 lamps, don't.  日本\n" * 20 + "a" * 2000 + "!"


def load(path: Path) -> None:
    """`load=`: open a model, verify it, read all of its weights and the tokenizer."""
    source = load_source(path)
    weights = source.weights()
    for name in weights:
        for _ in pieces(weights.box(name)):
            pass
    if source.tokenizer_dir is not None:
        tokenizer(source.tokenizer_dir)


def adapters(path: Path) -> None:
    """`adapters=`: open an adapter, which reads all of its factors."""
    for product in open_adapter(path).products.values():
        product.a.sum(), product.b.sum()


def tokenizer(path: Path) -> None:
    """`tokenizer.path=`: open, encode and decode."""
    opened = Tokenizer.load(path)
    opened.decode(opened.encode(TEXT))
    opened.encode_batch([TEXT, ""])
    opened.token_bytes()


def resume(path: Path) -> None:
    """`resume=`: the checkpoint that a training would continue from, and its position."""
    from gpt2x.train.state import LoopState

    config = typed("train", f"resume={path}", "trainer.max_steps=2", "trainer.seq_len=16")
    LoopState.from_dict(find_resumption(config, path / "new").saved.loop_state)


def dataset(path: Path) -> None:
    """`dataset.path=`: all documents of a file."""
    for _ in read_documents(path, "text"):
        pass


def prompts(path: Path) -> None:
    """`prompts_file=`."""
    config = typed("predict", f"load={path.parent}", f"prompts_file={path}")
    assert isinstance(config, PredictConfig)
    read_prompts(config)


def to_gpt2x(path: Path) -> None:
    """`gpt2x convert --to gpt2x`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        convert(["--to", "gpt2x", "--output", f"{folder}/out", str(path)])


def inspect(path: Path) -> None:
    """`gpt2x checkpoint inspect`, `verify` and `merge`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checkpoint(["inspect", str(path)])
        checkpoint(["verify", str(path)])
        checkpoint(["merge", str(path), f"{folder}/out"])
        for group in open_checkpoint(path).groups():
            open_checkpoint(path).tensors(group)


def serve(request: Any) -> None:
    """A request to a served model: its table and its parameters."""
    table, params = request
    requests.read_prompts(pandas.DataFrame(table))
    requests.read_params(params, 1, "fp32")


def template(path: Path) -> None:
    """`dataset.template=`."""
    load_template(str(path), "dataset.template").prompt("a", "b")


def command_line(overrides: list[str]) -> None:
    """Keys typed after `train.py`."""
    typed("train", *overrides)


ENTRIES: dict[str, Callable[[Any], None]] = {
    "load=": load,
    "adapters=": adapters,
    "tokenizer.path=": tokenizer,
    "resume=": resume,
    "dataset.path=": dataset,
    "prompts_file=": prompts,
    "convert": to_gpt2x,
    "checkpoint": inspect,
    "serve": serve,
    "template=": template,
    "command line": command_line,
}


def answer(entry: str, given: Any) -> None:
    """Pass an input to an entry point; Hydra's errors of a command line become messages as in a script."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        ENTRIES[entry](given)
    except OmegaConfBaseException as error:
        raise UserError(str(error)) from error
