"""The language of the code (docs/design/names.md): names, the mood of docstrings, messages, plain phrases.

A word or a phrase that confused readers before is listed here once; a new use of it fails.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "gpt2x").rglob("*.py"), *ROOT.glob("*.py")])
PAGES = [
    path
    for folder, suffixes in {
        "gpt2x": (".cpp", ".hpp", ".yaml"),
        "conf": (".yaml",),
        "docs": (".md",),
        "experiments": (".md",),
        "benchmarks": (".md",),
    }.items()
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in suffixes and path.name != "names.md"  # which lists these words
] + sorted(ROOT.glob("*.md"))

# They say that something was found, not what. docs/design/names.md has what to write instead.
EMPTY_NAMES = {"found", "own", "told", "held", "given", "known", "made", "wanted"}
ANY_EMPTY_NAME = re.compile(r"\b_*(" + "|".join(sorted(EMPTY_NAMES)) + r")_*\b")

# A docstring of a function begins with a verb: "Return the …", not "The …"; "Return whether", not "Whether".
NO_VERB = {
    "A", "All", "An", "Each", "Every", "For", "How", "It", "Of", "On", "One", "Same", "That", "The", "Those", "True",
    "What", "When", "Where", "Whether", "Which", "Why",
}  # fmt: skip

COUNTED = r"(tokens(/s)?|texts|bytes|ms|seconds|GB|MB|values|rows|sequences|calls)"
UNIT = r"(second|device|step|update|parameter|layer|rank|row|token|sequence)"
# Phrases that had to be read twice, and what to write instead.
PHRASES = {
    r"\bbehind\b": "after (order), beside (place), that caused (reason)",
    r"\balone\.": "only, before the word that it limits",
    r"\bwhere there (is|are)\b": "if there is",
    r"\b(go|goes|went) on\b": "continue",
    r"\brefus(e|es|ed|ing)\b": "reject; of a system: fail, deny",
    r"\bwants\b": "require, expect, need",
    r"\bis told\b": "is reported, is announced",
    rf"\b{COUNTED} an? {UNIT}\b": "per instead of a",
    r"\(floor \d\)": "nothing: tests/test_architecture.py holds the order of packages",
}
ANY_PHRASE = re.compile("|".join(PHRASES), re.IGNORECASE)


def shown(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# ---- names


def bound_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every parameter, attribute, variable, function and class that a module binds."""
    for node in ast.walk(module):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_names_say_the_content():
    wrong = [
        f"{shown(path, line)} {name}"
        for path in SOURCES
        if ANY_EMPTY_NAME.search(path.read_text(encoding="utf-8"))  # walking trees takes most of the time
        for line, name in bound_names(tree(path))
        if name.strip("_") in EMPTY_NAMES
    ]
    assert not wrong, "see docs/design/names.md"


# ---- docstrings


def public_functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Public functions of a module and public methods of its public classes."""
    bodies = [module, *(node for node in module.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
    for body in bodies:
        for node in body.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node


def mood_error(function: ast.FunctionDef) -> str:
    """Why the first line of a docstring is not in the imperative; "" if it is, or if there is none.

    A property is described by what it is; a method that computes within a graph, by its shapes.
    """
    if function.name in ("construct", "bprop"):
        return ""
    first = (ast.get_docstring(function) or "-").split()[0].rstrip(",:;.")
    is_property = any("property" in ast.unparse(decorator) for decorator in function.decorator_list)
    is_third_person = bool(re.fullmatch("[A-Z].*[^s]s", first)) and first != "As"  # "Returns", and plurals: "Bytes of"
    if (is_third_person or first in NO_VERB) and not is_property:
        return f"{function.name}: {first!r} is no imperative"
    return ""


def test_docstrings_of_functions_are_imperative():
    wrong = [
        f"{shown(path, function.lineno)} {error}"
        for path in SOURCES
        for function in public_functions(tree(path))
        if (error := mood_error(function))
    ]
    assert not wrong


# ---- messages


def last_characters(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, last character) of the messages of errors that end in literal text."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            position = {"UserError": 0, "RunError": 0, "require": -1}.get(node.func.id)
            if position is not None:
                message = node.args[position]
                end = message.values[-1] if isinstance(message, ast.JoinedStr) else message
                if isinstance(end, ast.Constant) and isinstance(end.value, str):
                    yield node.lineno, end.value.rstrip("\n")[-1:]


def test_messages_of_errors_end_in_a_full_stop():
    wrong = [
        f"{shown(path, line)} ends in {character!r}"
        for path in SOURCES
        for line, character in last_characters(tree(path))
        if character not in ".?"
    ]
    assert not wrong


# ---- phrases


def prose_of_source(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of docstrings, comments and messages."""
    text = path.read_text(encoding="utf-8")
    kinds = (tokenize.STRING, tokenize.COMMENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def prose_of_text(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of a page, of C++ comments or of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if path.suffix != ".md":
            line = line.partition("//" if path.suffix.endswith("pp") else "#")[2]
        yield number, line


def phrase_errors(path: Path) -> list[str]:
    if not ANY_PHRASE.search(path.read_text(encoding="utf-8")):
        return []  # tokenizing takes most of the time
    prose = prose_of_source(path) if path.suffix == ".py" else prose_of_text(path)
    return [
        f"{shown(path, line + text[: match.start()].count(chr(10)))} {match.group()!r}: write {instead}"
        for line, text in prose
        for phrase, instead in PHRASES.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("files", [SOURCES, PAGES], ids=["source", "pages"])
def test_phrases_are_plain(files):
    assert not [error for path in files for error in phrase_errors(path)]
