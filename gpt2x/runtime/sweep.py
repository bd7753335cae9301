"""The jobs of a Hydra multirun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.errors import RunError


@dataclass(frozen=True)
class SweepJob:
    """A job that Hydra has run: one of a multirun, or the only one.

    Attributes:
        number: the job's number in the multirun, from 0.
        overrides: the overrides of the command line for this job.
        choices: the option of each group.
        values: the composed configuration, valid or not.
        run_dir: the run directory; it is removed if the job wrote nothing.
        failure: None if the job succeeded.
    """

    number: int
    overrides: list[str]
    choices: dict[str, str]
    values: Any
    run_dir: Path
    failure: RunError | None
