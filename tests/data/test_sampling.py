from itertools import chain

import numpy as np
import pytest

from gpt2x.data.mindrecord import Split, write_rows
from gpt2x.data.sampling import batches, block_order, evaluation_batches, evaluation_rows, num_batches

ROWS, LENGTH = 103, 5
PINNED = [3, 6, 4, 0, 7, 5, 2, 1]  # a change of numpy's permutation would break resuming


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Row r holds the number r."""
    files = []
    for number, part in enumerate(np.array_split(np.arange(ROWS), 2)):
        file = tmp_path_factory.mktemp("records") / f"{number}.mindrecord"
        ids = np.repeat(part[:, None], LENGTH, axis=1).astype(np.int32)
        write_rows(file, [(rows, np.ones_like(rows), rows) for rows in np.array_split(ids, 3)], "x")
        files.append(file)
    return Split(tuple(files), ROWS, LENGTH, ROWS * LENGTH, 0, 0, None, "")


def read(split, **options):
    options = {"batch_size": 10, "seed": 3, "epoch": 0, "shuffle": True, "drop_last": False, **options}
    return [batch["input_ids"][:, 0].tolist() for batch in batches(split, **options)]


def test_order_is_the_stated_permutation(split):
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence((3, 0)))).permutation(ROWS).tolist()
    assert list(chain(*read(split))) == order
    assert sorted(order) == list(range(ROWS))
    assert read(split) == read(split)
    assert read(split, num_workers=2) == read(split)
    assert read(split, batch_size=7, num_workers=2)[0] == order[:7]  # batch size changes nothing but the cuts
    assert block_order(8, seed=0, epoch=0, shuffle=True).tolist() == PINNED


def test_seed_and_epoch_decide(split):
    orders = [tuple(list(chain(*read(split, seed=s, epoch=e)))) for s in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 4


def test_file_order(split):
    assert list(chain(*read(split, shuffle=False))) == list(range(ROWS))
    assert read(split, shuffle=False, seed=9, epoch=4, num_workers=2) == read(split, shuffle=False)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("start", [0, 1, 7, 10, 11, 50])
def test_skipping_is_exact(split, start, drop_last):
    whole = read(split, drop_last=drop_last)
    assert len(whole) == num_batches(split, 10, drop_last=drop_last) == (10 if drop_last else 11)
    assert read(split, start_batch=start, drop_last=drop_last) == whole[start:]
    assert len(whole[-1]) == (10 if drop_last else 3)


def test_columns_and_early_end(split):
    iterator = batches(split, batch_size=4, seed=0, epoch=0, shuffle=False, drop_last=True)
    batch = next(iterator)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert all(value.shape == (4, LENGTH) and value.dtype == np.int32 for value in batch.values())
    np.testing.assert_array_equal(batch["labels"], batch["input_ids"])
    iterator.close()
    assert read(split, shuffle=False)[0] == list(range(10))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("start", [0, 3])
def test_replicas_read_parts_of_the_same_batches(split, count, start):
    """Replica after replica: none of a batch's rows is lost, and none comes twice."""
    options = {"drop_last": True, "start_batch": start}
    replicas = [read(split, **options, replica=(index, count)) for index in range(count)]
    assert [list(chain(*parts)) for parts in zip(*replicas, strict=True)] == read(split, **options)
    assert {len(part) for part in chain(*replicas)} == {10 // count}


def test_a_validation_reads_the_same_rows_in_batches_of_any_size(split):
    rows = evaluation_rows(split.num_blocks, 4)
    expected = [tuple(batch["input_ids"][0]) for batch in evaluation_batches(split, 1, 4)]
    every = [tuple(row) for batch in evaluation_batches(split, 3) for row in batch["input_ids"]]
    assert expected == [every[row] for row in rows]
    for size in (2, 3, 4, 9):
        assert [tuple(row) for batch in evaluation_batches(split, size, 4) for row in batch["input_ids"]] == expected


def test_rows_of_a_validation_are_drawn_once_from_the_whole_split():
    rows = evaluation_rows(1000, 100)
    assert (np.diff(rows) > 0).all()
    assert 350 < np.median(rows) < 650
    assert set(evaluation_rows(1000, 20)) < set(rows)
    for most in (None, 1000, 2000):
        assert evaluation_rows(1000, most).tolist() == list(range(1000))
