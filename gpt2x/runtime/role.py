"""What one process does in a run: read once at its entry, then passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpt2x.errors import UserError

LAUNCHER = "GPT2X_LAUNCHER"  # in a process started by `gpt2x.runtime.launch`: the launcher's process id


@dataclass(frozen=True)
class Role:
    """One process of a run; without arguments, the only one.

    Attributes:
        rank: the rank that MindSpore will give to this process, too; 0 for all that are no workers.
        device_id: number of this process's device among those that it sees; None: MindSpore chooses.
        is_launched: True if `gpt2x.runtime.launch` started this process.
        msrun_workers: --worker_num of the user's own msrun that started this process, else None.
        is_scheduler: True if this process only connects the workers to each other.
        is_sweeping: True if this process runs the jobs of a Hydra multirun, one after the other.
        has_named_run_dir: True if the user, or the sweep, has named the run directory: a run is looked for only there.
    """

    rank: int = 0
    device_id: int | None = None
    is_launched: bool = False
    msrun_workers: int | None = None
    is_scheduler: bool = False
    is_sweeping: bool = False
    has_named_run_dir: bool = False

    @property
    def is_under_msrun(self) -> bool:
        """True if the user's own msrun started this process."""
        return self.msrun_workers is not None

    @property
    def is_worker(self) -> bool:
        """True if this process was started to compute: its run has begun elsewhere, or together with others."""
        return self.is_launched or (self.is_under_msrun and not self.is_scheduler)

    @property
    def decides(self) -> bool:
        """True on the process that decides for the whole run: the launcher, the only process, rank 0 under msrun."""
        return not self.is_launched and self.rank == 0


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Return True if a launcher or msrun has given this process a role in MindSpore's cluster."""
    return bool(environment.get("MS_ROLE", "").strip())


def read_role(environment: Mapping[str, str], *, is_sweeping: bool = False) -> Role:
    """Return the role that the environment variables of the launcher, or of msrun, describe.

    A variable that is empty or blank counts as not set.

    Raises:
        UserError: msrun left the ranks to MindSpore, or a number that is none.
    """
    mindspore_role = environment.get("MS_ROLE", "").strip()
    is_launched = LAUNCHER in environment
    is_worker = mindspore_role == "MS_WORKER"
    node_id = _number(environment, "MS_NODE_ID") if is_worker else None
    if is_worker and node_id is None:
        raise UserError("msrun was started on several nodes without --node_rank: give each node its own, from 0.")
    has_msrun = mindspore_role and not is_launched
    return Role(
        rank=node_id or 0,
        device_id=_number(environment, "DEVICE_ID") if is_worker else None,  # some clusters set it for all processes
        is_launched=is_launched,
        msrun_workers=(_number(environment, "MS_WORKER_NUM") or 0) if has_msrun else None,
        is_scheduler=mindspore_role == "MS_SCHED",
        is_sweeping=is_sweeping,
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(
            f"the environment variable {name}={text} is no whole number from 0 on. msrun sets it; where nothing "
            f"started several processes, unset MS_ROLE and {name}."
        )
    return int(text) if text else None
