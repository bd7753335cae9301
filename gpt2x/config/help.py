"""The text of `--help`: examples, options and every key of an entry point (imports neither hydra nor mindspore)."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from gpt2x.config import environment
from gpt2x.config.keys import Leaf, groups, leaves, spell
from gpt2x.config.options import SCHEMAS, chosen_options, composed_defaults, experiments, option_comment, options
from gpt2x.config.schema import TrackedConfig
from gpt2x.errors import UserError, did_you_mean

KEY_COLUMN, COMMAND_COLUMN, COMMENT_COLUMN = 36, 44, 26  # where right columns begin
BOLD, DIM, PLAIN = "\033[1m", "\033[2m", "\033[0m"
EXAMPLES = {
    "train": [
        ("gpt2x train", "GPT-2 tiny on Python's documentation"),
        ("gpt2x train model=gpt2_small trainer.max_steps=100", "an option and a key"),
        ("gpt2x train task=finetune load=DIR dataset=text dataset.path=FILE", "continue from weights on your own text"),
        ("gpt2x train resume=auto", "continue the newest run like this"),
        ("gpt2x train parallel=dp2 plan=true", "predict memory and speed"),
        ("gpt2x train -m seed=1,2 schedule=linear,cosine", "four runs"),
    ],
    "evaluate": [
        ("gpt2x evaluate load=DIR dataset=wikitext2", "perplexity"),
        ("gpt2x evaluate load=DIR dataset=sst2 dataset.path=FOLDER", "a classifier"),
        ("gpt2x evaluate -m load=DIR_1,DIR_2 dataset=wikitext2", "compare checkpoints"),
    ],
    "predict": [
        ("gpt2x predict load=DIR 'prompts=[\"Once upon a time\"]'", "complete a prompt"),
        ("gpt2x predict load=DIR prompts_file=FILE.txt output=FILE.jsonl", "many prompts"),
        ("gpt2x predict load=DIR 'prompts=[Hello]' generation.temperature=0.8", "draw tokens"),
    ],
    "prepare": [
        ("gpt2x prepare dataset=wikitext2 dataset.path=FOLDER output=FOLDER", "write MindRecord files"),
    ],
}
COMMON = groups(TrackedConfig)  # shown after the groups of one entry point
FLAGS = [
    ("--help GROUP", "the options and keys of one group"),
    ("--cfg job [-p GROUP]", "show the composed configuration, or one group of it, and run nothing"),
    ("-m, --multirun", "one run for each combination: seed=1,2 'seed=range(0,5)' 'model=glob(gpt2_s*)'"),
    ("--config-dir DIR", "options of your own, in DIR/GROUP/NAME.yaml"),
    ("--info defaults", "the files that are composed, in their order"),
    ("-sc install=bash", 'completion by the Tab key (also zsh, fish): eval "$(gpt2x -sc install=bash)"'),
    ("hydra.run.dir=DIR", "the run directory; hydra.sweep.dir=DIR that of a sweep"),
]
NOTE = (
    'Write lists in quotes: \'trainer.sample_prompts=["a","b"]\'. null means that there is no value; its meaning is '
    "given per key. docs/configuration.md explains how a configuration is composed, docs/hydra.md Hydra's features."
)


def help_text(entry: str, width: int, color: bool, group: str | None = None) -> str:
    """Return what `--help` prints.

    Args:
        entry: `train`, `evaluate`, `predict` or `prepare`.
        width: of the terminal, in columns.
        color: whether the terminal shows bold and dim text.
        group: show only this group's options and keys.

    Raises:
        UserError: the entry point has no such group.
    """
    page, root = _Page(min(max(width, 60), 110), color), SCHEMAS[entry]
    if group is not None:
        return _group_help(entry, group, page)
    values = composed_defaults(entry)
    top_level = [leaf for name, leaf in leaves(root).items() if "." not in name]
    examples = [row for command, text in EXAMPLES[entry] for row in page.command(command, text)]
    blocks = [
        page.paragraph(inspect.getdoc(root) or ""),
        f"Usage: gpt2x {entry} [GROUP=OPTION] [KEY=VALUE] ...",
        page.section("Examples", examples),
        page.section("Options, as GROUP=OPTION; * is the default", _option_rows(entry, page)),
        page.section("Keys, as KEY=VALUE; shown with their defaults", _key_rows(top_level, values, page)),
        *(_keys_of_group(entry, name, page) for name in sorted(groups(root), key=COMMON.__contains__)),
        page.section("Flags", [row for flag, text in FLAGS for row in page.row(flag, text, 24)]),
        page.paragraph(NOTE),
    ]
    return "\n\n".join(blocks) + "\n"


def _group_help(entry: str, group: str, page: _Page) -> str:
    """The options of one group, each with its comment, and its keys."""
    names = sorted({*groups(SCHEMAS[entry]), *chosen_options(entry)})
    if group not in names:
        raise UserError(f"--help {group}: no such group; {did_you_mean(group, names)}groups are: {', '.join(names)}.")
    blocks = []
    if group in chosen_options(entry):
        rows = [
            row
            for name in _options(entry, group)
            for row in page.row(name, option_comment(group, name), COMMENT_COLUMN)
        ]
        blocks.append(page.section(f"Options, as {group}=OPTION", rows))
    if group in groups(SCHEMAS[entry]):
        blocks.append(_keys_of_group(entry, group, page))
    return "\n\n".join(blocks) + "\n"


def _option_rows(entry: str, page: _Page) -> list[str]:
    rows = []
    for group, chosen in sorted(chosen_options(entry).items(), key=lambda item: item[0] in COMMON):
        names = [f"{name}*" if name == chosen else name for name in _options(entry, group)]
        rows += page.row(group, " ".join(names), 14)
    return rows


def _options(entry: str, group: str) -> list[str]:
    return experiments(entry) if group == "experiment" else options(group)


def _keys_of_group(entry: str, group: str, page: _Page) -> str:
    root, values = SCHEMAS[entry], composed_defaults(entry)
    entries = [leaf for name, leaf in leaves(root).items() if name.startswith(f"{group}.") and name != f"{group}.name"]
    rows = [*page.wrapped(inspect.getdoc(groups(root)[group]) or "", 2), *_key_rows(entries, values, page)]
    return page.section(group, rows)


def _key_rows(entries: list[Leaf], values: dict[str, Any], page: _Page) -> list[str]:
    rows = []
    for leaf in entries:
        default = _default(values[leaf.name]) if leaf.name in values else "?"
        rows += page.row(f"{leaf.name}={default}", leaf.facts.description(), KEY_COLUMN)
    return rows


def _default(value: Any) -> str:
    """A default as it would be typed; the environment's value is not looked up."""
    if isinstance(value, str) and value.startswith(environment.REFERENCE):
        return environment.parts(value)[1]
    return '""' if value == "" else spell(value)


