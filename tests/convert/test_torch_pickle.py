"""`torch.save` files: bit for bit what torch reads, and nothing that a pickle asks for is run."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict

import pytest

from gpt2x.convert.torch_pickle import open_torch
from gpt2x.errors import UserError

CHECKPOINTS = ("shakespeare-a", "lyrics", "horoscope-tarot")


def assert_equal_bits(actual, expected):
    """`expected` is a torch tensor; bfloat16 is compared as float32."""
    import torch

    expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).detach().numpy()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parity
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_trained_checkpoints(shared_data, name):
    torch = pytest.importorskip("torch")
    path = shared_data / "checkpoints" / name / "pytorch_model.bin"
    expected = torch.load(path, map_location="cpu", weights_only=True)
    actual = open_torch(path)
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert_equal_bits(actual[key].read(), value)


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype_and_view(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    base = torch.randn(6, 10)
    state = OrderedDict(
        whole=base,
        transposed=base.T,
        part=base[1:4, 2:9:3],
        scalar=torch.tensor(-1e4),
        empty=torch.zeros(0, 3),
        expanded=torch.randn(3, 1).expand(3, 5),
        parameter=torch.nn.Parameter(torch.randn(3)),
        half=torch.randn(5).half(),
        brain=torch.randn(7, 3).bfloat16(),
        brain_view=torch.randn(7, 3).bfloat16().T,
        brain_scalar=torch.tensor(1.5).bfloat16(),
        brain_empty=torch.zeros(0).bfloat16(),
        double=torch.randn(2).double(),
        mask=torch.tril(torch.ones(4, 4)).bool(),
        bytes=torch.arange(5).byte(),
        signed=torch.arange(5).char(),
        short=torch.arange(5).short(),
        int=torch.arange(5).int(),
        long=torch.arange(5),
    )
    state._metadata = OrderedDict({"": {"version": 1}})  # as a module's state_dict() carries
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(tmp_path / "x.bin") != legacy
    actual = open_torch(tmp_path / "x.bin")
    assert list(actual) == list(state)
    for key, value in state.items():
        assert_equal_bits(actual[key].read(), value)


def test_values_stay_in_the_file(shared_data):
    actual = open_torch(shared_data / "checkpoints" / "shakespeare-a" / "pytorch_model.bin")
    values = actual["transformer.wte.weight"].read()
    assert not values.flags.owndata
    assert not values.flags.writeable


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def zipped(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


def raw(path, pickled):
    path.write_bytes(pickled)


@pytest.mark.parametrize("write", [zipped, raw])
def test_a_malicious_pickle_does_nothing(tmp_path, write):
    marker = tmp_path / "marker"
    for function, *arguments in (
        (os.system, f"touch {marker}"),
        (exec, f"open({str(marker)!r}, 'w')"),
        (open, str(marker), "w"),
    ):
        for protocol in (0, 2, 4):
            write(tmp_path / "x.bin", pickle.dumps({"wte.weight": Evil(function, *arguments)}, protocol))
            with pytest.raises(UserError, match="was rejected: its pickle asks for"):
                open_torch(tmp_path / "x.bin")
            assert not marker.exists()


def test_attributes_of_what_is_allowed_are_out_of_reach(tmp_path):
    zipped(tmp_path / "x.bin", b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.fromkeys.x\x93.")
    with pytest.raises(UserError, match=r"was rejected: its pickle asks for collections\.OrderedDict\.fromkeys\.x"):
        open_torch(tmp_path / "x.bin")
    for allowed in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
        zipped(tmp_path / "x.bin", b"\x80\x02" + allowed + b"}X\x01\x00\x00\x00aK\x01sb.")  # BUILD with {"a": 1}
        with pytest.raises(UserError, match="not a PyTorch file of weights"):
            open_torch(tmp_path / "x.bin")
    assert not hasattr(OrderedDict, "a")


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.bin"
    torch.save({"a": torch.randn(100), "b": torch.randn(3)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for size in (*range(0, len(content) - 1, 97), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"truncated or not a PyTorch file.*again"):
            open_torch(path)


@pytest.mark.parity
def test_views_beyond_their_storage(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.randn(3, 4)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    pickled = next(entry for entry in members if entry.endswith("data.pkl"))
    members[pickled] = members[pickled].replace(b"K\x03K\x04\x86", b"K\x09K\x04\x86")
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        for entry, content in members.items():
            archive.writestr(entry, content)
    with pytest.raises(UserError, match="'a' reaches beyond its storage"):
        open_torch(tmp_path / "x.bin")


@pytest.mark.parity
def test_other_contents(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.bin"
    torch.save({"weights": {"a": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"holds no table of tensors, but weights \(dict\)\. Save only the weights"):
        open_torch(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="it holds a list"):
        open_torch(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"was rejected: its pickle asks for torch\.nn\.modules\.linear\.Linear"):
        open_torch(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"Git LFS pointer.*git lfs pull"):
        open_torch(path)
    with pytest.raises(UserError, match="cannot be read"):
        open_torch(tmp_path / "absent.bin")


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [False, True])
def test_random_damage_is_a_user_error_or_harmless(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.bin"
    torch.save({"a": torch.randn(3, 4), "b": torch.randn(4, 4).T}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            for tensor in open_torch(path).values():
                tensor.read()
        except UserError:
            pass
