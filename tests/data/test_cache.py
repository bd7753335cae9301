"""Prepared data and trained tokenizers: damages, remains of killed builders, several builders at once."""

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data import cache
from gpt2x.data.cache import META, build_once, examined, file_digest, write_index
from gpt2x.data.export import export
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.sampling import batches
from gpt2x.errors import UserError
from gpt2x.runtime.building import if_sole_builder, sole_builder

BPE = TokenizerConfig(name="bpe", vocab_size=300)


@pytest.fixture
def entry(tmp_path):
    """A directory of a cache with two files."""

    def build(folder):
        (folder / "rows").write_bytes(b"rows")
        (folder / "sub").mkdir()
        (folder / "sub" / "index").write_bytes(b"index")
        return {"count": 2}

    directory = tmp_path / "cache" / "data-1"
    build_once(directory, build)
    return directory, build


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def flip_unseen(path):
    """As a disk does it: size and times stay."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def to_directory(path):
    path.unlink()
    path.mkdir()


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "flip": (flip, "is damaged: "),
    "flip, same times": (flip_unseen, "is damaged: "),
    "truncate": (lambda path: path.write_bytes(path.read_bytes()[:3]), "is damaged: "),
    "empty": (lambda path: path.write_bytes(b""), "is damaged: "),
    "remove": (Path.unlink, "is missing|has no index"),
    "directory": (to_directory, "is a directory"),
    "dangling link": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
    "pipe": (to_pipe, "is no regular file"),
    "nested": (lambda path: path.write_text("[" * 100_000), "is damaged: "),
    "foreign": (lambda path: path.write_text("{}"), "is damaged: |has no index of gpt2x"),
}


@pytest.mark.parametrize("name", ["rows", "sub/index", META])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named_and_built_again(entry, name, damage, capsys):
    directory, build = entry
    change, cause = DAMAGES[damage]
    change(directory / name)
    facts, message = examined(directory)
    assert facts is None
    assert str(directory) in message
    assert any(part in message for part in cause.split("|"))
    capsys.readouterr()
    assert build_once(directory, build)["count"] == 2
    printed = capsys.readouterr().err.replace("\n", "")
    assert printed.count("it is built again") == 1
    assert message.replace(" ", "") in printed.replace(" ", "")
    assert (directory / "rows").read_bytes() == b"rows"
    assert examined(directory) == (facts := build_once(directory, lambda _: pytest.fail("built again")), "")
    assert facts["count"] == 2
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_an_index_of_another_directory_or_version_is_not_taken(entry, tmp_path):
    directory, build = entry
    copy = shutil.copytree(directory, directory.with_name("data-2"))
    assert examined(copy) == (None, f"{copy / META} is the index of a different directory")
    older = {"facts": {"count": 2}, "files": {"rows": 4, "sub/index": 5}}
    (directory / META).write_text(json.dumps(older))
    assert "was written by an older version" in examined(directory)[1]
    build_once(directory, build)
    assert examined(directory)[0]["count"] == 2


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere"), Path.mkdir])
def test_what_is_no_directory_is_replaced(entry, make):
    directory, build = entry
    shutil.rmtree(directory)
    make(directory)
    assert build_once(directory, build)["count"] == 2
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 150])
def test_the_digest_sees_every_byte(tmp_path, size, monkeypatch):
    """Also among zeros, which are not hashed byte by byte."""
    monkeypatch.setattr(cache, "PIECE_BYTES", 64)
    monkeypatch.setattr(cache, "READ_BYTES", 16)
    monkeypatch.setattr(cache, "ZEROS", bytes(16))
    path, content = tmp_path / "file", bytearray(size)
    contents = [bytes(content), bytes(size + 1)]
    for at in range(size):
        content[at] = 1
        contents.append(bytes(content))
    digests = set()
    for one in contents:
        path.write_bytes(one)
        digests.add(file_digest(path))
    assert len(digests) == size + 2


@pytest.mark.parametrize("count", [2, 5])
def test_one_builds_and_the_others_wait(tmp_path, count, capsys):
    directory, built = tmp_path / "cache" / "x", []
    start = threading.Barrier(count)
    second_waits = threading.Event()

    def build(folder):
        built.append(folder)
        deadline = time.monotonic() + 20
        while "waiting for it" not in capsys.readouterr().err and time.monotonic() < deadline:
            time.sleep(0.01)
        second_waits.set()
        (folder / "rows").write_text("rows")
        return {"number": len(built)}

    def prepared(_):
        start.wait(20)
        return build_once(directory, build)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(prepared, range(count)))
    assert second_waits.is_set()
    assert results == [{"number": 1, "directory": "x"}] * count
    assert len(built) == 1
    assert [path.name for path in directory.parent.iterdir()] == ["x"]


def killed_while_it_builds(directory):
    """Leave what a builder of `directory` leaves that is killed in the middle of its work."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with sole_builder(directory):
            partial = directory.with_name(f".{directory.name}.tmp-0123abcd")
            partial.mkdir()
            (partial / "rows").touch()
            os.write(writing, b".")
            signal.pause()
    os.read(reading, 1)
    return child


