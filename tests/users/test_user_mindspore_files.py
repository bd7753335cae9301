"""MindSpore's `.ckpt` files: what save_checkpoint wrote is read, and damage is an error or one changed value."""

import math
import zlib

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.convert import mindspore_ckpt
from gpt2x.convert.mindspore_ckpt import open_ckpt, verify_ckpt, write_ckpt
from gpt2x.errors import UserError
from tests.support.mindformers import save

DTYPES = [
    "float32",
    "float16",
    "float64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
]
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
RECORD_BYTES = 1024  # instead of 512 MiB, so that small tensors have several records


@pytest.fixture
def small_records(monkeypatch):
    """Let MindSpore and gpt2x begin a new record after 1 KiB."""
    monkeypatch.setattr(ms.train.serialization, "SLICE_SIZE", RECORD_BYTES // 1024)
    monkeypatch.setattr(mindspore_ckpt, "RECORD_BYTES", RECORD_BYTES)


@st.composite
def tensors(draw, max_dims=3):
    """Draw parameters of all dtypes and shapes that GPT-2's checkpoints could have, some longer than a record."""
    drawn = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(1, 12), max_size=max_dims))
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        dtype = draw(st.sampled_from(DTYPES))
        values = generator.integers(0, 2, shape) if dtype == "bool" else generator.integers(-99, 99, shape) / 7
        drawn[name] = np.asarray(values).astype(dtype)
    return drawn


@pytest.mark.run
@given(tensors(), st.booleans(), st.booleans(), st.data())
def test_values_are_those_that_mindspore_saved(tmp_path, small_records, parameters, crc, as_arrays, data):
    extra = {"epoch_num": 3, "loss_scale": 0.5, "text": "hällo"} if data.draw(st.booleans()) else None
    file = tmp_path / "a.ckpt"
    if as_arrays:  # as async_save=True does; arrays are divided between rows, tensors anywhere
        kinds = {name: str(ms.Tensor(values).dtype) for name, values in parameters.items()}
        rows = {name: [list(values.shape), kinds[name], values] for name, values in parameters.items()}
        ms.train.serialization._exec_save(str(file), rows, crc_check=crc)
        file.chmod(0o600)
    else:
        save(file, parameters, crc_check=crc, append_dict=extra)
    opened = open_ckpt(file)
    verify_ckpt(file)
    theirs = ms.load_checkpoint(str(file))
    assert list(opened) == [name for name in theirs if name != "text"]
    for name, expected in parameters.items():
        assert opened[name].shape == expected.shape == theirs[name].shape
        assert opened[name].dtype == expected.dtype
        np.testing.assert_array_equal(opened[name].read(), expected)
        start = tuple(data.draw(st.integers(0, n - 1)) for n in expected.shape)
        shape = tuple(data.draw(st.integers(0, n - at)) for n, at in zip(expected.shape, start, strict=True))
        box = expected[tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))]
        np.testing.assert_array_equal(opened[name].read(start, shape), box)


@given(tensors())
def test_bytes_are_those_that_mindspore_writes(tmp_path, small_records, parameters):
    file = save(tmp_path / "a.ckpt", parameters)
    write_ckpt(tmp_path / "b.ckpt", parameters)
    assert (tmp_path / "b.ckpt").read_bytes() == file.read_bytes()


def test_bfloat16_is_read_as_float32(tmp_path, small_records):
    values = np.arange(-700, 700).reshape(70, 20) / 8
    for shape in ((70, 20), (4, 5)):  # in several records, and in one
        tensor = ms.Tensor(values[: shape[0]].reshape(-1)[: math.prod(shape)].reshape(shape), ms.bfloat16)
        ms.save_checkpoint([{"name": "a", "data": tensor}], str(tmp_path / "a.ckpt"))
        opened = open_ckpt(tmp_path / "a.ckpt")["a"]
        assert opened.dtype == np.float32
        np.testing.assert_array_equal(opened.read(), tensor.astype(ms.float32).asnumpy())


