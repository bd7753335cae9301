"""Composition of the command line into a typed, validated configuration, by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.commands.configuration import typed_config
from gpt2x.commands.hydra_flags import plain_answers, read_arguments
from gpt2x.commands.hydra_grammar import read_overrides
from gpt2x.commands.loaded import run_folder
from gpt2x.commands.sweep_end import end_sweep
from gpt2x.commands.sweep_jobs import HydraJob, Run
from gpt2x.commands.sweep_start import CommandRejected, SweepStart
from gpt2x.config.files import SCHEMAS, schema_node
from gpt2x.config.messages import message_of
from gpt2x.config.options import CONF
from gpt2x.errors import UserError
from gpt2x.runtime.jobs import typed_command
from gpt2x.runtime.role import read_role


@cache
def register_schemas() -> None:
    """Register the dataclasses with Hydra as `schema/<name>`, and what `hydra.run.dir` of conf/train.yaml calls."""
    store = ConfigStore.instance()
    for name in SCHEMAS:
        store.store(group="schema", name=name, node=schema_node(name), package="_global_")
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def compose_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose `conf/<name>.yaml` with overrides, as the command line does, into the typed, validated configuration.

    Raises:
        UserError: for anything that is wrong with a key, an option or a value.
    """
    register_schemas()
    overrides = read_overrides(name, overrides)
    with plain_answers(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            values = hydra.compose(name, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(message_of(error, SCHEMAS[name])) from None
        return typed_config(name, values, overrides)


def hydra_main(name: str, run: Run) -> None:
    """Compose `conf/<name>.yaml` with the command line (`sys.argv`) and hand the typed configuration to `run`.

    If a job of a sweep (Hydra's multirun) fails, the others run nevertheless. Under the user's own msrun every process
    composes: one leaves a run directory, and the scheduler serves the others.

    Raises:
        UserError: for anything that is wrong with the command line.
        RunError: the run or jobs of a sweep failed; the message tells why, unless that has been shown.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come here, where they become messages
    register_schemas()
    sys.argv[1:] = read_arguments(name, sys.argv[1:])
    role = read_role(os.environ)
    if role.is_under_msrun:
        if {"-m", "--multirun"} & set(sys.argv):
            raise UserError("a multirun (-m) starts its processes itself: run it without msrun.")
        if role.is_scheduler or role.rank:
            sys.argv.append("hydra.run.dir=.")  # makes no directory
    job = HydraJob(name, run, role, typed_command())
    SweepStart.sweep_dir = None
    with SweepStart.owns:
        run_and_end(name, job)


def run_and_end(name: str, job: HydraJob) -> None:
    """Run what Hydra composes, and end the sweep if it is one.

    Raises:
        UserError: for anything that is wrong with the command line.
        RunError: as `hydra_main`.
    """
    try:
        with plain_answers():
            compose_and_run(name, job)
    except BaseException as error:
        if SweepStart.sweep_dir is None or not end_sweep(name, SweepStart.sweep_dir, error):
            raise
    else:
        if SweepStart.sweep_dir is not None:
            end_sweep(name, SweepStart.sweep_dir)
    if job.failure:
        raise job.failure


def compose_and_run(name: str, job: HydraJob) -> None:
    """Have Hydra compose the command line and call `job`, once or for each job of a sweep.

    Raises:
        UserError: for anything that is wrong with the command line.
    """
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except CommandRejected as refused:
        raise refused.error from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(message_of(error, SCHEMAS[name])) from None
    except ValueError as error:  # such as model=3
        if job.has_started or SweepStart.sweep_dir:
            raise
        raise UserError(f"the command line cannot be read ({error}); type GROUP=OPTION or KEY=VALUE.") from None
    except OSError as error:
        if job.has_started or error.filename is None:
            raise
        raise UserError(
            f"cannot write {error.filename}: {error.strerror}; give paths.outputs=DIRECTORY that is writable."
        ) from None
