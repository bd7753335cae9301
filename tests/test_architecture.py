"""The architecture: which package may import which, no circle of files, files of a readable length."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from gpt2x.formats.mlflow import CODE

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gpt2x"

# Package -> the packages that its files may import. A package not in a list is a design decision: change the table
# and docs/design/architecture.md together.
ARROWS = {
    "errors": "",
    "extensions": "errors",  # every package may import these two
    "compatibility": "",
    "config": "errors",
    "native": "errors",
    "ops": "config native",
    "model": "config ops",
    "optim": "config model ops",
    "runtime": "config errors native",
    "data": "config errors runtime",
    "tracking": "config errors runtime",
    "parallel": "config errors model ops runtime",
    "checkpoint": "config errors model parallel runtime",
    "convert": "checkpoint config data errors model parallel runtime",
    "lora": "checkpoint config convert errors model ops parallel runtime",
    "trainable": "config lora model parallel",
    # one file per format of `gpt2x convert --to`; beside convert/ and not within, since PEFT's needs lora
    "formats": "checkpoint config convert data errors lora runtime tracking",
    "pretrained": "config convert data errors lora model parallel",
    "generate": "config convert data errors lora model parallel pretrained runtime",
    # what MLflow imports to serve a model that formats/mlflow.py wrote
    "serve": "config data errors generate parallel pretrained runtime",
    "evaluate": "config convert data errors generate model parallel pretrained runtime tracking",
    "tasks": "config data errors evaluate generate model",
    "planner": "config errors model optim parallel runtime trainable",
    # curves and tables of runs that have ended or run; reads run directories only, and imports no mindspore
    "reports": "config errors runtime tracking trainable",
    "train": "checkpoint config convert data errors generate lora model ops optim parallel planner "
    "pretrained runtime tasks tracking trainable",
    "doctor": "config generate model native ops optim parallel runtime",
    "commands": "checkpoint config convert data doctor errors evaluate formats generate lora model parallel planner "
    "pretrained reports runtime tasks tracking train",
    "__main__": "commands runtime",
}


def module_files() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def imported_modules(path: Path) -> set[str]:
    """The modules of gpt2x that a file imports anywhere, hidden imports in functions included, types left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpt2x":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                modules.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.split(".")[0] == "gpt2x"}
    return modules - {"gpt2x"}


IMPORTS = {name: imported_modules(path) for name, path in MODULES.items()}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", sorted({package_of(name) for name in MODULES} - {""}))
def test_a_package_imports_only_what_the_table_allows(package):
    allowed = {package, "extensions", "compatibility", *ARROWS[package].split()}
    wrong = {
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        if package_of(module) == package
        for other in others
        if package_of(other) not in allowed
    }
    assert not wrong


def test_the_table_has_no_circle_and_no_unused_arrow():
    order: list[str] = []
    while len(order) < len(ARROWS):
        ready = [name for name, text in ARROWS.items() if name not in order and set(text.split()) <= set(order)]
        assert ready, f"a circle among {set(ARROWS) - set(order)}"
        order += ready
    used = {(package_of(module), package_of(other)) for module, others in IMPORTS.items() for other in others}
    unused = [f"{name} -> {other}" for name, text in ARROWS.items() for other in text.split()
              if (name, other) not in used]  # fmt: skip
    assert not unused


def test_a_served_model_holds_all_that_its_loader_may_import():
    needed, open_names = set(), {"serve"}
    while open_names:
        needed.add(name := open_names.pop())
        open_names |= set(ARROWS[name].split()) - needed
    assert set(CODE) == needed | {"__init__", "extensions", "compatibility"}


def test_no_circle_of_files():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of files: {' imports '.join(reversed(error.args[1]))}")


def test_files_are_short_or_say_why():
    """No file over 400 lines without a reason at its top."""
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400 or any("over 400 lines" in line for line in lines[:20]), (path, len(lines))


def test_entry_scripts_stay_small():
    for name in ("train", "evaluate", "predict"):
        assert len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40
