"""The compiled kernels and their Python side: a difference in operands or constants is an error at load."""

import ctypes
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2x import native
from gpt2x.errors import UserError
from gpt2x.native.interface import InterfaceError, Signature, read_interface


@pytest.fixture(scope="module")
def text():
    """What the installed library says of itself."""
    describe = native.library().functions.gpt2x_interface
    describe.restype = ctypes.c_char_p
    return describe().decode()


def changed(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


LINEAR_DX = "operator linear_dx dy float32 (R, N), weight float32 (K, N) -> dx float32 (R, K)\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            LINEAR_DX,
            "operator linear_dx weight float32 (K, N), dy float32 (R, N) -> dx float32 (R, K)\n",
            r"operator linear_dx, inputs\[0\]: .*'weight'.* in C\+\+, .*'dy'.* in Python",
        ),
        (
            LINEAR_DX,
            "operator linear_dx dy float32 (R, N) -> dx float32 (R, K)\n",
            r"operator linear_dx has 1 inputs in C\+\+ and 2 in Python",
        ),
        (
            LINEAR_DX,
            "operator linear_dx dy float32 (R, N), weight int8 (K, N) -> dx float32 (R, K)\n",
            r"inputs\[1\]: .*int8.* in C\+\+, .*float32.* in Python",
        ),
        (
            LINEAR_DX,
            "operator linear_dx dy float32 (R, N), weight float32 (N, K) -> dx float32 (R, K)\n",
            r"inputs\[1\]: .*'N', 'K'.* in C\+\+, .*'K', 'N'.* in Python",
        ),
        (LINEAR_DX, "", r"operator linear_dx is missing in C\+\+"),
        (LINEAR_DX, LINEAR_DX + "operator new x float32 -> y float32\n", "operator new is missing in Python"),
        (
            "constant mix_1 739982445",
            "constant mix_1 739982447",
            r"mix_1 is 739982447 in C\+\+ and 739982445 in Python",
        ),
        (
            "constant gelu_slope 1.59576",
            "constant gelu_slope 1.59575",
            r"gelu_slope is 1\.59575.* in C\+\+ and 1\.59576",
        ),
        ("constant panel 64\n", "", r"constant panel is missing in C\+\+"),
    ],
)
def test_a_difference_is_refused(text, old, new, message):
    with pytest.raises(InterfaceError, match=message):
        read_interface(changed(text, old, new))


def test_equal_interfaces_give_the_constants(text):
    constants = read_interface(text)
    assert constants["panel"] == 64
    assert constants["activation.gelu_new"] != constants["activation.fast_gelu"]


@pytest.mark.parametrize("functions", [object(), "stale"])
def test_a_library_of_a_different_version_says_how_to_compile_it_again(functions, tmp_path, text):
    """Of a version that had no interface, and of one whose interface differs."""

    def interface():
        return changed(text, "constant panel 64\n", "").encode()

    stale = SimpleNamespace(gpt2x_interface=interface)
    with pytest.raises(UserError, match=r"hardware\.native_kernels=true: .* do not match .*pip install -e \."):
        native.check_interface(tmp_path / "old.so", stale if functions == "stale" else functions)


def test_output_shapes_follow_from_the_inputs():
    attention = Signature("attention", native.SIGNATURES["attention"])
    inputs = [[2, 5, 48], [1], [], [1], [8]]
    assert attention.output_shapes(inputs, {"N": 4}) == [[2, 5, 16], [2, 4, 5]]
    linear = Signature("linear_bias", native.SIGNATURES["linear_bias"])
    assert linear.output_shapes([[7, 3], [3, 4], [4]], {}) == [[7, 4]]
    dropout = Signature("dropout", native.SIGNATURES["dropout"])
    assert dropout.output_shapes([[2, 3, 4], [], [6, 1], [4]], {}) == [[2, 3, 4]]


def test_wrong_shapes_and_counts_are_refused_when_a_graph_is_built():
    linear = Signature("linear_bias", native.SIGNATURES["linear_bias"])
    with pytest.raises(ValueError, match=r"linear_bias: weight has shape \[4, 3\], not \(K, N\)"):
        linear.output_shapes([[7, 3], [4, 3], [4]], {})
    with pytest.raises(ValueError, match="linear_bias takes 3 operands, not 2"):
        linear.output_shapes([[7, 3], [3, 4]], {})


def test_a_record_takes_every_field_by_name():
    values = native.record("MaskSettings", first_column=4, site=1, scale=3, threshold=2)
    assert values.tolist() == [1, 2, 3, 4]
    with pytest.raises(AssertionError):
        native.record("MaskSettings", site=1, threshold=2, scale=3)


def test_operands_of_layers_occur_once_per_layer():
    signature = Signature("layers", "x float32 (M), each a float32 (M, K), b any -> y float32 (M, K)")
    one = [[2], [2, 3], [7]]
    assert signature.output_shapes(one, {}) == [[2, 3]]
    assert signature.output_shapes([*one, [2, 3], [9, 9]], {}) == [[2, 3]]
    with pytest.raises(ValueError, match=r"layers takes 3 operands, and 2 for each further layer, not 4"):
        signature.output_shapes([*one, [2, 3]], {})
    with pytest.raises(ValueError, match=r"a has shape \[2, 4\], not \(M, K\)"):
        signature.output_shapes([*one, [2, 4], [9]], {})
    with pytest.raises(ValueError, match=r"plain takes 1 operands, not 2"):
        Signature("plain", "x float32 (M) -> y float32 (M)").output_shapes([[1], [1]], {})


def test_every_variant_is_built_from_every_source():
    root = Path(__file__).parents[1]
    sources = {str(path.relative_to(root)) for path in (root / "gpt2x/native/src").glob("*.cpp")}
    built = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["ext-modules"]
    assert {module["name"].rpartition(".")[2] for module in built} == set(native.VARIANTS)
    for module in built:
        assert set(module["sources"]) == sources