@dataclass(frozen=True)
class _Page:
    """Lines of a certain width, with or without bold and dim text."""

    width: int
    color: bool

    def section(self, title: str, rows: list[str]) -> str:
        return "\n".join([f"{BOLD}{title}{PLAIN}" if self.color else title, *rows])

    def paragraph(self, text: str) -> str:
        return "\n".join(self.wrapped(" ".join(text.split()), 0))

    def wrapped(self, text: str, indent: int) -> list[str]:
        space = " " * indent
        return textwrap.wrap(
            " ".join(text.split()), self.width, initial_indent=space, subsequent_indent=space,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    def command(self, command: str, text: str) -> list[str]:
        """An example: the command, and what it does beside it or below."""
        line = f"  {command}"
        if len(line) < COMMAND_COLUMN and COMMAND_COLUMN + len(text) <= self.width:
            return [f"{line:<{COMMAND_COLUMN}}{self.dim(text)}"]
        return [line, f"      {self.dim(text)}"]

    def row(self, left: str, right: str, column: int) -> list[str]:
        """Two columns; `right` starts on the next line if `left` is too long."""
        lines = self.wrapped(right, column) or [""]
        left = left if len(left) <= self.width - 2 else f"{left[: self.width - 3]}…"
        if len(left) + 4 > column:
            return [f"  {left}", *map(self.dim, lines)] if right else [f"  {left}"]
        return [f"  {left}".ljust(column) + self.dim(lines[0][column:]), *map(self.dim, lines[1:])]

    def dim(self, text: str) -> str:
        return f"{DIM}{text}{PLAIN}" if self.color else text
