"""The directories that Hydra creates, before it does: ~ in them, and no empty ones."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from gpt2x.commands.sweep_start import CommandRejected, set_sweep_dir
from gpt2x.config.locations import expanded, with_home
from gpt2x.errors import UserError
from gpt2x.runtime.files import create_new


class Directories(Callback):
    """Settles the directory of a run or a sweep, which the options derive from `paths.outputs` or `paths.cache`."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle `hydra.run.dir`; create one that is named by the time of day, so that no other process has it.

        Raises:
            CommandRejected: a directory is empty, or its `~user` names nobody.
        """
        directory = settled(config, "hydra.run.dir")
        with suppress(OmegaConfBaseException, OSError):  # said by Hydra, which does the same next
            if "${now:" in str(config.hydra.run._get_node("dir")._value()):
                directory = str(create_new(Path(directory or config.hydra.run.dir)))
        if directory is not None:
            with read_write(config), open_dict(config):
                config.hydra.run.dir = directory

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle `hydra.sweep.dir`.

        Raises:
            CommandRejected: a directory is empty, or its `~user` names nobody.
        """
        directory = settled(config, "hydra.sweep.dir")
        if directory is not None:
            set_sweep_dir(config, directory)


def settled(config: DictConfig, name: str) -> str | None:
    """Return the directory that a key of Hydra gives, if it begins with ~ and thus is a different one; else None."""
    with suppress(OmegaConfBaseException):  # a wrong reference, which Hydra reports when it reads the key
        try:
            for key in ("paths.outputs", "paths.cache"):
                with_home(OmegaConf.select(config, key), key)
            directory = OmegaConf.select(config, name)
            changed = expanded(str(directory), name)
        except UserError as error:
            raise CommandRejected(error) from None
        return changed if changed != directory else None
    return None
