"""Text to MindRecord blocks, cached; also a command: `python -m gpt2x.data.prepare dataset=wikitext2 ...`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt2x.config import DatasetConfig, PrepareConfig, TokenizerConfig
from gpt2x.data.cache import build_once, read_meta
from gpt2x.data.mindrecord import Split, find_records, open_records, write_blocks
from gpt2x.data.rows.blocks import Packer
from gpt2x.data.sources.files import hash_files
from gpt2x.data.sources.registry import Corpus, open_corpus
from gpt2x.data.template import Template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

FORMAT = 1  # part of every hash: raise it when the same input gives other blocks


@dataclass(frozen=True)
class PreparedData:
    """Blocks ready to be read, and the tokenizer that made them.

    `fingerprint` is a hash of input, tokenizer and settings. `facts` is for panels and trackers: corpus, protocol,
    tokenizer, seconds, whether all came from the cache, notes for the user.
    """

    train: Split | None
    val: Split | None
    tokenizer: Tokenizer
    fingerprint: str
    facts: dict[str, object]
    labels: tuple[str, ...] = ()  # of labelled texts: names of the classes in the order of their ids
    template: Template | None = None  # of instructions

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer, and the template of prompts where there is one."""
        self.tokenizer.save(directory)
        if self.template is not None:
            self.template.save(directory)


def prepare(
    dataset: DatasetConfig,
    tokenizer: TokenizerConfig,
    *,
    seq_len: int,
    cache: Path,
    checkpoint_tokenizer: Tokenizer | None = None,
    splits: tuple[str, ...] = ("train", "val"),
    block_len: int | None = None,
) -> PreparedData:
    """Make the blocks of `splits`, or find them in the cache.

    Args:
        dataset: Where the text comes from.
        tokenizer: Loaded from its path; trained on the training part when the path is null.
        seq_len: Tokens a model sees at once.
        cache: `datasets/`, `tokenizers/` and `downloads/` are kept in it.
        own_tokenizer: A loaded checkpoint's; takes the place of `tokenizer`.
        splits: Which parts to make, of train and val.
        block_len: Columns of a row; null: seq_len + 1, so that each block gives seq_len predictions.

    Returns:
        A split that was not asked for is None; so is `val` when only training text was given (a note says so).

    Raises:
        UserError: Wrong input; nothing incomplete is left in the cache.
    """
    started = time.perf_counter()
    length = seq_len + 1 if block_len is None else block_len
    if length < 2:
        raise UserError(f"seq_len={seq_len} is too short: a block needs at least two tokens. Give seq_len=2 or more.")
    cache = Path(cache).expanduser().absolute()
    records = find_records(dataset, splits)
    corpus = None if len(records) == len(splits) else corpus_beside(dataset, set(records), cache)
    chosen = checkpoint_tokenizer or find_tokenizer(tokenizer, corpus, cache, dataset)
    made: dict[str, Split | None] = {"train": None, "val": None}
    digests, notes, rates = [chosen.fingerprint], [], []
    for split in splits:
        if split in records:
            key, files = records[split]
            known = known_facts(key, split, files, chosen)
            made[split] = replace(open_records(key, files, length, chosen.vocab_size), **known)
            digests.append(hash_files(files))
        elif corpus is not None and corpus.has(split):
            made[split], digest, rate = _blocks(dataset, corpus, split, chosen, length, cache)
            digests.append(digest)
            rates += [rate] if rate is not None else []
        elif split == "train" or len(splits) == 1:
            raise UserError(f"dataset={dataset.name} has no {split} text. Give dataset.{split}_path or dataset.path.")
        else:
            notes.append("no validation text: dataset.val_path is null")
    facts: dict[str, object] = {
        "corpus": dataset.corpus,
        "protocol": dataset.protocol,
        "block_len": length,
        "tokenizer": "the checkpoint's" if checkpoint_tokenizer else tokenizer.path or f"trained, {tokenizer.name}",
        "vocab_size": chosen.vocab_size,
        "cached": not rates,
        "seconds": time.perf_counter() - started,
        "tokens_per_s": sum(tokens for tokens, _ in rates) / sum(s for _, s in rates) if rates else None,
        "notes": [*notes, *(corpus.notes if corpus else [])],
    }
    return PreparedData(made["train"], made["val"], chosen, digest_of(digests), facts)


