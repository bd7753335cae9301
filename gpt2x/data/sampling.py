"""The order of batches: a pure function of seed and epoch.

B is the batch size, L the number of columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpt2x.data.mindrecord import COLUMNS, Split

Batch = dict[str, np.ndarray]


class Inputs(NamedTuple):
    """What a loss and a validation take of a batch.

    Attributes:
        ids: (B, T + 1) int32.
        counted: (B, T) fp32, 1 where the loss counts.
        starts: (B, T) int32, the column at which each token's segment begins; None: each row is one segment.
    """

    ids: np.ndarray
    counted: np.ndarray
    starts: np.ndarray | None = None


def num_tokens(batch: Batch, seq_len: int) -> int:
    """Return the tokens that a model reads of a batch, at most seq_len of each row, without padding."""
    return int(np.minimum((batch["attention_mask"] != 0).sum(axis=1), seq_len).sum())


def num_batches(split: Split, batch_size: int, *, drop_last: bool) -> int:
    """Return the number of batches in one pass over `split`."""
    return split.num_blocks // batch_size if drop_last else -(-split.num_blocks // batch_size)


def block_order(num_blocks: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Return the order of blocks in an epoch, int64 (num_blocks,).

    Philox is a counter-based generator (Salmon et al., SC 2011): the order needs no state from earlier epochs.
    """
    if not shuffle:
        return np.arange(num_blocks)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    return random.permutation(num_blocks)


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    start_batch: int = 0,
    drop_last: bool,
    num_workers: int = 1,
    replica: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield the batches of one epoch, starting with `start_batch`.

    MindDataset gets the whole order as an explicit list of rows (SubsetSampler) instead of shuffling by itself. So the
    number of workers, the process and what was read before do not matter, and skipping is a slice of that list.

    Args:
        split: Blocks to read.
        batch_size: B.
        seed: With `epoch`, decides the order when `shuffle` is true.
        epoch: Counted from 0.
        shuffle: False: the order of the file.
        start_batch: Number of batches to skip at the start, at no cost.
        drop_last: True: skip a last batch of fewer than B blocks. False: yield it.
        num_workers: Number of reading threads; has no influence on the values.
        replica: (index, count): yield only the index-th of count equal parts of each batch; requires `drop_last`.

    Yields:
        `input_ids`, `attention_mask` and `labels`, int32 (B, L) each.
    """
    order = block_order(split.num_blocks, seed=seed, epoch=epoch, shuffle=shuffle)
    stop = num_batches(split, batch_size, drop_last=drop_last) * batch_size
    order = order[start_batch * batch_size : stop]
    index, count = replica
    if count > 1:
        batch_size //= count
        order = order.reshape(-1, count, batch_size)[:, index].reshape(-1)
    yield from read_batches(split, order, batch_size, num_workers)


def evaluation_rows(num_rows: int, max_rows: int | None) -> np.ndarray:
    """Return the rows that a validation reads, int64 (min(num_rows, max_rows),), in the order of the file.

    They are drawn without replacement by a seed of their own, so that every run of a corpus validates on the same rows,
    whatever its seed, batch and layout; the rows of a smaller number are among those of a larger one. The first rows of
    a file would be of one document, or of one class if the file is sorted.
    """
    if max_rows is None or max_rows >= num_rows:
        return np.arange(num_rows)
    return np.sort(block_order(num_rows, seed=0, epoch=0, shuffle=True)[:max_rows])


def evaluation_batches(split: Split, batch_size: int, max_rows: int | None = None) -> Iterator[Batch]:
    """Yield `evaluation_rows` in batches of B rows, the last of which may have fewer."""
    yield from read_batches(split, evaluation_rows(split.num_blocks, max_rows), batch_size)


def read_batches(split: Split, order: np.ndarray, batch_size: int, num_workers: int = 1) -> Iterator[Batch]:
    """Yield these rows in this order, in batches of B rows, the last of which may have fewer, as `batches` does."""
    if not len(order):
        return
    import mindspore.dataset as ds

    rows = ds.MindDataset(
        [str(file) for file in split.files],
        columns_list=list(COLUMNS),
        num_parallel_workers=num_workers,
        sampler=ds.SubsetSampler(order.tolist()),
    ).batch(batch_size, drop_remainder=False, num_parallel_workers=num_workers)
    iterator = rows.create_tuple_iterator(num_epochs=1, output_numpy=True)
    try:
        for values in iterator:
            yield {name: value.astype(np.int32, copy=False) for name, value in zip(COLUMNS, values, strict=True)}
    finally:
        iterator.release()  # ends the reading threads when the caller stops early
