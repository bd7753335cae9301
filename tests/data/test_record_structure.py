"""Damaged MindRecord files that would end the process in MindSpore are named before it opens them."""

import os
import random
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gpt2x.data.cache import DamagedError
from gpt2x.data.mindrecord import RecordFiles, scan_rows, write_rows
from gpt2x.data.record_structure import check_structure
from gpt2x.errors import UserError

ROWS = 1 << 24  # where a file has its first row
RAW = 3 << 24


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a small file and of its index, and of the file those that are not zero."""
    file = tmp_path_factory.mktemp("written") / "x.mindrecord"
    ids = np.arange(40 * 33, dtype=np.int32).reshape(40, 33) % 250
    write_rows(file, [(ids, np.ones_like(ids), ids)], "x")
    content = file.read_bytes()
    places = (i for start, size in ((0, 720), (ROWS, 9000), (RAW, 520)) for i in range(start, start + size))
    used = [i for i in places if content[i]]
    return content, Path(f"{file}.db").read_bytes(), used


@pytest.fixture
def damaged(written, tmp_path):
    """Write the file with a change of its bytes, and its index."""
    content, database, _ = written

    def write(*changes, database=database, size=None):
        file = tmp_path / "x.mindrecord"
        with file.open("wb") as out:
            for start in (0, ROWS, RAW):  # the rest are zeros
                out.seek(start)
                out.write(content[start : start + 10_000])
            for at, byte in changes:
                out.seek(at)
                out.write(bytes([byte]))
            out.truncate(len(content) if size is None else size)
        Path(f"{file}.db").write_bytes(database)
        return file

    return write


def test_a_sound_file_is_accepted(damaged):
    check_structure(damaged())


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (b'"header_size"', b'"heades_size"'),
        (b'"end_row_id":40', b'"end_row_id":50'),  # MindSpore: SIGSEGV
        (b'"page_type":"BLOB', b'"page_type":"CLOB'),
        (b'"page_id":1', b'"page_id":9'),
        (b'"id":0', b'"id":"'),
        (b'"int32"', b'"int33"'),
        (b'"shape":[-1]', b'"shaqe":[-1]'),
        (b'"labels"]', b'"labelz"]'),
        (b'"shard_id":0', b'"shard_id":4'),
        (b'"statistics":null', b'"statistict":null'),
        (b'"version":"3.0"', b'"version":[3.0]'),
        (b'[{"blob_fields"', b'[ "blob_fields"'),
        (b'"compression_size":9', b'"compression_size":-'),
    ],
)
def test_a_header_of_other_keys_types_or_values_is_named(damaged, written, text, other):
    start = written[0].index(text)
    with pytest.raises(DamagedError, match=r"x.mindrecord is damaged: "):
        check_structure(damaged(*((start + i, byte) for i, byte in enumerate(other))))


@pytest.mark.parametrize("at", [ROWS, ROWS + 7, ROWS + 8, ROWS + 15, ROWS + 16, ROWS + 19, ROWS + 20, ROWS + 170, RAW])
def test_lengths_within_a_row_that_do_not_add_up_are_named(damaged, written, at):
    with pytest.raises(DamagedError, match=r"row \d+ has (another length|other columns)"):
        check_structure(damaged((at, written[0][at] ^ 64)))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 700, 5000, ROWS, ROWS + 100, RAW, RAW + 519])
def test_a_file_that_is_too_short_is_named(damaged, size):
    with pytest.raises(DamagedError, match=r"x.mindrecord is damaged"):
        check_structure(damaged(size=size))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = 1 << 40 WHERE ROW_ID = 3", "row 3 is at no place"),
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = -8 WHERE ROW_ID = 3", "a place that is no number"),
        ("UPDATE INDEXES SET PAGE_ID_BLOB = 1 WHERE ROW_ID = 3", "row 3 is at no place"),
        ("UPDATE INDEXES SET PAGE_ID_RAW = 7 WHERE ROW_ID = 3", "row 3 is at no place"),
        ("UPDATE INDEXES SET ROW_GROUP_ID = 'x' WHERE ROW_ID = 3", "a place that is no number"),
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 1 WHERE ROW_ID = 0", "row 0 has another length"),
        ("DELETE FROM INDEXES WHERE ROW_ID = 3", "rows are missing or there twice"),
        ("DELETE FROM INDEXES WHERE ROW_ID = 39", "its header has 40 rows, and its index 39"),
        ("UPDATE SHARD_NAME SET NAME = 'y'", "is the index of y, not of x.mindrecord"),
        ("DROP TABLE SHARD_NAME", "no such table"),
    ],
)
def test_an_index_that_does_not_fit_is_named(damaged, change, cause):
    file = damaged()
    with sqlite3.connect(f"{file}.db") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(DamagedError, match=cause):
        check_structure(file)


def test_the_message_names_the_key_and_the_way_out(damaged):
    file = damaged((ROWS + 19, 255))
    with pytest.raises(UserError, match=r"dataset.path=x cannot be read as MindRecord: .* row 0 .*: gpt2x prepare\."):
        scan_rows(RecordFiles("dataset.path=x", [file]), lambda *columns: "")


def flips(written, count):
    """Yield changes of one bit, of bytes that are used: of the file, or the whole index."""
    content, database, used = written
    random_ = random.Random(0)
    in_use = [i for i, byte in enumerate(database) if byte]
    for _ in range(count):
        if random_.random() < 0.7:
            at = random_.choice(used[:700] if random_.random() < 0.6 else used)
            yield {"changes": [(at, content[at] ^ 1 << random_.randrange(8))]}
        else:
            at, changed = random_.choice(in_use), bytearray(database)
            changed[at] ^= 1 << random_.randrange(8)
            yield {"database": bytes(changed)}


def checked(damaged, changes=(), **options):
    file = damaged(*changes, **options)
    try:
        check_structure(file)
    except DamagedError:
        return None
    return file


def test_no_flipped_bit_ends_the_check_itself(damaged, written):
    accepted = [checked(damaged, **flip) for flip in flips(written, 40)]
    assert 2 < sum(file is not None for file in accepted) < 30


@pytest.mark.run
@pytest.mark.exhaustive
def test_what_passes_the_check_does_not_end_the_process(damaged, written):
    """MindSpore reads it, or raises an error. Without the check, one of six such flips ends the process."""
    import mindspore.dataset  # noqa: F401  (before the forks, not in each)

    ends = []
    for flip in flips(written, 1500):
        file = checked(damaged, **flip)
        if file is None:
            continue
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                scan_rows(RecordFiles("dataset.path=x", [file]), lambda *columns: "")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            ends.append((flip.get("changes"), signal.Signals(os.WTERMSIG(status)).name))
    assert ends == []
