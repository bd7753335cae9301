"""The tests themselves: skips are by name and for what a machine lacks; kinds and fixtures are where they belong."""

import ast
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import shared_data
from tests.support import kinds

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests").rglob("*.py"))
PACKAGES = {"torch", "transformers", "peft", "sklearn", "lm_eval", "tensorboard", "wandb"}  # of the extras
# A skip depends on what a machine may lack. One that depends on a file of the repository hides a test for good when
# the file is renamed: `not (ROOT / "gpt2x" / "build.py").exists()` did so.
SKIPS = {
    "tests/test_native_bf16.py": "pytest.skip('this processor has neither AMX nor AVX512-BF16')",
    "tests/test_native_decoding.py": "pytest.skip('this processor has no AVX-512')",
    "tests/conftest.py": "pytest.skip(f'real data not found at {folder} (set GPT2X_SHARED)')",
    "tests/ascend/conftest.py": "",
    "tests/ascend/runs.py": "pytest.skip(reason)",
    "tests/evaluate/test_harness.py": "pytest.importorskip(name)",
    "tests/faults/conftest.py": "pytest.skip('no C compiler (cc), which tests/faults/shim.c needs')",
    "tests/test_docs.py": "pytest.skip('not a git checkout')",
    "tests/generate/test_predict.py": "pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')",
}


def skips(path: Path) -> list[str]:
    """Return the expressions of a file that skip tests, or that expect them to fail."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func).rpartition(".")[2], call) for call in calls]
    return [
        ast.unparse(call)
        for name, call in named
        if name in ("skip", "skipif", "skipTest", "xfail")
        or (name == "importorskip" and ast.unparse(call.args[0]).strip("'").partition(".")[0] not in PACKAGES)
    ]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_skips_depend_on_the_machine_alone(path):
    allowed = SKIPS.get(str(path.relative_to(ROOT)))
    assert all(text == allowed for text in skips(path)), skips(path)


def test_skips_are_seen_and_names_of_marks_are_known():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "-ra" in options["addopts"].split()
    assert "--strict-markers" in options["addopts"].split()
    assert {line.partition(":")[0] for line in options["markers"]} >= {*kinds.KINDS, "parity", "ascend", "exhaustive"}


def test_real_data_are_skipped_only_if_they_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.conftest.SHARED", tmp_path)
    read = shared_data.__wrapped__ if hasattr(shared_data, "__wrapped__") else shared_data.__pytest_wrapped__.obj
    with pytest.raises(pytest.skip.Exception, match=f"real data not found at {tmp_path}/data"):
        read()
    (tmp_path / "data").mkdir()
    assert read() == tmp_path / "data"


def test_fixtures_are_shared_by_conftest_or_support():
    """A module that imports from a test module runs its fixtures twice, and breaks when it is renamed."""
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in modules if ".test_" in name]
    assert not wrong


# ---- kinds


def item(*marks: str, fixtures: tuple[str, ...] = ()) -> SimpleNamespace:
    named = [SimpleNamespace(name=mark) for mark in marks]
    return SimpleNamespace(nodeid="a_test", iter_markers=lambda: named, fixturenames=fixtures)


def test_the_kind_of_a_test():
    assert kinds.kind_of(item()) == "unit"
    assert (
        kinds.kind_of(item(fixtures=("zoo",))) == kinds.kind_of(item("parity")) == kinds.kind_of(item("run")) == "run"
    )
    assert kinds.kind_of(item("launch", fixtures=("zoo",))) == kinds.kind_of(item("ascend")) == "launch"
    assert kinds.kind_of(item("launch", "run")) == "launch"  # its own mark, then its module's


@pytest.mark.parametrize(("marks", "kind", "is_allowed"), [
    ((), "run", False), ((), "launch", False), (("run",), "launch", False), (("run",), "run", True),
    (("launch",), "launch", True), (("launch",), "run", True),
])  # fmt: skip
def test_a_test_may_not_start_more_than_its_mark_says(monkeypatch, marks, kind, is_allowed):
    monkeypatch.setattr(kinds, "_current", [])
    kinds.begin(item(*marks))
    if is_allowed:
        kinds.require(kind)
    else:
        with pytest.raises(pytest.fail.Exception, match=rf"a_test is marked \w+: mark it {kind}"):
            kinds.require(kind)


def test_only_unit_tests_have_to_be_short():
    kinds.require_short(item("run"), 100.0)
    kinds.require_short(item(), 9.9)
    with pytest.raises(pytest.fail.Exception, match=r"a unit test took 10\.5 s"):
        kinds.require_short(item(), 10.5)
