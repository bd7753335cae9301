"""WikiText-2 (Merity et al., arXiv:1609.07843) under two protocols (imports no mindspore).

`reference` repeats, block for block, what MindFormers' GPT-2 recipe does (wikitext2_data_process.py), so that its
published perplexity can be compared. `clean` loses nothing: articles with their headings, EOS behind each.
docs/data.md states both in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gpt2x.config import DatasetConfig
from gpt2x.config.rules import CORPUS_PROTOCOLS
from gpt2x.data.sources.documents import Piece
from gpt2x.data.sources.download import fetch_archive
from gpt2x.data.sources.files import hash_files, read_lines, require_file
from gpt2x.errors import UserError

FILE_NAMES = {
    "train": ("wiki.train.tokens", "wiki.train.raw"),
    "val": ("wiki.valid.tokens", "wiki.valid.raw"),
}
TITLE = re.compile("= [^=](.*[^=])? =")

# The rules run in this order, each over the whole line. A string is replaced as it stands, a pattern as a pattern.
DETOKENIZER: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile("/' [0-9]/"), "/'[0-9]/"),  # the slashes were meant as delimiters; it never matches
    *((f" @{sign}@ ", sign) for sign in "-,."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" .", "."),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    (re.compile(r"\(\s*([^)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r'"\s*([^"]*?)\s*"'), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
CLEAN_DETOKENIZER = tuple(rule for rule in DETOKENIZER if rule[0] != " N ")  # N stands for a number in PTB, not here


def detokenize(line: str, rules: tuple[tuple[str | re.Pattern[str], str], ...] = DETOKENIZER) -> str:
    """Turn a line of spaced tokens (`a , b @-@ c .`) into running text (`a, b-c.`)."""
    for pattern, replacement in rules:
        line = line.replace(pattern, replacement) if isinstance(pattern, str) else pattern.sub(replacement, line)
    return line


def is_heading(line: str) -> bool:
    """The reference's test for a heading, on a stripped line; true also of some lines of glossaries."""
    return line.startswith("=") and line.endswith("=")


def reference_passages(lines: Iterator[str], keep_last_passage: bool) -> Iterator[str]:
    """The lines between two headings, detokenized, joined with a space; headings are dropped.

    The reference collects a passage only when a heading follows, so the last one is lost unless it is kept here.
    """
    passage: list[str] = []
    for line in map(str.strip, lines):
        if line and not is_heading(line):
            passage.append(detokenize(line))
        elif line and passage:
            yield " ".join(passage).strip()
            passage = []
    if passage and keep_last_passage:
        yield " ".join(passage).strip()


def clean_articles(lines: Iterator[str]) -> Iterator[str]:
    """The articles: each begins with a first-level heading (`= Title =`) that stands between blank lines.

    Every line that is not blank is kept, headings too, detokenized, joined with a newline.
    """
    article: list[str] = []
    before, line = "", next(lines, "").strip()
    for after in map(str.strip, chain(lines, [""])):
        if line:
            if article and not before and not after and TITLE.fullmatch(line):
                yield "\n".join(article)
                article = []
            article.append(detokenize(line, CLEAN_DETOKENIZER))
        before, line = line, after
    if article:
        yield "\n".join(article)


class Wikitext2:
    """The corpus reader of `dataset=wikitext2`.

    Args:
        config: `path` is the folder of wiki.{train,valid}.tokens; `train_path` and `val_path` name files instead;
            with none of them `url` is downloaded.
        cache: Where a download is kept.
    """

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        if config.protocol not in CORPUS_PROTOCOLS:
            raise UserError(
                f"dataset.protocol={config.protocol} is unknown. Choose one of: {', '.join(CORPUS_PROTOCOLS)}."
            )
        self._reference = config.protocol == "reference"
        self._keep_last = config.keep_last_passage
        self.separate = not self._reference
        self.notes: list[str] = []
        self._files: dict[str, Path] = {}
        given = {"train": config.train_path, "val": config.val_path}
        folder, key = (Path(config.path).expanduser(), "dataset.path") if config.path else (None, "dataset.path")
        if folder is None and not any(given.values()):
            if config.url is None:
                raise UserError("dataset.path is null: give the folder of wiki.train.tokens, or dataset.url.")
            folder, found = fetch_archive(config.url, config.sha256, cache)
            key = "dataset.url"
            if config.sha256 is None:
                self.notes.append(f"sha256 of {config.url}: {found} (not checked; record it as dataset.sha256)")
        if folder is not None and not folder.is_dir():
            raise UserError(f"{key}={folder} is not a folder. Give the one that holds wiki.train.tokens.")
        for split, path in given.items():
            if path is not None:
                self._files[split] = require_file(Path(path).expanduser(), f"dataset.{split}_path")
            elif folder is not None and (file := _find(folder, FILE_NAMES[split])):
                self._files[split] = require_file(file, key)
        if not self._files:
            names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder else ""
            raise UserError(
                f"{key}={folder} holds none of wiki.train.tokens and wiki.valid.tokens (found: {names or 'nothing'}). "
                f"Give the folder that holds them, or dataset.train_path and dataset.val_path."
            )
        if self._reference and not self._keep_last:
            self.notes.append("protocol=reference loses a passage that no heading follows (dataset.keep_last_passage)")

    def has(self, split: str) -> bool:
        """There is a file for `split`."""
        return split in self._files

    def content_hash(self, split: str) -> str:
        """sha256 of the file."""
        return hash_files([self._files[split]])

    def pieces(self, split: str) -> Iterator[Piece]:
        """Articles (`clean`), or passages joined with newlines (`reference`)."""
        lines = read_lines(self._files[split])
        if not self._reference:
            for article in clean_articles(lines):
                yield Piece(article, True)
            return
        for number, passage in enumerate(reference_passages(lines, self._keep_last)):
            # A passage starts and ends with a visible character: "\n" + passage is cut where pieces may be.
            yield Piece(f"\n{passage}" if number else passage, True)

    def num_words(self, split: str) -> int:
        """Words as published: tokens between blanks, with one <eos> a line, blank lines included."""
        return sum(len(line.split()) + 1 for line in read_lines(self._files[split]))


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` in `folder` or one of the folders below it (an archive holds `wikitext-2/`)."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
        if below := sorted(folder.rglob(name)):
            return below[0]
    return None