def corpus_beside(dataset: DatasetConfig, in_records: set[str], cache: Path) -> Corpus | None:
    """The reader of the splits that are not MindRecord files; None when nothing else is given."""
    rest = replace(
        dataset,
        path=None if find_records(replace(dataset, train_path=None, val_path=None), ("train",)) else dataset.path,
        train_path=None if "train" in in_records else dataset.train_path,
        val_path=None if "val" in in_records else dataset.val_path,
    )
    if in_records and not (rest.path or rest.train_path or rest.val_path):
        return None
    return open_corpus(rest, cache)


def find_tokenizer(config: TokenizerConfig, corpus: Corpus | None, cache: Path, dataset: DatasetConfig) -> Tokenizer:
    """The tokenizer of `config.path`, or one trained on the training part, once.

    Raises:
        UserError: No path and nothing to train on, or no vocab_size.
    """
    if config.path is not None:
        return Tokenizer.load(config.path, config.eos_token)
    if corpus is None or not corpus.has("train"):
        raise UserError(
            f"tokenizer.path is null, and dataset={dataset.name} gives no training text to train a tokenizer on. "
            f"Set tokenizer.path to the tokenizer that belongs to the data (or to the model)."
        )
    size = config.vocab_size
    if size is None:
        raise UserError(
            "tokenizer.vocab_size is null: a tokenizer is to be trained (tokenizer.path is null). Give one."
        )
    key = [FORMAT, _settings(dataset, "train"), corpus.content_hash("train"), size, config.eos_token]

    def train(directory: Path) -> dict[str, Any]:
        texts = (piece.text for piece in corpus.pieces("train"))
        Tokenizer.train(texts, size, config.eos_token).save(directory)
        return {"trained_on": dataset.corpus}

    directory = cache / "tokenizers" / f"bpe-{digest_of(key)[:16]}"
    build_once(directory, train)
    return Tokenizer.load(directory)


def _blocks(
    dataset: DatasetConfig, corpus: Corpus, split: str, tokenizer: Tokenizer, block_len: int, cache: Path
) -> tuple[Split, str, tuple[int, float] | None]:
    """The blocks of one split, their digest, and tokens and seconds of encoding and writing (None: were cached)."""
    digest = digest_of(
        [FORMAT, _settings(dataset, split), corpus.content_hash(split), tokenizer.fingerprint, block_len, split]
    )
    directory = cache / "datasets" / f"{dataset.corpus}-{split}-{digest[:16]}"
    name = f"{split}.mindrecord"
    rate: tuple[int, float] | None = None

    def write(temporary: Path) -> dict[str, Any]:
        nonlocal rate
        chars = sum(len(piece.text) for piece in corpus.pieces(split))  # the whole input is checked before work starts
        import mindspore.mindrecord  # noqa: F401 - takes a second or two that are not preparation

        packer = Packer(tokenizer, block_len, separate=corpus.separate)
        with _progress(f"Preparing {dataset.corpus} {split}", chars, packer) as advance:
            rows = write_blocks(temporary / name, packer.blocks(corpus.pieces(split), advance))
        rate = packer.num_tokens, packer.seconds
        if packer.num_tokens < block_len:
            raise UserError(
                f"The {split} part of dataset={dataset.name} has {packer.num_tokens} tokens, fewer than one block of "
                f"{block_len} (seq_len={block_len - 1} needs seq_len + 1). Give more text or a shorter seq_len"
                f"{', or a larger dataset.val_fraction' if split == 'val' else ''}."
            )
        return {
            "num_blocks": rows,
            "block_len": block_len,
            "num_tokens": packer.num_tokens - packer.dropped_tokens,
            "num_documents": packer.num_documents,
            "dropped_tokens": packer.dropped_tokens,
            "num_words": corpus.num_words(split),
        }

    facts = build_once(directory, write)
    return Split(files=(directory / name,), **facts), digest, rate


