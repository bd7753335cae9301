"""From a typed configuration to a run: in this process, or in as many as the layout has.

A command that runs a model is one module here, of the command's name, with three functions (`Command`). They are
imported only when the configuration is known to be valid, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from gpt2x.commands.configuration import save_config, typed_config
from gpt2x.commands.run_directory import LOGGED, owned_run
from gpt2x.config import CommonConfig, TrainConfig
from gpt2x.config.layout import world_size
from gpt2x.config.rules import is_plan
from gpt2x.errors import NothingLeftError, RunError
from gpt2x.runtime import clock, heartbeat, interrupt, launch
from gpt2x.runtime.console import console
from gpt2x.runtime.jobs import COMMAND, typed_command, write_command
from gpt2x.runtime.role import Role
from gpt2x.runtime.run_log import RUN_LOG, run_log

if TYPE_CHECKING:
    from gpt2x.parallel.mesh import Mesh


class Decision(Protocol):
    """Everything that is known about a run before a device is set up."""

    @property
    def config(self) -> Any:
        """The configuration that was typed."""

    @property
    def resolved(self) -> Any:
        """The configuration with what was decided, as `config.yaml` shows it and the workers read it."""

    @property
    def run_dir(self) -> Path:
        """Where the run writes."""


class Command(Protocol):
    """What a module of this package defines to run a model."""

    def decide(self, config: Any, run_dir: Path, role: Role) -> Decision:
        """Read what the configuration names, check that it fits together, and write nothing to the run directory.

        Raises:
            UserError: for anything the user can put right.
        """

    def open_run_dir(self, decision: Any) -> None:
        """Write what the run directory holds before the first step; called once per run."""

    def run(self, decision: Any, mesh: Mesh) -> None:
        """Run, as one process of the layout."""


def command(name: str) -> Command:
    """Import the module of a command."""
    return cast(Command, import_module(f"gpt2x.commands.{name}"))


def start(name: str, config: Any, role: Role, run_dir: Path) -> None:
    """Run command `name` in this process, or in as many as the layout has.

    A job of a multirun gets a process of its own, since MindSpore cannot be set up twice in one.

    Raises:
        UserError: for anything the user can put right.
        RunError: a process that was started here failed; its error has been shown.
    """
    interrupt.catch(is_launched=role.is_launched)
    interrupt.check()  # a launcher's process may get a next job after the signal
    if not isinstance(config, CommonConfig):  # `prepare` has no processes
        import_module(f"gpt2x.commands.{name}").run(config)
        return
    if role.is_sweeping:
        clock.begin_job()
        run_log.close()  # a job that is rejected before it has a directory may have left lines
    interrupt.set_grace(config.launch.grace_s)
    if is_plan(config):
        show(config)
        return
    if role.rank:
        console.silence()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore logs errors only; read when it is imported
    if not role.is_worker:
        from gpt2x.commands.start_checks import check_start

        check_start(config)
    is_here = role.is_worker or (world_size(config.parallel) == 1 and not role.is_sweeping)
    if is_here:
        os.environ.update(launch.timeouts(config.launch, config.hardware.device_target))
    with owned_run(name, config, role, run_dir) as (config, run_dir):
        try:
            (run_here if is_here else run_in_workers)(name, config, role, run_dir)
        except NothingLeftError:
            if config.resume == "auto" and role.decides:  # it may have been killed after its last checkpoint
                import_module("gpt2x.commands.train").end_again(run_dir)
            raise


def show(config: CommonConfig) -> None:
    """Print the plan of a run; nothing is computed, and of data or weights nothing is read.

    Raises:
        UserError: as `show_plan` and `show_inference_plan`.
    """
    if isinstance(config, TrainConfig):
        from gpt2x.planner.report import show_plan

        show_plan(config)
    else:
        from gpt2x.commands.inference_plan import show_inference_plan

        show_inference_plan(config)


def run_here(name: str, config: CommonConfig, role: Role, run_dir: Path) -> None:
    """Decide and run, as one process of the layout.

    A process that was launched on a single node decides by itself, since the launcher has resolved everything. The
    processes of msrun, or of several launchers, first agree on what rank 0 decides.
    """
    from gpt2x.runtime.device import compiler_dumps

    this = command(name)
    is_agreed = role.is_launched and config.launch.num_nodes == 1
    if world_size(config.parallel) == 1 or is_agreed:
        decision = this.decide(config, run_dir, role)
        mesh = open_mesh(config, role)
    else:
        mesh = open_mesh(config, role)
        decision = decide_together(name, config, mesh, run_dir)
    if role.decides:
        open_run_dir(name, decision)
    elif role.rank == 0:
        open_log(name, decision)
    heartbeat.does(name)
    with compiler_dumps(decision.run_dir / launch.LOGS):
        this.run(decision, mesh)


def run_in_process(name: str, config: Any, run_dir: Path) -> None:
    """Run command `name` as a single process, here, writing to `run_dir`; can be called repeatedly.

    Raises:
        UserError: for anything the user can put right.
    """
    os.environ.setdefault("GLOG_v", "3")
    if isinstance(config, CommonConfig):
        try:
            with owned_run(name, config, Role(), run_dir) as (config, run_dir):
                run_here(name, config, Role(), run_dir)
        finally:
            run_log.close()
    else:
        start(name, config, Role(), run_dir)


def run_in_workers(name: str, config: CommonConfig, role: Role, run_dir: Path) -> None:
    """Decide once, then start this node's processes of the layout and wait for their end."""
    decision = command(name).decide(config, run_dir, role)
    open_run_dir(name, decision)
    run_dir = decision.run_dir.absolute()
    path = launch.config_path(config.launch.node_rank, run_dir)
    save_config(decision.resolved, path)
    try:
        launch.launch([sys.executable, "-m", "gpt2x.commands.worker", name, str(path)], config, run_dir)
    except KeyboardInterrupt:
        close_tracking(run_dir, "KILLED")
        raise
    except RunError:
        close_tracking(run_dir, "FAILED")
        raise
    finally:
        console.rich.show_cursor()  # an interrupted bar has hidden it
        if role.is_sweeping:  # otherwise the end of this process is a part of the log
            run_log.close()


