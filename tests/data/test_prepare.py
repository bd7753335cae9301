import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2x.commands.prepare import run
from gpt2x.config import DatasetConfig, PathsConfig, PrepareConfig, TokenizerConfig
from gpt2x.data.mindrecord import COLUMNS, write_rows
from gpt2x.data.prepare import prepare
from gpt2x.data.reading.documents import Piece
from gpt2x.data.rows.blocks import Blocks, Packer
from gpt2x.data.sampling import batches
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.extensions import Extensions

BPE = TokenizerConfig(name="bpe", vocab_size=300)
LINES = [f"document {i} " + "word " * (i % 7) for i in range(60)]


def text(path, **keys):
    return DatasetConfig(name="text", corpus="text", path=str(path), **keys)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe.train(iter(LINES), 300)


def ids_of(split):
    rows = list(batches(split, batch_size=8, seed=0, epoch=0, shuffle=False, drop_last=False))
    return np.concatenate([r["input_ids"] for r in rows]), np.concatenate([r["attention_mask"] for r in rows])


@pytest.mark.parametrize("num_docs", [3, 4, 5, 9])
@pytest.mark.parametrize("separate", [True, False])
def test_packing(tokenizer, num_docs, separate):
    texts = [f" text {i}" * (i + 3) for i in range(num_docs)]
    stream = [i for t in texts for i in [*tokenizer.encode(t), *[tokenizer.eos_id] * separate]]
    for length in (2, 5, 8, len(stream) - 1, len(stream)):
        packer = Packer(tokenizer, length, separate=separate)
        blocks = list(packer.blocks(Piece(t, True) for t in texts))
        ids, mask = (np.concatenate(part) for part in zip(*blocks, strict=True))
        assert ids.dtype == mask.dtype == np.int32
        assert (packer.num_tokens, packer.num_documents) == (len(stream), num_docs)
        if separate:
            assert ids[:, 1:][mask[:, 1:] == 1].tolist() == stream[1:]
            assert packer.dropped_tokens == 0
            assert mask[:-1].all()
        else:
            assert ids.ravel().tolist() == stream[: len(stream) // length * length]
            assert packer.dropped_tokens == len(stream) % length


def test_tokenizer_that_looks_beyond_whitespace(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    prefixed = Tokenizer.load(tmp_path)
    assert not prefixed.cuts_at_whitespace
    assert prefixed.fingerprint != tokenizer.fingerprint
    pieces = [Piece("a", False), Piece("\nword", True), Piece("word", True)]
    (ids, _), *_ = Packer(prefixed, 4, separate=False).blocks(pieces)
    assert ids[0].tolist() == prefixed.encode("a\nwordword")[:4]


def test_text_end_to_end(corpus, tmp_path):
    data = prepare(text(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    assert (data.train.num_documents, data.val.num_documents) == (54, 6)
    documents = []
    for split in (data.train, data.val):
        ids, mask = ids_of(split)
        assert ids.shape == (split.num_blocks, 17)
        stream = [int(ids[0, 0]), *ids[:, 1:][mask[:, 1:] == 1].tolist()]
        assert len(stream) == split.num_tokens
        documents += data.tokenizer.decode(stream).split("<|endoftext|>")[:-1]
    assert sorted(documents) == sorted(LINES)
    assert data.summary.tokens_per_s > 0


def test_cache_hit_and_invalidation(corpus, tmp_path):
    cache = tmp_path / "cache"

    def files(dataset=None, tokenizer=BPE, seq_len=16):
        data = prepare(dataset or text(corpus), tokenizer, Blocks(seq_len), cache=cache)
        return data.train.files[0], data

    first, data = files()
    stamp = first.stat().st_mtime_ns
    again, hit = files()
    assert again == first
    assert again.stat().st_mtime_ns == stamp
    assert hit.summary.tokens_per_s is None
    assert (hit.fingerprint, hit.train, hit.val) == (data.fingerprint, data.train, data.val)
    others = [
        files(seq_len=15)[0],
        files(text(corpus, split_seed=1))[0],
        files(text(corpus, val_fraction=0.2))[0],
        files(tokenizer=TokenizerConfig(name="bpe", vocab_size=290))[0],
    ]
    assert len({first, *others}) == 5
    unrelated, same = files(text(corpus, skip_empty=True))  # a key that `text` does not read: prepared again, in vain
    assert unrelated != first
    assert same.fingerprint == data.fingerprint  # resuming compares the rows, not the keys
    moved = corpus.rename(corpus.with_name("moved.jsonl"))
    assert files(text(moved))[0] == first  # content counts, not the name
    moved.write_text(moved.read_text().replace("document 3 ", "document 4 "))
    assert files(text(moved))[0] != first


def test_a_new_kind_of_tokenizer_is_one_file(corpus, tmp_path, monkeypatch):
    """And one that is edited is trained again."""
    folder = tmp_path / "added_tokenizers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    code = """
from gpt2x.data.tokenizers.byte_level_bpe import train

def bytes_only(texts, config):
    return train([], SIZE, config.eos_token)

TRAIN = bytes_only
"""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("gpt2x.data.prepare.TRAINERS", Extensions("added_tokenizers", "TRAIN", "tokenizer.kind"))
    config = TokenizerConfig(name="bytes", kind="bytes_only", vocab_size=300)
    tokenizers = []
    for size in ("257", "256 + 1"):
        (folder / "bytes_only.py").write_text(code.replace("SIZE", size))
        tokenizers += [prepare(text(corpus), config, Blocks(16), cache=tmp_path / "cache").tokenizer for _ in range(2)]
        del sys.modules["added_tokenizers.bytes_only"]
    assert {tokenizer.vocab_size for tokenizer in tokenizers} == {257}
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 2
    with pytest.raises(UserError, match=r"tokenizer.kind=bytes does not exist; .*bytes_only"):
        prepare(text(corpus), TokenizerConfig(name="b", kind="bytes", vocab_size=300), Blocks(16), cache=tmp_path)


def test_checkpoint_tokenizer_and_one_split(corpus, tmp_path, tokenizer):
    missing = TokenizerConfig(name="gpt2", path="/no/such/place")
    data = prepare(
        text(corpus), missing, Blocks(16), cache=tmp_path / "cache", checkpoint_tokenizer=tokenizer, splits=("val",)
    )
    assert data.train is None
    assert data.tokenizer is tokenizer
    assert data.val.num_documents == 6


def test_train_text_alone_says_so(corpus, tmp_path):
    alone = DatasetConfig(name="text", corpus="text", train_path=str(corpus))
    data = prepare(alone, BPE, Blocks(16), cache=tmp_path / "cache")
    assert data.val is None
    assert data.train.num_documents == 60
    assert any("val_path is null" in note for note in data.summary.notes)
    with pytest.raises(UserError, match=r"dataset=text has no val text. Give dataset.val_path"):
        prepare(alone, BPE, Blocks(16), cache=tmp_path / "cache", splits=("val",))


def test_too_short_for_one_block(corpus, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"The train part of dataset=text has \d+ tokens, fewer than one block of 5001"):
        prepare(text(corpus), BPE, Blocks(5000), cache=cache)
    with pytest.raises(UserError, match=r"The val part .* \(seq_len=150 needs seq_len \+ 1\).*larger dataset.val_frac"):
        prepare(text(corpus, val_fraction=0.04), BPE, Blocks(150), cache=cache)
    assert not [p for p in (cache / "datasets").iterdir() if p.name.startswith((".", "text-val"))]
    with pytest.raises(UserError, match="seq_len=0 is too short"):
        prepare(text(corpus), BPE, Blocks(0), cache=cache)


def test_cache_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"paths.cache: cannot write .*"):
        prepare(text(corpus), BPE, Blocks(16), cache=tmp_path / "file")


def test_wrong_line_leaves_no_cache(corpus, tmp_path):
    corpus.write_text(corpus.read_text() + "\n{")
    with pytest.raises(UserError, match="line 61 is not JSON"):
        prepare(text(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.fixture
def records(tmp_path, tokenizer):
    folder = tmp_path / "records"
    folder.mkdir()
    ids = np.arange(10 * 9, dtype=np.int32).reshape(10, 9) % 256
    write_rows(folder / "x.mindrecord", [(ids, np.ones_like(ids), ids)], "x")
    tokenizer.save(tmp_path / "tokenizer")
    return folder / "x.mindrecord", TokenizerConfig(name="gpt2", path=str(tmp_path / "tokenizer")), ids


def test_mindrecord_is_used_directly(records, tmp_path):
    path, config, ids = records
    for dataset, splits in (
        (text(path), ("train", "val")),
        (text(path), ("val",)),
        (text(path.parent), ("val",)),
        (DatasetConfig(name="w", corpus="wikitext2", train_path=str(path), val_path=str(path)), ("train", "val")),
    ):
        data = prepare(dataset, config, Blocks(8), cache=tmp_path / "cache", splits=splits)
        split = data.train or data.val
        assert (split.num_blocks, split.block_len, split.num_tokens) == (10, 9, 90)
        np.testing.assert_array_equal(ids_of(split)[0], ids)
    assert not (tmp_path / "cache").exists()


def test_mindrecord_beside_text(records, corpus, tmp_path):
    path, config, _ = records
    mixed = DatasetConfig(name="text", corpus="text", train_path=str(corpus), val_path=str(path))
    data = prepare(mixed, config, Blocks(8), cache=tmp_path / "cache")
    assert data.val.num_blocks == 10
    assert data.train.num_documents == 60


def test_wrong_mindrecord(records, tmp_path):
    path, config, _ = records

    def refused(dataset, message, tokenizer=config, seq_len=8):
        with pytest.raises(UserError, match=message):
            prepare(dataset, tokenizer, Blocks(seq_len), cache=tmp_path / "cache")

    refused(
        text(path), r"row 0 of x.mindrecord has 9 tokens, but a block of 17 is needed.*trainer.seq_len=8", seq_len=16
    )
    refused(text(path), r"tokenizer.path=null: dataset=text gives no training text", BPE)
    refused(text(tmp_path / "none.mindrecord"), "none.mindrecord is missing")
    ids = np.full((2, 9), 300, np.int32)
    high = tmp_path / "high.mindrecord"
    write_rows(high, [(ids, np.ones_like(ids), ids)], "x")
    refused(text(high), "row 0 of high.mindrecord has token id 300, outside the vocabulary of 300")
    Path(f"{high}.db").unlink()
    refused(text(high), r"high.mindrecord.db is missing. A MindRecord file and its .db")
    path.write_bytes(path.read_bytes()[:1000])
    refused(text(path), "cannot be read as MindRecord")


@pytest.mark.parametrize(("label", "mask", "is_refused"), [(7, 1, True), (-100, 1, True), (-100, 0, False)])
def test_mindrecord_of_other_labels(records, tmp_path, label, mask, is_refused):
    """Labels are not read in training, so labels that mean something else than input_ids must not pass."""
    from mindspore.mindrecord import FileWriter

    ids = np.arange(9, dtype=np.int32)
    file = tmp_path / "labels.mindrecord"
    writer = FileWriter(str(file))
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in COLUMNS}, "x")
    masks, labels = np.ones_like(ids), ids.copy()
    labels[5], masks[5] = label, mask
    writer.write_raw_data(
        [dict(zip(COLUMNS, row, strict=True)) for row in ((ids, ids * 0 + 1, ids), (ids, masks, labels))]
    )
    writer.commit()
    both = DatasetConfig(name="w", corpus="text", train_path=str(records[0]), val_path=str(file))
    if is_refused:
        with pytest.raises(UserError, match=rf"dataset.val_path=.*: row 1 of labels.mindrecord .* {label}, not 5"):
            prepare(both, records[1], Blocks(8), cache=tmp_path / "cache")
    else:
        assert prepare(both, records[1], Blocks(8), cache=tmp_path / "cache").val.num_tokens == 17


def test_mindrecord_in_several_files(tmp_path, tokenizer):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "x.mindrecord"), shard_num=3)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in COLUMNS}, "x")
    ids = np.arange(9, dtype=np.int32)
    writer.write_raw_data([dict.fromkeys(COLUMNS, ids * 0 + 1) for _ in range(2)])  # one of the files stays empty
    writer.commit()
    tokenizer.save(tmp_path / "tokenizer")
    saved = TokenizerConfig(name="gpt2", path=str(tmp_path / "tokenizer"))
    data = prepare(text(tmp_path), saved, Blocks(8), cache=tmp_path / "cache", splits=("val",))
    assert (len(data.val.files), data.val.num_blocks) == (3, 2)


def test_home_in_paths(corpus, tmp_path, monkeypatch):
    """A folder with both parts, under `~`: the validation part must not become training data."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run(PrepareConfig(text(f"~/{corpus.name}"), BPE, PathsConfig("~", "~/cache"), 16, "~/prepared"))
    exported = TokenizerConfig(name="gpt2", path="~/prepared/tokenizer")
    folder = tmp_path / "prepared"
    paths = {"train_path": "~/prepared/train.mindrecord", "val_path": "~/prepared/val.mindrecord"}
    for dataset in (text("~/prepared"), DatasetConfig(name="text", corpus="text", **paths)):
        data = prepare(dataset, exported, Blocks(16), cache=Path("~/cache"))
        assert data.train.files == (folder / "train.mindrecord",)
        assert data.val.files == (folder / "val.mindrecord",)
    assert not Path("~").exists()


def test_mindrecord_of_other_columns(records, tmp_path):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "other.mindrecord"))
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "x")
    writer.write_raw_data([{"input_ids": np.zeros(9, np.int32)}])
    writer.commit()
    with pytest.raises(UserError, match=r"has no column attention_mask, labels \(it has input_ids\)"):
        prepare(text(tmp_path / "other.mindrecord"), records[1], Blocks(8), cache=tmp_path / "cache")


def test_command_writes_a_folder_that_can_be_read(corpus, tmp_path, capsys):
    output = tmp_path / "out"
    config = PrepareConfig(text(corpus), BPE, PathsConfig(str(tmp_path), str(tmp_path / "cache")), 16, str(output))
    run(config)
    printed = capsys.readouterr().out
    assert "tokens/s" in printed
    assert str(output / "train.mindrecord") in printed
    exported = TokenizerConfig(name="gpt2", path=str(output / "tokenizer"))
    cached = prepare(text(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    read = prepare(text(output), exported, Blocks(16), cache=tmp_path / "nothing")
    for split in ("train", "val"):
        np.testing.assert_array_equal(ids_of(getattr(read, split))[0], ids_of(getattr(cached, split))[0])
    assert read.tokenizer.fingerprint == cached.tokenizer.fingerprint
    assert read.fingerprint == cached.fingerprint  # of the rows, wherever they lie: a run may be resumed with either
    assert (read.train.num_documents, read.train.num_tokens) == (54, cached.train.num_tokens)
    other = TokenizerConfig(name="gpt2", path=str(tmp_path / "other"))
    byte_level_bpe.train(iter(LINES), 290).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"was prepared with a different tokenizer.*tokenizer.path=.*out/tokenizer"):
        prepare(text(output), other, Blocks(16), cache=tmp_path / "nothing")
    with pytest.raises(UserError, match="is not an empty directory; nothing is overwritten"):
        run(config)


@pytest.mark.launch
def test_command_line(corpus, tmp_path):
    def command(*overrides):
        code = [sys.executable, "-m", "gpt2x", "prepare", f"paths.cache={tmp_path}/cache", *overrides]
        return subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = command("dataset=text", f"dataset.path={corpus}", "tokenizer=bpe", "tokenizer.vocab_size=300", "seq_len=16")
    assert done.returncode == 0, done.stderr
    assert "Preparing text train: " in done.stderr
    assert "dropped tokens" in done.stdout
    wrong = command("dataset=text", "dataset.path=none.txt", "tokenizer=bpe")
    assert wrong.returncode == 2
    assert "dataset.path=none.txt does not exist" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", corpus.name]
