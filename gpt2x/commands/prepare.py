"""`gpt2x prepare`: prepare a corpus beforehand, copy the rows to `output`, print a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.table import Table

from gpt2x.config import PrepareConfig
from gpt2x.data.export import export
from gpt2x.data.prepare import PreparedData, prepare
from gpt2x.data.rows.registry import ROW_FORMS
from gpt2x.data.sources.registry import source_of
from gpt2x.errors import UserError
from gpt2x.runtime.console import console

WIDTH = 200  # columns of the table where no terminal limits it


def run(config: PrepareConfig) -> None:
    """Prepare the rows that the corpus is made for.

    Raises:
        UserError: Wrong input, or an output that exists.
    """
    form = ROW_FORMS.load(source_of(config.dataset).row_form)(config.seq_len)
    output = None if config.output is None else Path(config.output).expanduser().absolute()
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"output={config.output} is not an empty directory; nothing is overwritten. Give a different one."
        )
    if output is not None and not form.exports:
        raise UserError(
            f"output={config.output}: rows of {form.noun} stay in paths.cache, where train.py finds them. Drop output=."
        )
    data = prepare(config.dataset, config.tokenizer, form, cache=Path(config.paths.cache))
    if output is not None:
        moved = export(data.splits(), data.tokenizer, data.labels, data.fingerprint, output)
        data = replace(data, train=moved.get("train"), val=moved.get("val"))
    print_table(data)


def print_table(data: PreparedData) -> None:
    """Print counts per split, speed, vocabulary, files and notes."""
    table = Table(title=f"{data.summary.dataset}, {data.summary.layout}", title_justify="left")
    for name in ("split", "documents", "tokens", "blocks", "columns", "dropped tokens", "words"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in data.splits().items():
        numbers = (split.num_documents, split.num_tokens, split.num_blocks, split.block_len, split.dropped_tokens)
        words = "-" if split.num_words is None else f"{split.num_words:,}"
        table.add_row(name, *(f"{number:,}" for number in numbers), words)
    console.rich.print(table, width=None if console.is_interactive else WIDTH)
    rate = data.summary.tokens_per_s
    lines = [
        f"tokens/s    {'from the cache' if rate is None else f'{rate:,.0f}'}",
        f"vocabulary  {data.tokenizer.vocab_size:,} ({data.summary.tokenizer})",
        *(f"file        {file}" for split in data.splits().values() for file in split.files),
        *(f"note        {note}" for note in data.summary.notes),
    ]
    for line in lines:
        console.notice(line)
