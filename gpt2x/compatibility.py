"""What gpt2x does with each key, value and file of a foreign format: the lists from which the code decides.

A reader keeps its list beside the code that reads, looks an entry up there, and names the list in
`gpt2x.commands.compatibility`, which writes docs/compatibility.md. So the page cannot differ from the code.
This module imports nothing of gpt2x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Use(StrEnum):
    """What happens to an entry."""

    READ = "read"
    REJECTED = "rejected"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Entry:
    """One key, value or file of a format.

    Attributes:
        name: as it stands in the format, such as `n_layer` or `added_tokens.json`.
        use: what happens to it.
        note: what it is read as, which values are rejected and what to do then, or why it may be ignored.
    """

    name: str
    use: Use
    note: str = ""


@dataclass(frozen=True)
class Format:
    """The entries of one format, as one table of docs/compatibility.md.

    Attributes:
        title: heading of the table, such as `Hugging Face: config.json`.
        what: a sentence about the format, and which tool defines it.
        entries: its entries, in the order of the table.
        others: what happens to a key, value or file that the table does not have.
    """

    title: str
    what: str
    entries: tuple[Entry, ...]
    others: str

    def names(self, use: Use) -> list[str]:
        """Return the names of the entries with this use."""
        return [entry.name for entry in self.entries if entry.use is use]


def entries(use: Use, names: Iterable[str], note: str = "") -> tuple[Entry, ...]:
    """Return an entry for each name, all with the same use and note."""
    return tuple(Entry(name, use, note) for name in names)
