"""Composition of the command line into a typed, validated configuration, by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.commands.configuration import typed_config
from gpt2x.commands.hydra_flags import plain_answers, read_arguments
from gpt2x.commands.hydra_grammar import read_overrides
from gpt2x.config import CommonConfig
from gpt2x.config.files import SCHEMAS, schema_node
from gpt2x.config.messages import message_of
from gpt2x.config.options import CONF
from gpt2x.errors import RunError, UserError
from gpt2x.runtime import launch, scheduler
from gpt2x.runtime.files import remove_empty
from gpt2x.runtime.role import Role, read_role
from gpt2x.runtime.sweep import SweepJob

Run = Callable[[str, Any, Role, Path], None]  # name of the entry, configuration, role of the process, run directory
EndSweep = Callable[[str, Path, list[SweepJob]], None]  # name of the entry, directory of the sweep, its jobs


def register_schemas() -> None:
    """Register the dataclasses with Hydra as `schema/<name>`."""
    store = ConfigStore.instance()
    for name in SCHEMAS:
        store.store(group="schema", name=name, node=schema_node(name), package="_global_")


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
        return typed_config(name, values)


def hydra_main(name: str, run: Run, end_sweep: EndSweep) -> None:
    """Compose `conf/<name>.yaml` with the command line (`sys.argv`) and hand the typed configuration to `run`.

    If a job of a multirun fails, the others run nevertheless. Under the user's own msrun every process composes: one
    leaves a run directory, and the scheduler serves the others.

    Raises:
        UserError: for anything that is wrong with the command line.
        RunError: jobs failed; the message tells why, unless that has been shown.
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
    with plain_answers():
        sweep_dir, jobs = compose_and_run(name, run, role)
    if sweep_dir:
        end_sweep(name, sweep_dir, jobs)
    failures = [job.failure for job in jobs if job.failure]
    if failures:
        message = "; ".join(dict.fromkeys(str(failure) for failure in failures if str(failure)))
        raise RunError(message, min(failure.status for failure in failures))


def compose_and_run(name: str, run: Run, role: Role) -> tuple[Path | None, list[SweepJob]]:
    """Have Hydra compose the command line and run its job, or the jobs of its multirun.

    A job's failure is not passed to Hydra, which would print a line about it and end the multirun.

    Returns:
        The directory of the multirun, or None; what was run.

    Raises:
        UserError: for anything that is wrong with the command line.
    """
    jobs: list[SweepJob] = []
    sweep_dirs: list[Path] = []
    has_started = False

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def job(values: Any) -> None:
        nonlocal has_started
        has_started = True
        settings = HydraConfig.get()
        is_sweeping = settings.mode == RunMode.MULTIRUN
        run_dir = Path(settings.runtime.output_dir)
        label = f"job {settings.job.num} ({settings.job.override_dirname})" if is_sweeping else ""
        failure = run_job(name, run, replace(role, is_sweeping=is_sweeping), values, run_dir, label)
        if is_sweeping:
            sweep_dirs.append(Path(os.path.abspath(settings.sweep.dir)))
        number = settings.job.num if is_sweeping else 0
        overrides = list(OmegaConf.to_container(settings.overrides.task, resolve=False))
        choices = dict(settings.runtime.choices)
        jobs.append(SweepJob(number, overrides, choices, values, run_dir, failure))

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(message_of(error, SCHEMAS[name])) from None
    except ValueError as error:  # such as model=3
        if has_started:
            raise
        raise UserError(f"the command line cannot be read ({error}); type GROUP=OPTION or KEY=VALUE.") from None
    except OSError as error:
        if has_started or error.filename is None:
            raise
        raise UserError(
            f"cannot write {error.filename}: {error.strerror}; give paths.outputs=DIRECTORY that is writable."
        ) from None
    return next(iter(sweep_dirs), None), jobs


def run_job(name: str, run: Run, role: Role, values: Any, run_dir: Path, label: str) -> RunError | None:
    """Run one composed configuration; return its failure.

    Args:
        name: the entry.
        run: what runs it.
        role: of this process.
        values: the composed configuration.
        run_dir: the directory that Hydra made; it is removed if nothing was written.
        label: what a failure that has been shown is called in the messages of a multirun, else "".
    """
    try:
        config = typed_config(name, values)
        if isinstance(config, CommonConfig):  # `prepare` has no processes
            launch.require_worker_num(config, role)
        if role.is_scheduler:
            scheduler.end_with_siblings()
            scheduler.serve()
        else:
            run(name, config, role, run_dir)
    except UserError as error:
        return RunError(str(error), status=2)
    except RunError as error:
        return RunError(f"{label} failed" if label else "", error.status)
    finally:
        remove_empty(run_dir)
    return None
