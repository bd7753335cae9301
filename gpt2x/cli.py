"""Composition of the command line into a typed, validated configuration, and errors as users should see them."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x import checks
from gpt2x import config as schema
from gpt2x.errors import RunError, UserError
from gpt2x.runtime import launch, scheduler
from gpt2x.runtime.interrupt import Terminated

Node = TypeVar("Node")
CONF = Path(__file__).resolve().parents[1] / "conf"
SCHEMAS: dict[str, type] = {
    "train": schema.TrainConfig,
    "evaluate": schema.EvaluateConfig,
    "predict": schema.PredictConfig,
    "prepare": schema.PrepareConfig,
}
VALIDATIONS: dict[str, Callable[[Any], None]] = {
    "train": checks.validate_train,
    "evaluate": checks.validate_evaluate,
    "predict": checks.validate_predict,
    "prepare": lambda config: None,
}


@dataclass(frozen=True)
class Job:
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
    for name, node in SCHEMAS.items():
        store.store(group="schema", name=name, node=node, package="_global_")


def to_typed(name: str, values: Any) -> Any:
    """The dataclass of entry point `name` from a composed config, validated.

    Raises:
        UserError: for a missing value, an unknown key, a wrong type, or what the cross-field checks refuse.
    """
    container = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else dict(values)
    try:
        typed = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), container)
    except OmegaConfBaseException as error:  # `+model.foo=1` slips past composition, not past this
        raise UserError(explain(error, SCHEMAS[name])) from None
    missing = sorted(OmegaConf.missing_keys(typed))
    if missing:
        raise UserError(f"{missing[0]} has no value: give {missing[0]}=… (missing: {', '.join(missing)})")
    config = OmegaConf.to_object(typed)
    VALIDATIONS[name](config)
    return config


def save_config(config: Any, path: Path) -> None:
    """Write a typed configuration, resolved, as YAML; directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def load_config(name: str, path: Path) -> Any:
    """Read what `save_config` wrote."""
    return to_typed(name, OmegaConf.load(path))


def hydra_entry(
    name: str, run: Callable[[Any], None], end_sweep: Callable[[Path, list[Job]], None] | None = None
) -> None:
    """Compose `conf/<name>.yaml` with the command line and hand the typed configuration to `run`.

    After a multirun `end_sweep` is given the sweep's directory and its jobs.

    A user's mistake ends the program with one message and status 2; in a multirun the other jobs run nevertheless.
    Under a user's own msrun every process comes here: one leaves a run directory, and the scheduler serves the others.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come to `guarded`, which prints them
    register_schemas()

    started: list[bool] = []
    jobs: list[Job] = []  # with failures that are kept from Hydra, which would print a line of its own and end a sweep
    sweep: list[Path] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def job(values: Any) -> None:
        started.append(True)
        settings, failure = HydraConfig.get(), None
        try:
            config = to_typed(name, values)
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
        jobs.append(Job(settings.job.num if is_multirun() else 0, overrides, choices, values, output_dir(), failure))

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


def is_multirun() -> bool:
    """Whether this process runs one job of Hydra's multirun after the other."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def remove_empty(run_dir: Path) -> None:
    """Take away the directory that Hydra makes for every job, and its parents, where nothing was written."""
    for directory in (run_dir, *run_dir.parents[:3]):
        if directory == Path.cwd() or directory in Path.cwd().parents:
            return
        try:
            directory.rmdir()
        except OSError:
            return


def output_dir() -> Path:
    """The run directory: the launcher's word in its processes, else what Hydra chose for this job."""
    return Path(os.environ.get(launch.RUN_DIR) or HydraConfig.get().runtime.output_dir)


