"""Composition of the command line into a typed, validated configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gpt2x.commands.configuration import typed_config
from gpt2x.config import schema
from gpt2x.config.files import SCHEMAS, schema_node
from gpt2x.config.messages import message_of
from gpt2x.config.options import CONF
from gpt2x.errors import RunError, UserError
from gpt2x.runtime import launch, scheduler
from gpt2x.runtime.exits import guarded, run_and_leave
from gpt2x.runtime.hydra_job import is_multirun, output_dir, remove_empty


@dataclass(frozen=True)
class SweepJob:
    """What Hydra ran, once or as one of a multirun, at its end.

    Attributes:
        number: in the multirun.
        overrides: of the command line, for this job.
        choices: the option of each group.
        values: the composed configuration, valid or not.
        run_dir: where it wrote; gone where it wrote nothing.
        failure: None where it succeeded.
    """

    number: int
    overrides: list[str]
    choices: dict[str, str]
    values: Any
    run_dir: Path
    failure: RunError | None


def register_schemas() -> None:
    """Make the dataclasses known to Hydra as `schema/<name>`."""
    store = ConfigStore.instance()
    for name in SCHEMAS:
        store.store(group="schema", name=name, node=schema_node(name), package="_global_")


def compose_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose `conf/<name>.yaml` with overrides, as the command line does, into the typed, validated configuration.

    Raises:
        UserError: for anything that is wrong with a key, an option or a value.
    """
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            values = hydra.compose(name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(message_of(error, SCHEMAS[name])) from None
        return typed_config(name, values)


def hydra_entry(
    name: str, run: Callable[[Any], None], end_sweep: Callable[[Path, list[SweepJob]], None] | None = None
) -> None:
    """Compose `conf/<name>.yaml` with the command line and hand the typed configuration to `run`.

    After a multirun `end_sweep` is given the sweep's directory and its jobs.

    A user's mistake ends the program with one message and status 2; in a multirun the other jobs run nevertheless.
    Under a user's own msrun every process comes here: one leaves a run directory, and the scheduler serves the others.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come to `guarded`, which prints them
    register_schemas()

    started: list[bool] = []
    jobs: list[
        SweepJob
    ] = []  # with failures that are kept from Hydra, which would print a line of its own and end a sweep
    sweep: list[Path] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def job(values: Any) -> None:
        started.append(True)
        settings, failure = HydraConfig.get(), None
        try:
            config = typed_config(name, values)
            if isinstance(config, schema.CommonConfig):  # others run as one process
                launch.require_as_many(config)
            if launch.is_scheduler():
                scheduler.end_with_siblings()
                scheduler.serve()
            else:
                run(config)
        except UserError as error:
            failure = RunError(str(error), status=2)
        except RunError as error:
            job = settings.job
            message = f"job {job.num} ({job.override_dirname}) failed" if is_multirun() else ""
            failure = RunError(message, error.status)
        finally:
            remove_empty(output_dir())
        if is_multirun():
            sweep.append(Path(os.path.abspath(settings.sweep.dir)))
        overrides, choices = list(settings.overrides.task), dict(settings.runtime.choices)
        jobs.append(
            SweepJob(settings.job.num if is_multirun() else 0, overrides, choices, values, output_dir(), failure)
        )

    def guarded_job() -> None:
        if launch.is_under_msrun():
            if {"-m", "--multirun"} & set(sys.argv):
                raise UserError("a multirun (-m) starts its processes itself: run it without msrun")
            if launch.is_scheduler() or launch.worker_rank():
                sys.argv.append("hydra.run.dir=.")  # makes no directory
        try:
            job()
        except OSError as error:
            if started or error.filename is None:
                raise
            raise UserError(
                f"cannot write {error.filename}: {error.strerror}; give paths.outputs=DIRECTORY that is writable"
            ) from None
        if sweep and end_sweep:
            end_sweep(sweep[0], jobs)
        failures = [job.failure for job in jobs if job.failure]
        if failures:
            message = "; ".join(dict.fromkeys(str(failure) for failure in failures if str(failure)))
            raise RunError(message, min(failure.status for failure in failures))

    if launch.is_under_msrun():
        run_and_leave(guarded_job, SCHEMAS[name])
    sys.exit(guarded(guarded_job, SCHEMAS[name]))