# ---- damage


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of two files with the same parameters, without and with a CRC-32."""
    folder = tmp_path_factory.mktemp("plain")
    parameters = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float16([1, 2]), "c": np.int32(7)}
    files = [save(folder / f"{crc}.ckpt", parameters, crc_check=crc) for crc in (False, True)]
    return parameters, *(file.read_bytes() for file in files)


def read(path, content):
    """Write `content`, and return what is read of it, or the message."""
    path.write_bytes(content)
    try:
        opened = open_ckpt(path)
        verify_ckpt(path)
        return {name: tensor.read() for name, tensor in opened.items()}
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert message.endswith(".")
    return message


@given(st.data())
def test_a_cut_file_is_rejected_or_lacks_whole_parameters(tmp_path, plain, data):
    parameters, content, _ = plain
    values = read(tmp_path / "a.ckpt", content[: data.draw(st.integers(0, len(content) - 1))])
    if not isinstance(values, str):  # a cut between two records, which MindSpore reads too
        assert len(values) < len(parameters)
        assert all(np.array_equal(values[name], parameters[name]) for name in values)


@given(st.data())
def test_a_flipped_bit_is_rejected_or_changes_one_name_or_value(tmp_path, plain, data):
    parameters, content, _ = plain
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    values = read(tmp_path / "a.ckpt", bytes(damaged))
    if not isinstance(values, str):
        common = [name for name in values if name in parameters]
        equal = [values[name].tobytes() == parameters[name].tobytes() for name in common]  # -0.0 is not 0.0
        assert len(values) == len(parameters)
        assert sum(equal) == len(parameters) - 1
        assert all(values[name].shape == parameters[name].shape for name in common)


@given(st.data())
def test_a_crc_detects_every_flipped_bit_and_cut(tmp_path, plain, data):
    parameters, _, content = plain
    assert content.endswith(b"crc_num" + zlib.crc32(content[:-17]).to_bytes(10, "big"))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    assert isinstance(read(tmp_path / "a.ckpt", bytes(damaged)), str)
    values = read(tmp_path / "a.ckpt", content[: data.draw(st.integers(0, len(content) - 1))])
    if not isinstance(values, str):  # cut between two records, or where the CRC begins
        assert all(np.array_equal(values[name], parameters[name]) for name in values)


@given(st.binary(max_size=200), st.binary(max_size=30))
def test_any_bytes_are_rejected_or_read(tmp_path, plain, content, inserted):
    read(tmp_path / "a.ckpt", content)
    at = len(inserted)
    read(tmp_path / "a.ckpt", plain[1][:at] + inserted + plain[1][at:])


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_an_encrypted_file_is_rejected_by_name(tmp_path, mode):
    file = save(tmp_path / "a.ckpt", {"a": np.float32([1])}, enc_key=b"0123456789ABCDEF", enc_mode=mode)
    with pytest.raises(UserError, match=r"a\.ckpt is encrypted"):
        open_ckpt(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 40, "is a file of PyTorch or a zip archive"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"\0" * 4096, "is cut off, damaged or not a MindSpore checkpoint"),
        (b"<html>not here</html>", "is cut off, damaged or not a MindSpore checkpoint"),
    ],
)
def test_other_files_are_rejected_by_what_they_are(tmp_path, content, message):
    assert message in read(tmp_path / "a.ckpt", content)


def test_a_parameter_that_occurs_twice_is_rejected(tmp_path, plain):
    assert "'a' occurs twice" in read(tmp_path / "a.ckpt", plain[1] + plain[1])


def test_only_mapped_pages_are_read(tmp_path):
    """A file of 3 GiB of zeros is opened, and one of its rows read, in little time and memory."""
    import resource

    rows = 3 << 17
    head = mindspore_ckpt._head("big", np.broadcast_to(np.float32(0), (rows, 2048)), rows * 8192)
    with (tmp_path / "a.ckpt").open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + rows * 8192)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensor = open_ckpt(tmp_path / "a.ckpt")["big"]
    assert not tensor.read((rows - 1, 0), (1, 2048)).any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