def known_facts(key: str, split: str, files: list[Path], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the rows do not tell, from the meta.json that `output=` leaves beside them; nothing without one."""
    stored = read_meta(files[0].parent) or {}
    if split not in stored.get("splits", {}):
        return {}
    if stored["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise UserError(
            f"{key} was prepared with another tokenizer. Its own lies beside it: "
            f"tokenizer.path={files[0].parent / 'tokenizer'}; or prepare the text anew for this tokenizer."
        )
    return {
        name: stored["splits"][split][name] for name in ("num_tokens", "num_documents", "dropped_tokens", "num_words")
    }


def _settings(dataset: DatasetConfig, split: str) -> dict[str, object]:
    """What decides a split's text besides the content of the files."""
    divided = dataset.corpus == "pydocs" or (dataset.path and not dataset.val_path)
    return {
        "corpus": dataset.corpus,
        "protocol": dataset.protocol,
        "keep_last_passage": dataset.keep_last_passage and dataset.protocol == "reference",
        "text_column": dataset.text_column if dataset.corpus == "text" else None,
        "division": [split, dataset.val_fraction, dataset.split_seed]
        if divided and dataset.corpus != "wikitext2"
        else None,
    }


def digest_of(facts: list[Any]) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _progress(title: str, total_chars: int, packer: Packer) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line at the end elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total_chars)
            yield lambda chars: bar.advance(task, chars)
    else:
        yield lambda chars: None
    print(f"{title}: {packer.num_tokens:,} tokens in {packer.seconds:.1f} s", file=sys.stderr)


def run(config: PrepareConfig) -> None:
    """The command: prepare, copy to `output` when it is given, print a table."""
    output = None if config.output is None else Path(config.output).expanduser().absolute()
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output={config.output} is not an empty directory; nothing is overwritten. Give another one.")
    cache = Path(config.paths.cache)
    if config.dataset.corpus == "labelled":
        from gpt2x.data.rows.labelled import prepare_labelled

        data = prepare_labelled(config.dataset, config.tokenizer, seq_len=config.seq_len, cache=cache)
    elif config.dataset.corpus == "instructions":
        from gpt2x.data.rows.instruction import prepare_instructions

        if output is not None:
            raise UserError(
                f"output={config.output}: rows of instructions are kept in paths.cache alone, where train.py finds "
                "them; drop output="
            )
        data = prepare_instructions(config.dataset, config.tokenizer, seq_len=config.seq_len, cache=cache)
    else:
        data = prepare(config.dataset, config.tokenizer, seq_len=config.seq_len, cache=cache)
    if output is not None:
        data = _export(data, output)
    _print_table(data)


def _export(data: PreparedData, output: Path) -> PreparedData:
    """Copy the files of both splits and the tokenizer into `output`, which then is a `dataset.path`."""
    made = {name: split for name in ("train", "val") if (split := getattr(data, name)) is not None}

    def write(temporary: Path) -> dict[str, Any]:
        for split in made.values():
            for file in split.files:
                for part in (file, file.with_name(file.name + ".db")):
                    shutil.copyfile(part, temporary / part.name)
        data.tokenizer.save(temporary / "tokenizer")
        facts = {name: {k: v for k, v in asdict(split).items() if k != "files"} for name, split in made.items()}
        return {
            "splits": facts,
            "labels": list(data.labels),
            "tokenizer_fingerprint": data.tokenizer.fingerprint,
            "fingerprint": data.fingerprint,
        }

    if output.is_dir():
        output.rmdir()  # empty; renaming a directory over it is not portable
    build_once(output, write, key="output")
    moved = {n: replace(s, files=tuple(output / f.name for f in s.files)) for n, s in made.items()}
    return replace(data, train=moved.get("train"), val=moved.get("val"))


def _print_table(data: PreparedData) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{data.facts['corpus']}, protocol {data.facts['protocol']}", title_justify="left")
    for name in ("split", "documents", "tokens", "blocks", "columns", "dropped tokens", "words"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in (("train", data.train), ("val", data.val)):
        if split is not None:
            numbers = (split.num_documents, split.num_tokens, split.num_blocks, split.block_len, split.dropped_tokens)
            words = "-" if split.num_words is None else f"{split.num_words:,}"
            table.add_row(name, *(f"{number:,}" for number in numbers), words)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    rate = data.facts["tokens_per_s"]
    console.print(f"tokens/s    {'from the cache' if rate is None else f'{rate:,.0f}'}", highlight=False)
    console.print(f"vocabulary  {data.tokenizer.vocab_size:,} ({data.facts['tokenizer']})", highlight=False)
    for split in (data.train, data.val):
        for file in split.files if split is not None else ():
            console.print(f"file        {file}", highlight=False, soft_wrap=True)
    notes = data.facts["notes"]
    for note in notes if isinstance(notes, list) else []:
        console.print(f"note        {note}", highlight=False, soft_wrap=True)


def main() -> None:
    """Compose conf/prepare.yaml with the command line and run."""
    from gpt2x.commands.hydra_entry import hydra_entry

    hydra_entry("prepare", run)


if __name__ == "__main__":
    main()
