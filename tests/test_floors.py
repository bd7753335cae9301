"""A module imports only its own and lower floors (docs/design/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gpt2x"
FLOORS = {
    0: ("errors", "config", "checks", "layout", "targets"),
    1: ("cli", "native", "ops", "model", "data", "optim", "tracking", "runtime"),
    2: ("checkpoint", "convert", "lora", "pretrained", "tasks", "parallel"),
    3: ("train", "generate", "evaluate"),
    4: ("build", "worker"),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def imported(path: Path) -> set[str]:
    """First-level gpt2x modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "gpt2x":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2x."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gpt2x.")}
    return names - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        pytest.skip("the package itself imports nothing")
    too_high = {name for name in imported(path) if FLOOR_OF[name] > FLOOR_OF[own]}
    assert not too_high, f"{relative} (floor {FLOOR_OF[own]}) imports {too_high}"


def test_files_are_short_or_say_why():
    """No file over 400 lines without a reason at its top."""
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400 or any("over 400 lines" in line for line in lines[:20]), (path, len(lines))


def test_entry_scripts_stay_small():
    for name in ("train", "evaluate", "predict"):
        assert len((PACKAGE.parent / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40
