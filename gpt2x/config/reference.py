"""The tables of docs/configuration.md: every key of every entry point.

`python -m gpt2x.config.reference FILE` writes the tables of FILE again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2x.config import environment
from gpt2x.config.keys import Leaf, groups, leaves, spell
from gpt2x.config.options import SCHEMAS, composed_defaults
from gpt2x.config.schema import TrainConfig

BEGIN = "<!-- keys: begin (python -m gpt2x.config.reference docs/configuration.md) -->"
END = "<!-- keys: end -->"
TRAIN = leaves(TrainConfig)
HEADER = "| key | type | default | on resume | meaning |\n|---|---|---|---|---|"


def with_tables(text: str) -> str:
    """Return `text` with the tables between its two markers written again."""
    return with_content(text, BEGIN, key_tables(), END)


def with_content(text: str, begin: str, content: str, end: str) -> str:
    """Return `text` with `content` between two markers, each on a line of its own."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def key_tables() -> str:
    """Return a table of the keys at top level and one per group; each key is shown once, for its first entry point."""
    top_level: dict[str, list[str]] = {}  # row -> its entry points
    tables: dict[str, str] = {}
    for entry, root in SCHEMAS.items():
        values = composed_defaults(entry)
        for name, leaf in leaves(root).items():
            if "." not in name:
                top_level.setdefault(_row(leaf, values.get(name), is_of_train=name in TRAIN), []).append(entry)
        for name, cls in groups(root).items():
            if name not in tables:
                rows = [
                    _row(leaf, values.get(key), is_of_train=key in TRAIN)
                    for key, leaf in leaves(root).items()
                    if key.startswith(f"{name}.")
                ]
                text = " ".join((cls.__doc__ or "").split())
                tables[name] = "\n".join([f"### `{name}`\n\n{text}\n", HEADER, *rows])
    header = "\n".join(f"| {first} {line}" for first, line in zip(("of", "---"), HEADER.splitlines(), strict=True))
    rows = [f"| {', '.join(entries)} {row}" for row, entries in top_level.items()]
    return "\n\n".join(["\n".join(["### Top level\n", header, *rows]), *tables.values()])


def _row(leaf: Leaf, default: Any, is_of_train: bool) -> str:
    on_resume = "may change" if is_of_train and leaf.facts.effect.may_change_on_resume else ""
    cells = [f"`{leaf.name}`", leaf.type, shown(default), on_resume, leaf.facts.description()]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def shown(value: Any) -> str:
    """Return a default as code; a reference to the environment in words."""
    if isinstance(value, str) and value.startswith(environment.REFERENCE):
        variable, default = environment.parts(value)
        return f"`{default}`, or the environment's `{variable}`"
    return f"`{spell(value)}`" if value != "" else '`""`'


def rewrite(change: Callable[[str], str]) -> None:
    """Write what `change` makes of the text of the file that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{path} written")


if __name__ == "__main__":
    rewrite(with_tables)
