"""What a caller of a served model sends, checked, and the caller's mistakes as MLflow's answers (status 400)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpt2x.config import GenerationConfig
from gpt2x.config.rules import validate_generation
from gpt2x.errors import UserError, require
from gpt2x.generate.prompts import Prompt
from gpt2x.runtime.json_text import well_formed

if TYPE_CHECKING:
    import pandas

PROMPT, INPUT = "prompt", "input"  # columns of a request


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


def read_prompts(table: pandas.DataFrame) -> list[Prompt]:
    """Return the prompts of a request, one per row.

    Args:
        table: as MLflow passes it, with the column `prompt`; for a model with a template, `input` may stand beside it.

    Raises:
        UserError: no row, or a value that is not a text, with the row from 1.
    """
    require(len(table) > 0, 'the request has no prompt; send at least one, as {"inputs": {"prompt": ["To be"]}}.')
    texts = column(table, PROMPT)
    for number, text in enumerate(texts, 1):
        require(isinstance(text, str), f"prompt {number} is {type(text).__name__}, not a text; send a string.")
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
    values = {name: value for name, value in (params or {}).items() if value not in (None, [])}
    seed = values.pop("seed", 0)
    generation = GenerationConfig(**values, batch_size=batch_size, weights=weights)
    validate_generation(generation)
    return generation, seed
