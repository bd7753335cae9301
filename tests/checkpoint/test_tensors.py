"""Boxes of stored tensors: the right values, and no other pages; files as the library writes them."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from gpt2x.checkpoint import Sliced, open_checkpoint
from gpt2x.checkpoint import save as save_checkpoint
from gpt2x.checkpoint import tensors as module
from gpt2x.checkpoint.tensors import StoredTensor, open_safetensors, pieces, write_safetensors
from gpt2x.config import ModelConfig
from gpt2x.convert.huggingface_names import lazy_tensors

MODEL = ModelConfig(name="tiny", num_layers=1, num_heads=1, hidden_size=4, max_seq_len=8, vocab_size=16)


@pytest.fixture
def mapped(monkeypatch):
    """Byte ranges (offset, size) that are mapped."""
    ranges, memmap = [], np.memmap

    def record(file, dtype, mode, offset, shape):
        ranges.append((offset, int(np.prod(shape)) * np.dtype(dtype).itemsize))
        return memmap(file, dtype, mode, offset, shape)

    monkeypatch.setattr(np, "memmap", record)
    return ranges


def random_boxes(shape, count=40):
    rng = np.random.default_rng(0)
    for _ in range(count):
        start = tuple(int(rng.integers(0, n)) for n in shape)
        yield start, tuple(int(rng.integers(0, n - at + 1)) for n, at in zip(shape, start, strict=True))


def cut(values, start, shape):
    return values[tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))]


@pytest.mark.parametrize("piece_bytes", [1, 64, 1 << 24])
@pytest.mark.parametrize("strides", [None, (1, 16)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_boxes(tmp_path, monkeypatch, piece_bytes, strides, dtype):
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    bits = np.random.default_rng(0).integers(0, 0x3FFF, 16 * 12).astype("<u2")
    stored = bits if dtype != "float32" else bits.astype("<f4")
    (tmp_path / "x").write_bytes(b"abcdefgh" + stored.tobytes())
    values = (bits.astype(np.uint32) << 16).view("<f4") if dtype == "bfloat16" else stored.view(f"<f{stored.itemsize}")
    values = values.reshape(16, 12) if strides is None else values.reshape(12, 16).T
    tensor = StoredTensor(tmp_path / "x", 8, dtype, (16, 12), strides)
    lazy = lazy_tensors({"x": tensor})
    np.testing.assert_array_equal(tensor.read(), values)
    for start, shape in random_boxes((16, 12)):
        box = lazy.read("x", start, shape)
        assert box.dtype == lazy.specs["x"].dtype == values.dtype
        np.testing.assert_array_equal(box, cut(values, start, shape), strict=True)
        rows = [*pieces(lazy.box("x", start, shape))]
        assert all(row.nbytes <= piece_bytes or len(row) == 1 for row in rows)
        np.testing.assert_array_equal(np.concatenate([np.empty((0, shape[1]), box.dtype), *rows]), box)
    with pytest.raises(ValueError, match="no box"):
        lazy.read("x", (0, 10), (1, 3))


def test_only_the_box_is_mapped(tmp_path, mapped):
    path = tmp_path / "x.safetensors"
    values = np.arange(1000 * 500, dtype=np.float32).reshape(1000, 500)
    write_safetensors(path, {"x": values})
    stored = open_safetensors(path)["x"]
    rows = stored.read((10, 0), (20, 500))
    assert mapped == [(stored.offset_bytes + 10 * 2000, 20 * 2000)]
    assert not rows.flags.owndata
    assert not rows.flags.writeable
    mapped.clear()
    stored.read((10, 100), (20, 50))
    assert mapped == [(stored.offset_bytes + 10 * 2000 + 400, 19 * 2000 + 200)]


def test_of_a_copy_one_piece_is_mapped_at_a_time(tmp_path, mapped, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 10_000)
    write_safetensors(tmp_path / "x", {"x": np.zeros((1000, 500), np.float32)})
    open_safetensors(tmp_path / "x")["x"].read((0, 100), (1000, 50))
    assert len(mapped) == 200
    assert max(size for _, size in mapped) <= 10_000


def test_only_files_of_the_box_are_opened(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(16, 4)
    parts = [((at, 0), values[at : at + 4]) for at in range(0, 16, 4)]
    settings = {"model": MODEL, "run_config": {}, "loop_state": {}, "tokenizer_dir_writer": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2x.checkpoint.write.FILE_BYTES", 1)
        save_checkpoint(tmp_path / "c", tensors={"weights": {"x": Sliced((16, 4), parts)}}, **settings)
    (tmp_path / "c" / "weights.part-00001-of-00004.safetensors").write_bytes(bytes(136))  # not its concern
    checkpoint = open_checkpoint(tmp_path / "c")
    view = checkpoint.read("weights", "x", (5, 0), (2, 4))
    assert not view.flags.owndata
    np.testing.assert_array_equal(view, values[5:7])
    np.testing.assert_array_equal(checkpoint.read("weights", "x", (5, 1), (11, 2)), values[5:, 1:3])


DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def test_files_are_the_library_s(tmp_path, monkeypatch):
    tensors = {f"{dtype} é": np.arange(7).astype(dtype) for dtype in DTYPES}
    tensors |= {'"': np.zeros((), np.float32), "empty": np.zeros((0, 3)), "big endian": np.arange(3).astype(">f4")}
    tensors["transposed"] = np.arange(35, dtype=np.float32).reshape(7, 5).T
    tidy = {name: np.ascontiguousarray(v).astype(v.dtype.newbyteorder("=")) for name, v in tensors.items()}
    tidy['"'] = tensors['"']
    for piece_bytes in (1, 1 << 24):
        monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
        for metadata in (None, {"format": "pt"}):
            write_safetensors(tmp_path / "x", tensors, metadata)
            assert (tmp_path / "x").read_bytes() == save(tidy, metadata)
    assert load_file(tmp_path / "x").keys() == tensors.keys()