def open_mesh(config: CommonConfig, role: Role) -> Mesh:
    """Set up the device and join the other processes, in the order that MindSpore documents."""
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.runtime.device import bind_cores, set_up_device

    set_up_device(config.hardware, role.device_id)
    mesh = Mesh(config.parallel, config.hardware.device_target, role=role)
    if config.hardware.bind_cores:
        bind_cores()
    return mesh


def decide_together(name: str, config: CommonConfig, mesh: Mesh, run_dir: Path) -> Decision:
    """Decide on rank 0, then on the other ranks from rank 0's run directory and resolved configuration."""
    from gpt2x.parallel.agreement import from_main

    decision, answer = None, ""
    if mesh.is_main:
        try:
            decision = command(name).decide(config, run_dir, mesh.role)
            answer = json.dumps([str(decision.run_dir.absolute()), asdict(decision.resolved)])
        except NothingLeftError as error:  # which is no failure, so that the others would wait
            answer = json.dumps([str(error), None])
    rank0_run_dir, rank0_values = json.loads(from_main(mesh, answer))
    if rank0_values is None:
        raise NothingLeftError(rank0_run_dir)
    if decision:
        return decision
    resolved = replace(typed_config(name, rank0_values), launch=config.launch)
    return command(name).decide(resolved, Path(rank0_run_dir), mesh.role)


def open_run_dir(name: str, decision: Decision) -> None:
    """Begin the run directory, or a new part of it."""
    command(name).open_run_dir(decision)
    if name in LOGGED and decision.config.launch.node_rank == 0:
        try:
            write_command(decision.run_dir, typed_command())
        except OSError as error:
            path = decision.run_dir / COMMAND
            console.warn(f"{path} cannot be written ({error.strerror or error}); the run continues")
    open_log(name, decision, typed_command())


def open_log(name: str, decision: Decision, typed: str = "") -> None:
    """Append what this process prints to the run's log; `typed` begins a new part of it."""
    if name in LOGGED and decision.config.launch.node_rank == 0:
        error = run_log.open(decision.run_dir / RUN_LOG, typed)
        if error:
            console.warn(f"{decision.run_dir / RUN_LOG} cannot be written ({error.strerror}); the run has no log")


def close_tracking(run_dir: Path, status: str) -> None:
    """End the MLflow run of a rank 0 that could not."""
    from gpt2x.tracking.mlflow_sync import end_abandoned

    end_abandoned(run_dir, status)
