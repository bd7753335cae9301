"""WikiText-2 (Merity et al., arXiv:1609.07843) under two protocols.

`reference` repeats, block for block, what MindFormers' GPT-2 recipe does (wikitext2_data_process.py), so that its
published perplexity can be compared. `clean` loses nothing: articles with their headings, EOS after each.
docs/data.md describes both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece
from gpt2x.data.reading.download import fetch_archive
from gpt2x.data.reading.files import hash_files, read_lines
from gpt2x.data.reading.folders import require_file
from gpt2x.data.sources.base import Source
from gpt2x.errors import UserError

FILE_NAMES = {
    "train": ("wiki.train.tokens", "wiki.train.raw"),
    "val": ("wiki.valid.tokens", "wiki.valid.raw"),
}
TITLE = re.compile("= [^=](.*[^=])? =")

# The rules run in this order, each over the whole line: strings literally, patterns as regular expressions.
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
    """Return the reference's test for a heading, on a stripped line; some lines of glossaries pass it too."""
    return line.startswith("=") and line.endswith("=")


def reference_passages(lines: Iterator[str], keep_last_passage: bool) -> Iterator[str]:
    """Yield the lines between two headings, detokenized and joined with a space; headings are dropped.

    The reference collects a passage only if a heading follows, so the last one is lost unless `keep_last_passage`.
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
    """Yield the articles; each begins with a first-level heading (`= Title =`) between blank lines.

    Every line that is not blank is kept, headings too. Lines are detokenized and joined with a newline.
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


class Wikitext2(Source):
    """The published files of WikiText-2.

    `dataset.path` is the folder of wiki.{train,valid}.tokens; `train_path` and `val_path` name files instead; if all
    three are null, `url` is downloaded.
    """

    protocols = ("clean", "reference")

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        super().__init__(config, cache)
        self._reference = config.protocol == "reference"
        self.separate = not self._reference
        folder, key = self._folder()
        self._files = self._locate(folder, key)
        if not self._files:
            names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder else ""
            raise UserError(
                f"{key}={folder} has neither wiki.train.tokens nor wiki.valid.tokens; it has {names or 'nothing'}. "
                f"Give the folder that has them, or dataset.train_path and dataset.val_path."
            )
        if self._reference and not config.keep_last_passage:
            self.notes.append("protocol=reference loses a passage that no heading follows (dataset.keep_last_passage)")

    def _folder(self) -> tuple[Path | None, str]:
        """The folder of the corpus, or None if files are named instead; and the key that it comes from."""
        config, folder, key = self.config, None, "dataset.path"
        if config.path:
            folder = Path(config.path).expanduser()
        elif not (config.train_path or config.val_path):
            if config.url is None:
                raise UserError("dataset.path=null: give the folder of wiki.train.tokens, or dataset.url.")
            folder, sha256 = fetch_archive(config.url, config.sha256, self.cache)
            key = "dataset.url"
            if config.sha256 is None:
                self.notes.append(f"sha256 of {config.url}: {sha256} (not checked; record it as dataset.sha256)")
        if folder is not None and not folder.is_dir():
            raise UserError(f"{key}={folder} is not a folder. Give the one that has wiki.train.tokens.")
        return folder, key

    def _locate(self, folder: Path | None, key: str) -> dict[str, Path]:
        """The file of each split."""
        files = {}
        for split, path in {"train": self.config.train_path, "val": self.config.val_path}.items():
            if path is not None:
                files[split] = require_file(Path(path).expanduser(), f"dataset.{split}_path")
            elif folder is not None and (file := _first_below(folder, FILE_NAMES[split])):
                files[split] = require_file(file, key)
        return files

    def has(self, split: str) -> bool:
        """Return True if there is a file for `split`."""
        return split in self._files

    def content_hash(self, split: str) -> str:
        """Return the sha256 of the file."""
        return hash_files([self._files[split]])

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield articles (`clean`), or passages joined with newlines (`reference`)."""
        lines = read_lines(self._files[split])
        if not self._reference:
            for article in clean_articles(lines):
                yield Piece(article, True)
            return
        for number, passage in enumerate(reference_passages(lines, self.config.keep_last_passage)):
            # A passage starts and ends with a visible character: "\n" + passage is cut where pieces may be.
            yield Piece(f"\n{passage}" if number else passage, True)

    def num_words(self, split: str) -> int:
        """Return the published number of words: tokens between blanks, and one <eos> per line, blank lines included."""
        return sum(len(line.split()) + 1 for line in read_lines(self._files[split]))


def _first_below(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` in `folder` or in a folder below it (the archive has them in `wikitext-2/`)."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
        if below := sorted(folder.rglob(name)):
            return below[0]
    return None


SOURCE = Wikitext2
