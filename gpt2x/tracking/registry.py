"""The trackers that `tracker.name` and `tracker.also` name."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError, did_you_mean
from gpt2x.extensions import Extensions
from gpt2x.tracking.guarded import Several
from gpt2x.tracking.tracker import Tracker

TRACKERS = Extensions("gpt2x.tracking.trackers", "create", "tracker")


def create_tracker(config: TrackerConfig, outputs: Path) -> Tracker:
    """Return the tracker of `config.name`, and those of `config.also`, as one.

    Nothing is created or contacted before its `start`. Each tracker gets the settings that it has.

    Args:
        config: the group `tracker`.
        outputs: `paths.outputs`.

    Raises:
        UserError: there is no such tracker, or its settings cannot be used.
    """
    names = list(dict.fromkeys([config.name, *config.also]))
    keys = {name: [entry.name for entry in fields(TRACKERS.settings_class(name))] for name in names}
    check_settings(config, keys)
    trackers: list[Tracker] = [
        TRACKERS.load(name)(
            replace(config, name=name, also=[], settings={k: v for k, v in config.settings.items() if k in keys[name]}),
            outputs,
        )
        for name in names
    ]
    return trackers[0] if len(trackers) == 1 else Several(trackers)


def check_settings(config: TrackerConfig, keys: dict[str, list[str]]) -> None:
    """Raise UserError for a setting that none of the chosen trackers has; `keys` are those of each."""
    choices = sorted({key for names in keys.values() for key in names})
    for key in config.settings:
        if key not in choices:
            allowed = f"settings are: {', '.join(choices)}" if choices else f"tracker={config.name} has no settings"
            raise UserError(f"tracker.settings.{key} does not exist; {did_you_mean(key, choices)}{allowed}.")
