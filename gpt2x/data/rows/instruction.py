"""Instructions as rows of L = seq_len + 1 token ids, and batches of rows as a model takes them.

A row has several examples one after the other, or one (`dataset.packing`). Its columns:

- `input_ids`: prompt, response and EOS of each example; EOS in the rest of the row;
- `attention_mask`: the number of a token's example within the row, from 1 on; 0 in the rest;
- `labels`: `input_ids` for a response and its EOS, -100 elsewhere, as Hugging Face's.

B is the batch size, T the number of inputs of a row: all of its tokens but the last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.config.schema_devices import MAX_PACKED_EXAMPLES
from gpt2x.data.mindrecord import RowArrays
from gpt2x.data.rows.base import Counts, Part, RowForm, padded_length
from gpt2x.data.sampling import Batch, Inputs
from gpt2x.data.sources.base import Source
from gpt2x.data.sources.instructions import Instruction, Instructions
from gpt2x.data.template import Template
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

IGNORED = -100  # the label of a token that is not learnt
ROWS_AT_ONCE = 1024


class Encoded(NamedTuple):
    """An example in tokens: `ids` with its EOS, of which the first `num_prompt` are the prompt."""

    ids: list[int]
    num_prompt: int


@dataclass(frozen=True)
class InstructionRows(RowForm):
    """Prompts with their responses.

    A response that does not fit is cut, and then has no EOS. An example is left out if its prompt leaves no room for a
    token of the response. Notes count both.
    """

    noun = "instructions"
    description = "gpt2x instructions"
    exports = False  # rows do not say whether they are packed, nor by which template their prompts were made

    @property
    def row_len(self) -> int:
        """Number of columns of a row."""
        return self.seq_len + 1

    def cut(self, part: Part, counts: Counts, on_chars: Callable[[int], None]) -> Iterator[RowArrays]:
        """Yield the rows of a part."""
        source, length = instructions(part.source), self.row_len
        examples = source.examples(part.split)
        encoded = encode(examples, part.tokenizer)
        fitting = [Encoded(one.ids[:length], one.num_prompt) for one in encoded if one.num_prompt < length]
        if not fitting:
            raise UserError(
                f"trainer.seq_len={self.seq_len}: no {part.split} prompt of dataset={source.config.name} leaves room "
                f"for a response; the shortest has {min(one.num_prompt for one in encoded)} tokens. "
                "Use a longer seq_len."
            )
        lengths = [len(example.ids) for example in fitting]
        packed = pack(lengths, length) if source.config.packing else [[index] for index in range(len(fitting))]
        rows = [[fitting[index] for index in row] for row in packed]
        yield from tables(rows, length, part.tokenizer.eos_id)
        counts.tokens, counts.documents = sum(lengths), len(fitting)
        counts.notes += truncation_notes(part.split, encoded, self.seq_len)
        on_chars(sum(len(example.prompt) + len(example.response) for example in examples))

    def template(self, source: Source | None) -> Template | None:
        """Return the template of the prompts."""
        return None if source is None else instructions(source).template

    def layout(self, dataset: DatasetConfig) -> str:
        """Return whether rows are packed."""
        return "packed" if dataset.packing else "one example per row"


def instructions(source: Source) -> Instructions:
    """Return `source` as a source of instructions.

    Raises:
        UserError: It has no responses.
    """
    if not isinstance(source, Instructions):
        raise UserError(
            f"dataset.corpus={source.config.corpus} has no responses. Use dataset=instructions for your own files."
        )
    return source


def truncation_notes(split: str, encoded: Sequence[Encoded], seq_len: int) -> list[str]:
    """Return what does not fit into rows of seq_len + 1 tokens, for the user."""
    length = seq_len + 1
    lost = [len(one.ids) - length for one in encoded if one.num_prompt < length < len(one.ids)]
    num_left_out = sum(one.num_prompt >= length for one in encoded)
    notes = []
    if lost:
        notes.append(
            f"{len(lost):,} {split} responses are cut to fit seq_len={seq_len} "
            f"({sum(lost):,} tokens lost, no EOS learnt at the cut)"
        )
    if num_left_out:
        notes.append(f"{num_left_out:,} {split} examples are left out: prompts beyond seq_len={seq_len}")
    return notes


def encode(examples: Sequence[Instruction], tokenizer: Tokenizer) -> list[Encoded]:
    """Return the tokens of examples.

    Prompt and response are encoded separately: the tokens of a prompt are those that `predict.py` gives to the model,
    whatever follows.
    """
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    responses = tokenizer.encode_batch([example.response for example in examples])
    return [
        Encoded([*prompt, *response, tokenizer.eos_id], len(prompt))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def pack(lengths: Sequence[int], size: int, most: int = MAX_PACKED_EXAMPLES) -> list[list[int]]:
    """Distribute examples over rows of `size` tokens: best fit, the longest first (Ding et al., arXiv:2404.10830).

    Args:
        lengths: Tokens of each example, each at most `size`.
        size: L.
        most: Examples of a row at most.

    Returns:
        Rows of indices into `lengths`, each in ascending order; rows are sorted by their first index.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tightest = bisect_left(room, (lengths[index], 0))
        if tightest == len(room):
            rows.append([index])
            left = size - lengths[index]
            insort(room, (left, len(rows) - 1))
        else:
            left, row = room.pop(tightest)
            rows[row].append(index)
            if len(rows[row]) < most:
                insort(room, (left - lengths[index], row))
    return sorted(sorted(row) for row in rows)


def tables(rows: Sequence[Sequence[Encoded]], length: int, eos_id: int) -> Iterator[RowArrays]:
    """Yield `input_ids`, `attention_mask` and `labels`, int32 (R, length) each, some rows at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        ids = np.full((len(some), length), eos_id, np.int32)
        numbers, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for index, row in enumerate(some):
            at = 0
            for number, example in enumerate(row, 1):
                end, response_start = at + len(example.ids), at + example.num_prompt
                ids[index, at:end], numbers[index, at:end] = example.ids, number
                labels[index, response_start:end] = ids[index, response_start:end]
                at = end
        yield ids, numbers, labels


def inputs_of(batch: Batch, *, width: int | None = None) -> Inputs:
    """Return a batch of rows as a model takes it, with the columns at which their examples begin.

    Args:
        batch: Rows as `tables` makes them.
        width: T; None: the least power of two, from 32 on, that has room for the longest row, or the width of the rows.
    """
    ids, numbers, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    if width is None:
        longest = int((numbers != 0).sum(axis=1).max()) - 1
        width = padded_length(longest, ids.shape[1] - 1)
    columns = np.arange(width, dtype=np.int32)
    begins = np.diff(numbers[:, :width], axis=1, prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(begins, columns, 0), axis=1).astype(np.int32)
    counted = (labels[:, 1 : width + 1] != IGNORED).astype(np.float32)
    return Inputs(ids[:, : width + 1], counted, starts)


FORM = InstructionRows