def guarded(job: Callable[[], Any], root: type | None = None) -> int:
    """Run `job`; print a user's mistake as one message. Returns the exit status."""
    status = 2
    try:
        job()
    except UserError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = explain(error, root or schema.TrainConfig)
    except RunError as failure:
        message, status = str(failure), failure.status
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        print("terminated" if is_terminated else "interrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if is_terminated else signal.SIGINT)
    else:
        return 0
    if message:
        print(f"error: {message}", file=sys.stderr)
    return status


def run_and_leave(job: Callable[[], Any], root: type | None = None) -> NoReturn:
    """`guarded` in one of several processes, which ends with it."""
    try:
        status = guarded(job, root)
    except Exception:
        traceback.print_exc()
        status = 1
    launch.leave(status)


def explain(error: BaseException, root: type) -> str:
    """Hydra's or OmegaConf's error in one line: the key, what is wrong, and a did-you-mean.

    Hydra wraps OmegaConf's error, which alone knows the key and the value.
    """
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append(str(cause))
        cause = cause.__cause__
    message = "\n".join(parts)
    group = re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)/([^'/]+)'", message)
    if group:
        folder, option = group.groups()
        known = sorted(re.findall(r"^\t(\S+)$", message, re.MULTILINE))  # those of --config-dir as well
        return unknown_option(folder, option, known)
    full_key = re.search(r"full_key: (\S+)", message)
    unknown = (
        re.search(r"Could not override '([^']+)'", message)
        or re.search(r"(?:Key|key) '([^']+)' (?:is )?not in", message)
        or re.search(r"No match in the defaults list for '([^']+)'", message)
    )
    if unknown and "not converted" not in message and "Cannot convert" not in message:
        key = unknown.group(1)
        if full_key and full_key.group(1).endswith(key):
            key = full_key.group(1)
        return f"{key} is not a key or a group of the configuration; {similar_keys(key, root)}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("reference_type=", "object_type=", "full_key:"))]
    lines = [line for line in lines if "HYDRA_FULL_ERROR" not in line]
    override = re.search(r"Error merging override (\S+)", message)
    if override and "is not a ListConfig" in message:
        key, _, value = override.group(1).partition("=")
        return f"{key}={value}: a list is wanted, as '{key}=[\"{value}\"]'"
    if override:
        return f"{override.group(1)}: {lines[-1]}"
    key = f"{full_key.group(1)}: " if full_key else ""
    return key + "; ".join(dict.fromkeys(lines))


def suggestion(word: str, choices: list[str]) -> str:
    """'did you mean X? ' or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.75)
    return f"did you mean {close[0]}? " if close else ""


def similar_keys(key: str, root: type) -> str:
    """A did-you-mean, or the keys that stand where `key` was looked for."""
    keys = all_keys(root)
    parent = key.rpartition(".")[0]
    siblings = [other for other in keys if other.rpartition(".")[0] == parent and other != key]
    close = suggestion(key, siblings or keys)
    return close.rstrip() or f"keys there: {', '.join(sorted(set(siblings or keys)))}"


def known_models() -> dict[str, schema.ModelConfig]:
    """The options of `conf/model` by name."""
    return {name: read_option("model", name, schema.ModelConfig) for name in options("model")}


def options(group: str) -> list[str]:
    """The names of the options in `conf/<group>`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def unknown_option(group: str, name: str, known: list[str]) -> str:
    """What is wrong with an option that a group does not have: a did-you-mean, and those it has."""
    return f"{group}={name} is not an option; {suggestion(name, known)}options: {', '.join(known)}"


def read_option(group: str, name: str, node: type[Node]) -> Node:
    """The option `name` of `conf/<group>` as its dataclass `node`, for an entry point that Hydra does not compose.

    Raises:
        UserError: there is no such option.
    """
    if name not in (known := options(group)):
        raise UserError(unknown_option(group, name, known))
    values = OmegaConf.load(CONF / group / f"{name}.yaml")
    option = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), values))
    assert isinstance(option, node)
    return option


def all_keys(root: type, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration dataclass."""
    keys = []
    for entry in fields(root):
        keys.append(prefix + entry.name)
        nested = getattr(schema, str(entry.type), None)
        if isinstance(nested, type) and is_dataclass(nested):
            keys += all_keys(nested, f"{prefix}{entry.name}.")
    return keys
