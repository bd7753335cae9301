"""MindRecord files that users bring: the reference's names, columns and lengths, written by MindSpore's FileWriter."""

import json

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter

from gpt2x.config import DatasetConfig, EvaluationConfig, TokenizerConfig
from gpt2x.data.mindrecord import COLUMNS, files_by_split, find_records
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks, with_all_columns
from gpt2x.data.sampling import batches
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.evaluate.protocols import reference
from gpt2x.evaluate.text import open_texts
from tests.support.in_process import run, train
from tests.support.small_runs import curve

SEQ_LEN = 8


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe.train(iter(["the ferry left the harbour"] * 9), 260)


def write(file, rows, *, types=None, columns=COLUMNS, num_files=1):
    """Write rows of ids as the reference's script does: mask of ones, labels equal to the ids."""
    types = {name: "int32" for name in columns} | (types or {})
    writer = FileWriter(str(file), shard_num=num_files)
    writer.add_schema({name: {"type": types[name], "shape": [-1]} for name in columns}, "wikitext-2")
    values = [
        {n: (np.ones_like(row) if n == "attention_mask" else row).astype(types[n]) for n in columns} for row in rows
    ]
    writer.write_raw_data(values)
    writer.commit()


def rows_of(count, length, start=0):
    return [(np.arange(length) + start + i).astype(np.int32) % 250 for i in range(count)]


def prepared(path, tokenizer, tmp_path, **options):
    dataset = DatasetConfig(name="text", corpus="text", path=str(path))
    return prepare(
        dataset, TokenizerConfig(), Blocks(options.pop("seq_len", SEQ_LEN)), cache=tmp_path / "cache",
        checkpoint_tokenizer=tokenizer, **options,
    )  # fmt: skip


def ids_of(split):
    whole = batches(split, batch_size=99, seed=0, epoch=0, shuffle=False, drop_last=False)
    return np.concatenate([batch["input_ids"] for batch in whole])


@pytest.mark.parametrize("val", ["valid", "val", "validation", "dev", "test", "eval"])
def test_the_reference_s_names_say_the_split(tmp_path, tokenizer, val):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    write(folder / "wikitext-2.train.mindrecord", rows_of(5, SEQ_LEN + 1))
    write(folder / f"wikitext-2.{val}.mindrecord", rows_of(2, SEQ_LEN, start=90))
    data = prepared(folder, tokenizer, tmp_path)
    assert (data.train.num_blocks, data.train.block_len) == (5, SEQ_LEN + 1)
    assert (data.val.num_blocks, data.val.block_len) == (2, SEQ_LEN)
    assert data.val.num_tokens == 2 * SEQ_LEN
    np.testing.assert_array_equal(ids_of(data.train), np.stack(rows_of(5, SEQ_LEN + 1)))
    for split, count in (("train", 5), ("val", 2)):  # as an evaluation asks
        assert getattr(prepared(folder, tokenizer, tmp_path, splits=(split,)), split).num_blocks == count


def test_only_validation_rows_are_no_training_rows(tmp_path, tokenizer):
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "wikitext-2.valid.mindrecord", rows_of(2, SEQ_LEN))
    assert prepared(folder, tokenizer, tmp_path, splits=("val",)).val.num_blocks == 2
    for splits in (("train", "val"), ("train",)):
        with pytest.raises(UserError, match=r"has no train text. Give dataset.train_path"):
            prepared(folder, tokenizer, tmp_path, splits=splits)


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["x.mindrecord"], [], []),
        (["x.mindrecord0", "x.mindrecord1"], [], []),
        (["train.mindrecord0", "train.mindrecord1", "val.mindrecord"], [0, 1], [2]),
        (["wiki_train_v2.mindrecord", "wiki_valid_v2.mindrecord", "wiki_test_v2.mindrecord"], [0], [1]),
        (["TRAIN.mindrecord", "Dev.mindrecord"], [0], [1]),
        (["training-data.mindrecord", "evaluation.mindrecord"], [0], [1]),
        (["train.mindrecord", "device.mindrecord"], None, None),
        (["train.mindrecord", "more.mindrecord"], None, None),
        (["train.mindrecord", "train_val.mindrecord"], None, None),
    ],
)
def test_names_of_several_files(tmp_path, names, train, val):
    files = [tmp_path / name for name in names]
    if train is None:
        with pytest.raises(UserError, match=f"dataset.path=x: the names of {names[1]} do not say"):
            files_by_split(files, "dataset.path=x")
    else:
        splits = files_by_split(files, "dataset.path=x")
        assert splits == {"train": [files[i] for i in train], "val": [files[i] for i in val]}
    for file in files:
        file.touch()
    if train == [] and val == []:
        config = DatasetConfig(name="text", corpus="text", path=str(tmp_path))
        assert find_records(config, ("train", "val"))["train"].files == files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ("input_ids",)}, "has no column attention_mask, labels"),
        ({"types": {"input_ids": "float32"}}, "input_ids is float32, but rows hold ids: int32 or int64"),
        ({"types": {"attention_mask": "float64"}}, "attention_mask is float64"),
    ],
)
def test_other_columns_and_types_are_rejected_by_name(tmp_path, tokenizer, options, message):
    write(tmp_path / "a.mindrecord", rows_of(2, SEQ_LEN + 1), **options)
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "a.mindrecord", tokenizer, tmp_path)


