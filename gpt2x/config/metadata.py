"""What is recorded about a key of the configuration: its meaning, what it may be, and what it changes.

Each fact about a key stands once, in `gpt2x/config/schema.py`. The checks of single values, `--help`,
docs/configuration.md, `resume` and the compile cache read it from there.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import Field, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from gpt2x.extensions import Extensions

METADATA = "key"  # under this name in the metadata of a dataclass field


class Effect(Enum):
    """What the value of a key changes in a training run.

    Attributes:
        may_change_on_resume: a resumed run may have a different value. It trains the same, except for rounding.
        part_of_graph: compiled graphs may depend on the value, so kept graphs with a different value are not used.
    """

    HOST = (True, False)  # only what happens around the steps: logs, checkpoints, samples, places of files
    LAYOUT = (True, True)  # how a step is computed; its result only by rounding
    RUN = (False, False)  # what the steps compute with, as inputs of the graphs: rates, seeds, the number of steps
    STEP = (False, True)  # what a step computes; also what nobody has shown to be no part of the graphs

    def __init__(self, may_change_on_resume: bool, part_of_graph: bool) -> None:
        self.may_change_on_resume = may_change_on_resume
        self.part_of_graph = part_of_graph


HOST, LAYOUT, RUN, STEP = Effect.HOST, Effect.LAYOUT, Effect.RUN, Effect.STEP
NAME = "the chosen option's name"  # meaning of the key `name` of every group
SETTINGS = "keys that only the chosen option has, as settings.KEY=VALUE (`Settings` in its file)"


@dataclass(frozen=True)
class Key:
    """What is recorded about a key.

    Attributes:
        meaning: what the value is, in a few words.
        effect: what it changes in a training run.
        null: what null stands for; empty for keys that cannot be null.
        unit: of a number, such as `GB`.
        at_least: the smallest allowed number; of a list, for each element.
        above: every allowed number is larger.
        at_most: the largest allowed number.
        below: every allowed number is smaller.
        choices: the allowed words; of a list, for each element.
        extensions: the package whose modules are the allowed words.
        is_path: the value, or each of a list, is a file or a directory, so that ~ stands for a home directory.
    """

    meaning: str
    effect: Effect
    null: str = ""
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    extensions: str = ""
    is_path: bool = False

    def names(self) -> list[str]:
        """Return the allowed words; empty if any value of the type is allowed."""
        return Extensions(self.extensions, "").names() if self.extensions else list(self.choices)

    def bounds(self) -> str:
        """Return the allowed numbers in words, such as 'at least 0 and below 1'; '' if there is no bound."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {_spelled(self.at_least)} to {_spelled(self.at_most)}"
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {_spelled(limit)}" for word, limit in limits.items() if limit is not None)

    def is_in_bounds(self, number: float) -> bool:
        """Return whether `number` is allowed."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def description(self) -> str:
        """Return the meaning, the unit, what is allowed and what null stands for, as one line."""
        names = self.names()
        parts = [
            f"{self.meaning} ({self.unit})" if self.unit else self.meaning,
            f"one of {', '.join(names)}" if names else "",
            self.bounds(),
            f"null: {self.null}" if self.null else "",
        ]
        return "; ".join(part for part in parts if part)


def _spelled(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def key(meaning: str, effect: Effect, default: Any = MISSING, **facts: Any) -> Any:
    """Return a dataclass field for a key.

    Args:
        meaning: see `Key`.
        effect: see `Key`.
        default: the value if neither an option nor the command line gives one; without it, an option must.
        facts: further attributes of `Key`.
    """
    metadata = {METADATA: Key(meaning, effect, **facts)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(cls: type) -> Any:
    """Return a dataclass field for a group of keys."""
    return field(default_factory=cls)


def key_of(entry: Field) -> Key:
    """Return what is recorded about the key of a dataclass field."""
    return entry.metadata[METADATA]
