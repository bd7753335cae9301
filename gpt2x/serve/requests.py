"""What a caller of a served model sends, checked, and the caller's mistakes as MLflow's answers (status 400)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from gpt2x.config import GenerationConfig
from gpt2x.config.keys import typed_plain
from gpt2x.config.rules import validate_generation
from gpt2x.errors import UserError, require, require_choice
from gpt2x.generate.prompts import Prompt
from gpt2x.runtime.json_text import well_formed

if TYPE_CHECKING:
    import pandas

PROMPT, INPUT = "prompt", "input"  # columns of a request
MAX_PROMPTS = 1024  # of a request: some minutes of computing
MAX_CHARS = 1 << 20  # of all prompts of a request; a prompt that fits a GPT-2 of 1024 positions has some thousands
MAX_NUMBER = 1 << 31  # of a parameter that is a whole number
WAITING = 32  # requests that a model computes or that wait for it; one more is rejected
NOT_OF_CALLERS = ("draft", "batch_size", "weights")  # which the server decides: a draft is a directory there


@contextmanager
def answered_by_mlflow() -> Iterator[None]:
    """Turn a mistake of the caller into the exception that MLflow's server answers with status 400.

    Raises:
        MlflowException: for each UserError, with its message; params are named as the caller writes them.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except UserError as error:
        raise MlflowException.invalid_parameter_value(str(error).replace("generation.", "")) from None


class Queue:
    """Lets requests to one model through one after the other, and rejects those beyond `WAITING`.

    A request that waits holds a thread of the server and its texts, so that not any number of them may.
    """

    def __init__(self) -> None:
        self._places, self._turn = threading.BoundedSemaphore(WAITING), threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the model.

        Raises:
            UserError: too many requests wait.
        """
        require(
            self._places.acquire(blocking=False),
            f"{WAITING} requests wait for this model already; send it again later.",
        )
        try:
            with self._turn:
                yield
        finally:
            self._places.release()


def read_prompts(table: pandas.DataFrame) -> list[Prompt]:
    """Return the prompts of a request, one per row.

    Args:
        table: as MLflow passes it, with the column `prompt`; for a model with a template, `input` may stand beside it.

    Raises:
        UserError: no row, or a value that is not a text, with the row from 1.
    """
    require(len(table) <= MAX_PROMPTS, f"the request has {len(table)} prompts; send at most {MAX_PROMPTS} at a time.")
    require(len(table) > 0, 'the request has no prompt; send at least one, as {"inputs": {"prompt": ["To be"]}}.')
    texts = column(table, PROMPT)
    for number, text in enumerate(texts, 1):
        require(isinstance(text, str), f"prompt {number} is {type(text).__name__}, not a text; send a string.")
    num_chars = sum(len(text) for name in (PROMPT, INPUT) for text in column(table, name) if isinstance(text, str))
    require(num_chars <= MAX_CHARS, f"the prompts have {num_chars:,} characters; send at most {MAX_CHARS:,} at a time.")
    inputs = [text if isinstance(text, str) else "" for text in column(table, INPUT)]  # a missing one is None or NaN
    return [Prompt(*well_formed(list(row))) for row in zip(texts, inputs, strict=True)]


def column(table: pandas.DataFrame, name: str) -> list[Any]:
    """Return the values of a column, empty texts if there is none."""
    return list(table[name]) if name in table.columns else [""] * len(table)


def read_params(params: Mapping[str, Any] | None, batch_size: int, weights: str) -> tuple[GenerationConfig, int]:
    """Return the decoding options of a request and its seed.

    Args:
        params: those of the model's signature; one that is null or missing has the default of `predict.py`.
        batch_size: prompts decoded together.
        weights: the form in which a step reads the weights.

    Raises:
        UserError: a value is out of bounds, or does not fit the others.
    """
    values = {name: _plain(value) for name, value in (params or {}).items()}
    values = {name: value for name, value in values.items() if value is not None and value != []}
    allowed = [entry.name for entry in fields(GenerationConfig) if entry.name not in NOT_OF_CALLERS]
    for name, value in values.items():
        require_choice("a parameter of the request", name, allowed)
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        require(all(abs(one) < MAX_NUMBER for one in numbers), f"{name} must be below {MAX_NUMBER:,} in size.")
    stated = values | {"batch_size": batch_size, "weights": weights}
    generation = typed_plain(stated, GenerationConfig, "generation.", "the request")
    validate_generation(generation)
    seed = 0 if generation.seed is None else generation.seed
    require(seed >= 0, f"seed={seed} must be at least 0.")
    generation = replace(generation, seed=None)
    return generation, seed


def _plain(value: Any) -> Any:
    """Return what MLflow makes of a parameter, in which numbers and lists may be numpy's, as plain data."""
    return value.tolist() if hasattr(value, "tolist") else value