def test_remains_of_killed_builders_are_removed_and_those_of_living_ones_stay(tmp_path):
    folder = tmp_path / "cache"
    dead, living = killed_while_it_builds(folder / "dead"), killed_while_it_builds(folder / "living")
    os.kill(dead, signal.SIGKILL)
    os.waitpid(dead, 0)
    (folder / ".dead.old-0123abcd").touch()
    assert {".dead.lock", ".dead.tmp-0123abcd"} <= {path.name for path in folder.iterdir()}
    try:
        build_once(folder / "other", lambda _: {})  # any next preparation removes them
        assert sorted(path.name for path in folder.iterdir()) == [".living.lock", ".living.tmp-0123abcd", "other"]
        assert (folder / ".living.tmp-0123abcd" / "rows").is_file()
        with if_sole_builder(folder / "living") as may_build:
            assert not may_build
    finally:
        os.kill(living, signal.SIGKILL)
        os.waitpid(living, 0)
    build_once(folder / "living", lambda _: {})
    assert sorted(path.name for path in folder.iterdir()) == ["living", "other"]


def test_a_failing_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "rows").touch()
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        build_once(tmp_path / "cache" / "x", fail)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"document {i} " + "word " * (i % 7)}) for i in range(60)))
    return path


def dataset(path):
    return DatasetConfig(name="text", corpus="text", path=str(path))


def ids_of(split):
    return np.concatenate(
        [b["input_ids"] for b in batches(split, batch_size=8, seed=0, epoch=0, shuffle=False, drop_last=False)]
    )


@pytest.mark.parametrize("name", ["train.mindrecord", "train.mindrecord.db", "tokenizer.json"])
def test_damaged_rows_and_tokenizers_give_the_same_again(corpus, tmp_path, capsys, name):
    """A flipped bit in the middle of the rows, in their index, or in the tokenizer: the next start writes them anew."""
    first = prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob(name)
    with path.open("r+b") as file:
        start = 1 << 24 if name == "train.mindrecord" else 2000  # where a MindRecord file has its rows
        file.seek(start)
        at, byte = next((start + i, byte) for i, byte in enumerate(file.read(1 << 16)) if byte)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    capsys.readouterr()
    again = prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    assert f"{name} is damaged: its content has changed" in capsys.readouterr().err.replace("\n", " ")
    assert again.fingerprint == first.fingerprint
    assert len(ids_of(again.train)) == again.train.num_blocks
    assert prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "cache").summary.tokens_per_s is None


def test_the_fingerprint_is_that_of_the_rows(corpus, tmp_path):
    """Two preparations of one text have the same, wherever they lie; one other word in one row gives another."""
    first = prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "a")
    tokenizer = first.tokenizer
    again = prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "b")
    assert again.fingerprint == first.fingerprint
    changed = tmp_path / "changed.jsonl"
    changed.write_text(corpus.read_text().replace("document 5 ", "document 6 "))
    other = prepare(dataset(changed), BPE, Blocks(16), cache=tmp_path / "b", checkpoint_tokenizer=tokenizer)
    assert other.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert other.fingerprint != first.fingerprint


def test_exported_rows_are_compared_with_their_index(corpus, tmp_path):
    data = prepare(dataset(corpus), BPE, Blocks(16), cache=tmp_path / "cache")
    folder = tmp_path / "exported"
    export(data.splits(), data.tokenizer, data.labels, data.fingerprint, folder)
    config = TokenizerConfig(name="gpt2", path=str(folder / "tokenizer"))

    def read(place=folder):
        return prepare(dataset(place), config, Blocks(16), cache=tmp_path / "nothing")

    assert read().fingerprint == data.fingerprint
    (folder / "tokenizer" / "note").touch()  # the index speaks of the rows
    moved = folder.rename(tmp_path / "moved")
    config.path = str(moved / "tokenizer")
    assert read(moved).fingerprint == data.fingerprint
    whole = (moved / "val.mindrecord").read_bytes()
    flip(moved / "val.mindrecord")
    with pytest.raises(UserError, match=r"dataset.path=.*val.mindrecord is damaged: .* Write the rows again"):
        read(moved)
    (moved / "val.mindrecord").write_bytes(whole)
    index = json.loads((moved / META).read_text())
    (moved / META).write_text(json.dumps(index)[:-9])
    with pytest.raises(UserError, match=r"meta.json is damaged: it is not JSON.* remove .*meta.json"):
        read(moved)
    (moved / META).write_text("{}")  # of another program
    assert read(moved).train.num_documents == 0


def test_a_launched_worker_compares_sizes(entry, monkeypatch):
    """Its launcher has compared the digests."""
    directory, build = entry
    monkeypatch.setenv("GPT2X_LAUNCHER", str(os.getppid()))
    monkeypatch.setattr("gpt2x.data.cache.file_digest", lambda path: pytest.fail("read again"))
    assert build_once(directory, build)["count"] == 2
    monkeypatch.undo()
    (directory / "rows").write_bytes(b"row")
    monkeypatch.setenv("GPT2X_LAUNCHER", str(os.getppid()))
    assert build_once(directory, build)["count"] == 2
    assert (directory / "rows").read_bytes() == b"rows"


def test_facts_are_those_of_the_index(tmp_path):
    (tmp_path / "rows").write_text("x")
    write_index(tmp_path, {"directory": tmp_path.name, "words": "ä\udcff", "share": 0.1})
    assert examined(tmp_path)[0]["words"] == "ä\udcff"
