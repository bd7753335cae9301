"""Which versions of CANN and of the driver fit this MindSpore: the one list, with its sources.

docs/ascend_setup.md shows it; `gpt2x doctor` compares the machine with it.
"""

from __future__ import annotations

from dataclasses import dataclass

# What gpt2x is tested with, by prefix; pyproject.toml asks for the same.
TESTED = {"python": "3.11", "mindspore": "2.10.0", "numpy": "1.26"}
RECOMMENDED = "9.1.0"  # CANN

HUAWEI = "https://www.hiascend.com/document/detail/en"
NOTES_91 = f"{HUAWEI}/CANNCommunityEdition/910/softwareinst/releasenote/9.1.0/release-notes.md"
NOTES_85 = f"{HUAWEI}/canncommercial/850/releasenote/releasenote_0000.html"
PAIRS = "https://www.mindspore.cn/mindformers/docs/en/r1.9.0/installation.html"


@dataclass(frozen=True)
class Toolkit:
    """A release of CANN that MindSpore 2.10.0 accepts.

    Attributes:
        cann: the beginning of its version.
        paired: the driver and firmware (Ascend HDK) that are released with it.
        drivers: the beginnings of the versions of all drivers that are documented to work with it.
        sources: where that is documented.
    """

    cann: str
    paired: str
    drivers: tuple[str, ...]
    sources: tuple[str, ...]


# The first entry that fits a version counts. MindSpore's own list of minor versions is in its wheel,
# mindspore/run_check/_check_version.py; a test compares.
TOOLKITS = (
    Toolkit("9.1", "26.0.RC1", ("25.2", "25.3", "25.5", "25.7", "26.0", "26.1"), (NOTES_91,)),
    Toolkit("9.0", "26.0.RC1", ("25.0", "25.2", "25.3", "25.5", "25.7", "26.0", "26.1"), (NOTES_91, PAIRS)),
    Toolkit("8.5.2", "", ("25.0", "25.2", "25.3", "25.5", "25.7", "26.0", "26.1"), (NOTES_91,)),
    Toolkit("8.5", "25.5.0", ("25.0", "25.2", "25.3", "25.5"), (NOTES_85, PAIRS)),
    Toolkit("8.3", "25.3.RC1", ("25.3",), (PAIRS,)),
    Toolkit("8.2", "25.2.0", ("25.2",), (PAIRS,)),
)


def toolkit(cann: str) -> Toolkit | None:
    """Return the entry of a version of CANN, or None if MindSpore does not accept it."""
    return next((entry for entry in TOOLKITS if begins(cann, entry.cann)), None)


def begins(version: str, prefix: str) -> bool:
    """Return whether a version is the release `prefix` or a part of it: 9.1.0 is one of 9.1, 9.10 is not."""
    return f"{version}.".startswith(f"{prefix}.")


def table() -> str:
    """Return the list as a table in Markdown."""
    lines = [
        "| CANN | released with driver and firmware | drivers documented to work | source |",
        "|---|---|---|---|",
    ]
    for entry in TOOLKITS:
        links = ", ".join(f"[{number}]({url})" for number, url in enumerate(entry.sources, 1))
        drivers = " ".join(f"{series}.x" for series in entry.drivers)
        lines.append(f"| {entry.cann}.x | {entry.paired or 'not known'} | {drivers} | {links} |")
    return "\n".join(lines).replace("8.5.2.x", "8.5.2")
