"""Every message goes through gpt2x.runtime.console, and every mistake is answered in one form with status 2."""

import ast
import contextlib
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from gpt2x.commands import cli
from gpt2x.runtime.exits import guarded

ROOT = Path(__file__).resolve().parents[2]
# Files that use the streams of the process themselves, and why
STREAMS = {
    "gpt2x/runtime/console.py": "prints",
    "gpt2x/runtime/exits.py": "flushes and closes the streams at the process' end",
    "gpt2x/runtime/streams.py": "makes them outlive whoever reads them",
    "gpt2x/generate/output.py": "JSON lines on stdout are results and no messages",
    "gpt2x/tracking/mlflow_mirror.py": "JSON lines on stdout are for the process of the run",
    "gpt2x/config/reference.py": "a tool of developers",
}


def uses_of_streams(path: Path) -> list[str]:
    """Return `print`, sys.stdout, sys.stderr and consoles of its own in a file, with their lines."""
    uses = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
        if text in ("print", "sys.stdout", "sys.stderr", "Console", "RichConsole", "traceback.print_exc"):
            uses.append(f"{path.relative_to(ROOT)}:{node.lineno} {text}")
    return uses


@pytest.mark.parametrize("path", sorted([*(ROOT / "gpt2x").rglob("*.py"), *ROOT.glob("*.py")]), ids=str)
def test_only_the_console_prints(path):
    name = str(path.relative_to(ROOT))
    if name == "setup.py":  # runs in pip, without gpt2x
        return
    assert bool(uses_of_streams(path)) == (name in STREAMS), uses_of_streams(path)


HYDRA_MISTAKES = {
    "an unknown key": ["seeed=1"],
    "an unknown option": ["paths=nowhere"],
    "an unknown key of a group": ["paths.cach=x"],
    "a wrong type": ["tokenizer.vocab_size=many"],
    "a broken override": ["=1"],
    "a number for an option": ["paths=1"],
    "an unknown flag": ["--nonsense"],
    "help for no group": ["--help", "nonsense"],
}
OTHER_MISTAKES = {
    "plan": [["model=gpt3"], ["parallel=dp8", "trainer.global_batch_size=3"], ["model.num_layers=x"], ["--nonsense"]],
    "convert": [
        [],
        ["--to", "onnx", "--output", "x", "y"],
        ["--to", "hf", "--output", "x", "/nowhere"],
        ["--nonsense"],
    ],
    "checkpoint": [[], ["look", "x"], ["inspect", "/nowhere"], ["reshard", "/nowhere", "x", "--parallel", "dp77"]],
    "doctor": [["--hardware", "gpu"], ["--processes", "3"], ["--nonsense"]],
    "compare": [[], ["/nowhere"], ["--nonsense"], ["x", "--out", "y.pdf"]],
    "harness": [[], ["--load", "x", "--tasks", "y", "--limit", "many"], ["--nonsense"]],
    "report": [[], ["/nowhere"], ["--nonsense"]],
    "sync": [[], ["/nowhere"], ["--nonsense"]],
}
LINES = [
    *((name, *arguments) for name in cli.CONFIGURED for arguments in HYDRA_MISTAKES.values()),
    *((name, *arguments) for name, lines in OTHER_MISTAKES.items() for arguments in lines),
    ("trian",),
    ("--nonsense",),
]


def test_every_command_is_asked():
    assert {line[0] for line in LINES} >= set(cli.COMMANDS)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_mistake_is_one_error_and_status_2(line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpt2x", *line])
    GlobalHydra.instance().clear()
    assert guarded(lambda: cli.gpt2x(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_the_commands_are_listed(capsys):
    for line in ([], ["--help"]):
        cli.gpt2x(line)
        printed = capsys.readouterr().out
        for name, purpose in cli.COMMANDS.items():
            assert f"  {name} " in printed
            assert purpose in printed
    for line in (["--version"], ["train", "--version"]):
        cli.gpt2x(line)
        assert capsys.readouterr().out == f"gpt2x {cli.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help_and_one_file(name, capsys):
    assert (ROOT / "gpt2x" / "commands" / f"{name}.py").is_file()
    with contextlib.suppress(SystemExit):  # argparse
        cli.gpt2x([name, "--help"])
    assert f"gpt2x {name}" in capsys.readouterr().out
