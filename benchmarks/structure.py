"""How the code is built, in numbers: files, circles, arrows, and the way of a configuration to the training loop.

    python benchmarks/structure.py                    # this checkout
    python benchmarks/structure.py --tree CHECKOUT    # another one, to compare

Counted from the source: files and lines of gpt2x/, the longest file and function, circles of files (strongly connected
components of the imports, hidden imports in functions included, those for types left out), packages and the arrows
between them.

Counted from the smallest first step (`train.py` with one layer of 32, one step, no samples): the modules of gpt2x that
are loaded, and its functions that run. A *room* is a file with a function that is called with the configuration of the
run before the loop begins: a TrainConfig, or the decision that holds it, among its arguments. A *climb* is such a call
that goes to a file on a higher floor than the call before it; the floor of a file is the longest chain of imports below
it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

SMALLEST = ["model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "trainer.max_steps=1",
            "trainer.sample_prompts=[]", "tracker=none", "hardware.peak_tflops=0.1",
            "trainer.compile_cache=false"]  # fmt: skip

HOLDERS = ("TrainConfig", "Decision", "Start")  # what carries the configuration of a run


def modules(tree: Path) -> dict[str, Path]:
    """Dotted name -> file."""
    files = {}
    for path in sorted((tree / "gpt2x").rglob("*.py")):
        parts = path.relative_to(tree).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere, those for types left out."""
    graph = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        graph[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpt2x":
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[name].add(full if full in files else node.module)
        graph[name] -= {"gpt2x", name}
    return graph


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components, each after those that it imports (Tarjan, 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            at = stack.index(node)
            result.append(stack[at:])
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return result


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Module -> the longest chain of imports below it; a circle is on one floor."""
    floor: dict[str, int] = {}
    for component in components(graph):
        below = [floor[other] for node in component for other in graph.get(node, ()) if other not in component]
        for node in component:
            floor[node] = 1 + max(below, default=-1)
    return floor


def static_numbers(tree: Path) -> dict[str, object]:
    """What the source tells."""
    files = modules(tree)
    graph = imports(files)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, path in files.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    package = {name: name.split(".")[1] if "." in name else "" for name in files}
    arrows = {(package[name], package[other]) for name, others in graph.items() for other in others}
    circles = [component for component in components(graph) if len(component) > 1]
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "longest file": max((count, name) for name, count in lines.items()),
        "longest function": max(functions),
        "circles of files": circles,
        "floors": 1 + max(floors(graph).values()),
        "packages": len(set(package.values()) - {""}),
        "arrows between packages": len({(one, other) for one, other in arrows if one != other}),
    }


def traced_numbers(tree: Path) -> dict[str, object]:
    """What the smallest first step tells; runs in this process, whose gpt2x is that of `tree`."""
    calls: list[str] = []
    functions: set[tuple[str, str]] = set()
    is_in_loop = False
    package = str(tree / "gpt2x")

    def profile(frame, event, argument):
        nonlocal is_in_loop
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package):
            return
        functions.add((code.co_filename, code.co_qualname))
        is_in_loop = is_in_loop or code.co_qualname == "Trainer.fit"
        names = [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]
        if not is_in_loop and any(type(frame.f_locals.get(name)).__name__ in HOLDERS for name in names):
            calls.append(code.co_filename)

    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache"]
        sys.argv = [str(tree / "train.py"), *SMALLEST, *paths]
        sys.path.insert(0, str(tree))
        printed = io.StringIO()
        sys.setprofile(profile)
        try:
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            sys.setprofile(None)
    assert is_in_loop, printed.getvalue()
    name_of = {str(path): name for name, path in modules(tree).items()}
    rooms = [name_of[calls[0]]]
    for file in calls[1:]:
        if name_of[file] != rooms[-1]:
            rooms.append(name_of[file])
    floor = floors(imports(modules(tree)))
    return {
        "modules loaded": sum(name.split(".")[0] == "gpt2x" for name in sys.modules),
        "files with a function that runs": len({file for file, _ in functions}),
        "functions that run": len(functions),
        "rooms of the configuration": len(set(rooms)),
        "climbs": sum(floor[after] > floor[before] for before, after in pairwise(rooms)),
        "the way": rooms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tree = options.tree.resolve()
    if options.traced:
        print("traced", json.dumps(traced_numbers(tree)))
        return
    numbers = static_numbers(tree)
    done = subprocess.run(
        [sys.executable, __file__, "--traced", "--tree", str(tree)], cwd=tree, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tree)}, check=False,
    )  # fmt: skip
    traced = [line for line in done.stdout.splitlines() if line.startswith("traced ")]
    if not traced:
        sys.exit(done.stdout + done.stderr)
    numbers |= json.loads(traced[0].removeprefix("traced "))
    for name, value in numbers.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