def test_int64_is_read(tmp_path, tokenizer):
    write(tmp_path / "a.mindrecord", rows_of(2, SEQ_LEN + 1), types=dict.fromkeys(COLUMNS, "int64"))
    split = prepared(tmp_path / "a.mindrecord", tokenizer, tmp_path).train
    np.testing.assert_array_equal(ids_of(split), np.stack(rows_of(2, SEQ_LEN + 1)))


@pytest.mark.parametrize("lengths", [[SEQ_LEN, SEQ_LEN + 1], [SEQ_LEN + 1, SEQ_LEN], [SEQ_LEN - 1], [SEQ_LEN + 2]])
def test_rows_of_other_or_several_lengths_are_rejected(tmp_path, tokenizer, lengths):
    write(tmp_path / "a.mindrecord", [row for length in lengths for row in rows_of(1, length)])
    with pytest.raises(
        UserError, match=rf"has {lengths[-1]} tokens, but a block of .*trainer.seq_len={lengths[-1] - 1}"
    ):
        prepared(tmp_path / "a.mindrecord", tokenizer, tmp_path)


def test_a_row_of_seq_len_tokens_has_one_target_less():
    ids = np.arange(2 * SEQ_LEN, dtype=np.int32).reshape(2, SEQ_LEN)
    batch = with_all_columns({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}, SEQ_LEN)
    assert batch["input_ids"].shape == (2, SEQ_LEN + 1)
    assert batch["attention_mask"][:, 1:].sum() == 2 * (SEQ_LEN - 1)
    np.testing.assert_array_equal(batch["input_ids"][:, :-1], ids)
    full = {"input_ids": np.ones((2, SEQ_LEN + 1), np.int32)}
    assert with_all_columns(full, SEQ_LEN) is full


class CountedNll:
    """Stands for a scorer: the nll of a token is its id."""

    batch_size = 3

    def score(self, ids):
        return ids[:, 1:].astype(np.float64)


@pytest.mark.parametrize("length", [SEQ_LEN, SEQ_LEN + 1])
def test_an_evaluation_scores_all_tokens_of_a_row_but_the_first(tmp_path, tokenizer, length):
    """The reference's rows for evaluation have seq_len tokens, those of preparation one more."""
    rows = rows_of(7, length)
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "wikitext-2.valid.mindrecord", rows)
    evaluation = EvaluationConfig(protocols=["reference"], split="val", seq_len=SEQ_LEN)
    dataset = DatasetConfig(name="text", corpus="text", path=str(folder))
    (split,) = open_texts(dataset, evaluation, tokenizer, tmp_path / "cache").values()
    result = reference(CountedNll(), split, SEQ_LEN)
    scored = [row[1:].astype(float) for row in rows]
    assert result.num_tokens == 7 * (length - 1)
    assert result.total_nll == np.concatenate(scored).sum()
    assert result.loss == pytest.approx(np.mean([np.mean(scored[i : i + 3]) for i in (0, 3, 6)]))


@pytest.mark.run
def test_a_run_trains_and_validates_on_the_reference_s_rows(tmp_path, tokenizer):
    """Training rows of seq_len + 1 tokens, validation rows of seq_len: each row has its targets, and no more."""
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    write(folder / "wikitext-2.train.mindrecord", rows_of(8, 33))
    write(folder / "wikitext-2.valid.mindrecord", rows_of(4, 32, start=50))
    tokenizer.save(folder / "tokenizer")
    options = [f"dataset.path={folder}", f"tokenizer.path={folder / 'tokenizer'}", "trainer.max_steps=2",
               "trainer.eval_every_steps=2"]  # fmt: skip
    finished = train(tmp_path, *options)
    (val,) = [values for values in curve(finished.run_dir, "val/loss").values() if values[0] is not None]
    saved = finished.run_dir / "checkpoints" / "step_2"
    evaluated = run(
        "evaluate", f"load={saved}", "dataset=text", f"dataset.path={folder}", "evaluation.protocols=[reference]",
        "evaluation.seq_len=32", "evaluation.batch_size=4", f"paths.outputs={tmp_path}/outputs", "tracker=none",
        f"paths.cache={tmp_path}/cache", "evaluation.bootstrap_resamples=0",
    )  # fmt: skip
    results = json.loads((evaluated.run_dir / "results.json").read_text())["results"]["reference"]
    assert results["num_tokens"] == 4 * 31
    assert results["token_loss"] == pytest.approx(val[0], rel=1e-5)
