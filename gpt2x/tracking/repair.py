"""Files of trackers that are written again from `metrics.jsonl`, as `gpt2x sync` does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import yaml

from gpt2x.errors import UserError
from gpt2x.tracking.registry import TRACKERS


def repair_files(directory: Path) -> list[str]:
    """Write what the files of trackers lack, of a run or of all runs below a directory; return what was written.

    Raises:
        UserError: a file cannot be read or written, or a tracker's package is not installed.
    """
    written = []
    for metrics in sorted(Path(directory).rglob("metrics.jsonl")):
        for name in trackers_of(metrics.parent):
            try:
                repair = getattr(
                    import_module(f"{TRACKERS.package}.{name}"), "repair", None
                )  # not every tracker has it
                if repair is not None and repair(metrics.parent):
                    written.append(f"{metrics.parent}: tracker={name}")
            except (OSError, ValueError) as error:
                raise UserError(f"{metrics.parent}: tracker={name} cannot be written again: {error}") from error
    return written


def trackers_of(run_dir: Path) -> list[str]:
    """Return the names of the trackers that `config.yaml` of a run directory names."""
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        names = [config["tracker"]["name"], *config["tracker"].get("also", [])]
        return [name for name in names if name in TRACKERS.names()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return []
