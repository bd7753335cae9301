"""The documentation against the program: every key is described, every command composes, every link leads somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gpt2x.commands import compatibility
from gpt2x.commands.cli import CONFIGURED
from gpt2x.config.keys import leaves
from gpt2x.config.options import SCHEMAS
from gpt2x.config.reference import with_tables
from tests.support.configs import OPTIONS, ROOT, typed

CONFIGURATION = ROOT / "docs" / "configuration.md"
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")])
SCRIPTS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "predict.py": "predict",
}


# ---- docs/configuration.md


def test_every_key_is_described():
    text = CONFIGURATION.read_text(encoding="utf-8")
    missing = sorted(key for root in SCHEMAS.values() for key in leaves(root) if f"`{key}`" not in text)
    assert not missing, f"docs/configuration.md lacks {missing}; run python -m gpt2x.config.reference {CONFIGURATION}"


def test_tables_are_those_of_the_program():
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert with_tables(text) == text, f"a key changed: run python -m gpt2x.config.reference {CONFIGURATION}"


def test_every_option_is_listed():
    text = CONFIGURATION.read_text(encoding="utf-8")
    missing = [f"{group}={option}" for group, option in OPTIONS if f"`{option}`" not in text]
    assert not missing


def test_compatibility_is_that_of_the_program():
    path = ROOT / "docs" / "compatibility.md"
    text = path.read_text(encoding="utf-8")
    assert compatibility.with_tables(text) == text, f"run python -m gpt2x.commands.compatibility {path}"


# ---- commands


def commands() -> list[tuple[str, str]]:
    """(file, command) for each line of a shell block, continuation lines joined."""
    found = []
    for path in DOCS:
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                found += [(str(path.relative_to(ROOT)), part.strip()) for part in line.split("&&") if part.strip()]
    return found


def overrides_of(command: str) -> tuple[str, list[str]] | None:
    """Entry point and overrides of a command that Hydra composes; None for others."""
    words = shlex.split(command, comments=True)
    line = " ".join(words)
    name = next((name for start, name in SCRIPTS.items() if line.startswith(f"python {start}")), None)
    if words[0] == "gpt2x" and words[1] in (*CONFIGURED, "plan"):
        name = "train" if words[1] == "plan" else words[1]
    if name is None or "--help" in words:
        return None
    overrides = [word for word in words if "=" in word]
    if "-m" in words and name != "prepare":
        first = r"=(?:tag\([^,]*, *)?(?:interval|choice|range)\(([^,)]+).*"
        overrides = [re.sub(first, r"=\1", word) for word in overrides]
        overrides = [re.sub(r"=([^,\[]+),.*", r"=\1", word) for word in overrides]
    return name, overrides


COMPOSED = [(file, command) for file, command in commands() if overrides_of(command)]


@pytest.mark.parametrize(("file", "command"), COMPOSED, ids=[command for _, command in COMPOSED])
def test_documented_commands_compose(file, command):
    name, overrides = overrides_of(command)
    assert typed(name, *overrides)


def test_the_readme_has_its_two_set_up_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, command in {
        "setup:run": "pip install -e . && python train.py",
        "setup:test": 'pip install -e ".[test]" && pytest',
    }.items():
        assert f"<!-- {marker} -->\n```sh\n{command}\n```" in text


def test_modules_of_documented_commands_exist():
    started = [(file, module) for file, text in commands() for module in re.findall(r"python -m (gpt2x[\w.]*)", text)]
    for path in sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "gpt2x").rglob("*.py")]):
        text = path.read_text(encoding="utf-8")
        started += [(str(path), module) for module in re.findall(r'"-m",\s*"(gpt2x[\w.]*)"', text)]
    assert any(file.endswith("reshard.py") for file, _ in started)
    for file, module in started:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (file, module)


# ---- the words


def missing_names(text: str) -> list[str]:
    """Paths of the repository and dotted names of gpt2x, in backticks, that do not exist."""
    paths = re.findall(r"`((?:gpt2x|conf|tests|benchmarks|experiments|docs)/[\w./-]+)`", text)
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    for dotted in re.findall(r"`(gpt2x(?:\.\w+)+)", text):
        parts = dotted.split(".")
        count = max(n for n in range(1, len(parts) + 1) if module_file(parts[:n]))
        rest = parts[count:]  # a class or function, and its attribute
        if rest and not re.search(rf"\b{rest[0]}\b", module_file(parts[:count]).read_text(encoding="utf-8")):
            missing.append(dotted)
    return missing


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_the_docs_exist(path):
    assert not missing_names(path.read_text(encoding="utf-8"))


def test_a_name_that_does_not_exist_is_noticed():
    text = "`gpt2x/train/start.py`, `gpt2x.train.trainer.Trainer`, `gpt2x.train.trainer.Looper.fit`, `conf/NAME.yaml`"
    assert missing_names(text) == ["gpt2x/train/start.py", "gpt2x.train.trainer.Looper.fit"]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_internal_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{path.name}: {target}"


def test_no_paths_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile("/(?:work|root|home|Users)/" + r"|/opt/(?:wheels|pypi)")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".png", ".safetensors", ".npz") or not path.is_file() or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if machine.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found
