"""The documentation against the program: every key is described, every command composes, every link leads somewhere.

`python -m tests.test_docs` writes the tables of docs/configuration.md anew from gpt2x/config/schema.py.
"""

import ast
import io
import re
import shlex
import subprocess
import tokenize
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gpt2x.commands.hydra_entry import register_schemas
from gpt2x.config import rules as checks
from gpt2x.config import schema
from gpt2x.config.files import SCHEMAS
from gpt2x.config.keys import all_keys
from gpt2x.config.options import CONF
from tests.test_config import OPTIONS, ROOT, typed

CONFIGURATION = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: begin (python -m tests.test_docs) -->", "<!-- keys: end -->"
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")])
SCRIPTS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "predict.py": "predict",
    "-m gpt2x.commands.prepare": "prepare",
}


# ---- docs/configuration.md


def comments_by_line(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def described_fields() -> dict[str, dict[str, tuple[str, str]]]:
    """Class -> field -> (type, comment), from the source of gpt2x/config/schema.py."""
    source = Path(schema.__file__).read_text(encoding="utf-8")
    comments = comments_by_line(source)
    return {
        node.name: {
            item.target.id: (ast.unparse(item.annotation), comments.get(item.end_lineno, ""))
            for item in node.body
            if isinstance(item, ast.AnnAssign)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def composed(name: str) -> dict:
    """Values of an entry point with its default options; environment variables stay references."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(name), resolve=False)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def shown(value: object) -> str:
    if isinstance(value, str) and value.startswith("${oc.env:"):
        variable, _, default = value.removeprefix("${oc.env:").removesuffix("}").partition(",")
        return f"`{default.strip(chr(39))}`, or the environment's `{variable}`"
    if isinstance(value, str) and value != "???":
        return f"`{value}`" if value else '`""`'
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10)).removesuffix('...').strip()}`"


def table(rows: list[tuple[str, str, object, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in rows:
        lines.append(f"| `{key}` | {cell(kind)} | {cell(shown(default))} | {cell(meaning)} |")
    return "\n".join(lines)


def class_of(entry) -> type | None:
    nested = getattr(schema, str(entry.type), None)
    return nested if isinstance(nested, type) and is_dataclass(nested) else None


def key_tables() -> str:
    """Every key of every entry point, once, in groups; a key of some entry points only says of which."""
    described = described_fields()
    groups: dict[str, str] = {}
    top_level: dict[tuple[str, str, str], tuple[object, list[str]]] = {}
    for name, root in SCHEMAS.items():
        values = composed(name)
        own = {field: facts for cls in root.__mro__[::-1] for field, facts in described.get(cls.__name__, {}).items()}
        for entry in fields(root):
            nested = class_of(entry)
            if nested is None:
                top_level.setdefault((entry.name, *own[entry.name]), (values[entry.name], []))[1].append(name)
            elif entry.name not in groups:
                rows = [
                    (f"{entry.name}.{key}", kind, values[entry.name][key], meaning)
                    for key, (kind, meaning) in described[nested.__name__].items()
                ]
                text = " ".join((nested.__doc__ or "").split())
                groups[entry.name] = f"### `{entry.name}`\n\n{text}\n\n{table(rows)}"
    rows = [
        (key, kind, default, ": ".join(filter(None, [", ".join(names), meaning])))
        for (key, kind, meaning), (default, names) in top_level.items()
    ]
    return "\n\n".join([f"### Top level\n\n{table(rows)}", *groups.values()])


def with_tables(text: str) -> str:
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{key_tables()}\n\n{END}{rest.split(END)[1]}"


def test_every_key_is_described():
    text = CONFIGURATION.read_text(encoding="utf-8")
    keys = {key for root in SCHEMAS.values() for key in all_keys(root)}
    groups = {key.split(".")[0] for key in keys if "." in key}
    missing = [key for key in sorted(keys - groups) if f"`{key}`" not in text]
    assert not missing, f"docs/configuration.md lacks {missing}; run python -m tests.test_docs"


def test_tables_are_those_of_the_program():
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert with_tables(text) == text, "gpt2x/config/schema.py or conf/ changed: run python -m tests.test_docs"


def test_every_option_is_listed():
    text = CONFIGURATION.read_text(encoding="utf-8")
    missing = [f"{group}={option}" for group, option in OPTIONS if f"`{option}`" not in text]
    assert not missing


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
    if name is None or "--help" in words:
        return None
    overrides = [word for word in words if "=" in word]
    if "-m" in words and name != "prepare":
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
    for file, command in commands():
        for module in re.findall(r"python -m (gpt2x[\w.]*)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (file, command)


# ---- the words


def test_names_of_checks_are_listed():
    text = CONFIGURATION.read_text(encoding="utf-8")
    for choices in (checks.ACTIVATIONS, checks.SCHEDULES, checks.PRECISIONS, checks.RECOMPUTES, checks.PROTOCOLS):
        assert all(choice in text for choice in choices), choices


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


if __name__ == "__main__":
    CONFIGURATION.write_text(with_tables(CONFIGURATION.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{CONFIGURATION.relative_to(ROOT)} written")
