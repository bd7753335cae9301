"""The interface of the compiled library: constants and signatures, compared with those of this Python code.

The library describes itself by lines "constant NAME VALUE" and "operator NAME SIGNATURE" (`gpt2x_interface` in
src/library.cpp). A signature names every operand with its type and sizes, in order, those of a layer once; op.hpp has
the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2x.native.constants import READ, SHARED
from gpt2x.native.signatures import SIGNATURES


class InterfaceError(Exception):
    """The library and this Python code disagree."""


@dataclass(frozen=True)
class Operand:
    """One operand: sizes such as ("B", "T", "3D"), or None if any shape is accepted."""

    name: str
    dtype: str
    sizes: tuple[str, ...] | None


class Signature:
    """A parsed signature.

    Attributes:
        inputs: with those of one layer at the end.
        layer_inputs: those of a layer; none if there are no layers.
        outputs: the results.

    Args:
        name: of the operator.
        text: such as "x float32 (R, K), weight float32 (K, N) -> y float32 (R, N)".
    """

    def __init__(self, name: str, text: str):
        inputs, _, outputs = text.partition(" -> ")
        once, _, layer = inputs.partition("each ")
        self.layer_inputs = operands(layer)
        self.name, self.inputs, self.outputs = name, operands(once) + self.layer_inputs, operands(outputs)

    def output_shapes(self, shapes: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> list[list[int]]:
        """Return the shapes of the outputs for inputs of some shapes.

        Args:
            shapes: one per input.
            sizes: those that no input has.

        Raises:
            ValueError: the number of inputs, or a shape, does not fit the signature.
        """
        bound = dict(sizes)
        pairs = zip(self.inputs_of(len(shapes)), shapes, strict=True)
        for operand, shape in sorted(pairs, key=lambda pair: has_factor(pair[0])):
            self._bind(operand, shape, bound)
        first = list(shapes[0])
        return [first if out.sizes is None else [value(size, bound) for size in out.sizes] for out in self.outputs]

    def inputs_of(self, count: int) -> list[Operand]:
        """Return the operands of `count` inputs, with those of every layer.

        Raises:
            ValueError: there is no such number of inputs.
        """
        extra, size = count - len(self.inputs), len(self.layer_inputs)
        if extra and (not size or extra < 0 or extra % size):
            each = f", and {size} for each further layer" if size else ""
            raise ValueError(f"{self.name} takes {len(self.inputs)} operands{each}, not {count}")
        return self.inputs + self.layer_inputs * (extra // size if size else 0)

    def check_types(self, dtypes: Sequence[str], contiguous: Sequence[bool]) -> None:
        """Check the inputs' types, and that their values stand side by side.

        Raises:
            ValueError: an input does not fit.
        """
        for operand, dtype, is_contiguous in zip(self.inputs_of(len(dtypes)), dtypes, contiguous, strict=True):
            if operand.dtype not in (dtype, "any"):
                raise ValueError(f"{self.name}: {operand.name} is {dtype}, not {operand.dtype}")
            if not is_contiguous:
                raise ValueError(f"{self.name}: {operand.name} is not contiguous")

    def _bind(self, operand: Operand, shape: Sequence[int], bound: dict[str, int]) -> None:
        if operand.sizes is None:
            return
        matches = len(shape) == len(operand.sizes)
        for size, actual in zip(operand.sizes, shape, strict=False):
            factor, symbol = split(size)
            if symbol and actual % factor == 0:
                bound.setdefault(symbol, actual // factor)
            matches = matches and value(size, bound) == actual
        if not matches:
            raise ValueError(f"{self.name}: {operand.name} has shape {list(shape)}, not ({', '.join(operand.sizes)})")


def operands(text: str) -> list[Operand]:
    """Parse one side of a signature."""
    parts = re.findall(r"(\w+) (\w+)(?: \(([^)]*)\))?", text)
    shapes = re.findall(r"\w+ \w+( \()?", text)
    return [
        Operand(name, dtype, tuple(sizes.split(", ")) if shape else None)
        for (name, dtype, sizes), shape in zip(parts, shapes, strict=True)
    ]


def split(size: str) -> tuple[int, str]:
    """Return the factor and the symbol of a size: "3D" -> (3, "D"); "4" -> (4, "")."""
    digits = re.match(r"\d*", size).group()  # type: ignore[union-attr]
    return int(digits or 1), size.removeprefix(digits)


def value(size: str, bound: Mapping[str, int]) -> int:
    """Return the number that a size stands for; -1 if its symbol is not bound."""
    factor, symbol = split(size)
    return factor * bound[symbol] if symbol in bound else -1 if symbol else factor


def has_factor(operand: Operand) -> bool:
    """Return whether a size of the operand is a multiple of a symbol, which other operands bind better."""
    return any(split(size)[0] != 1 and split(size)[1] for size in operand.sizes or ())


def read_interface(text: str) -> dict[str, float]:
    """Compare the library's description of itself with this Python code; return its constants.

    Raises:
        InterfaceError: an operator, an operand or a constant is missing, unexpected or different.
    """
    lines = [line.split(" ", 2) for line in text.splitlines()]
    constants = {name: rest for kind, name, rest in lines if kind == "constant"}
    compare_names("constant", constants, [*SHARED, *READ])
    numbers = {name: int(rest) if rest.isdecimal() else float(rest) for name, rest in constants.items()}
    for name, expected in SHARED.items():
        if np.float32(numbers[name]) != np.float32(expected) or (
            isinstance(expected, int) and numbers[name] != expected
        ):
            raise InterfaceError(f"constant {name} is {constants[name]} in C++ and {expected} in Python")
    signatures = {name: rest for kind, name, rest in lines if kind == "operator"}
    compare_names("operator", signatures, list(SIGNATURES))
    for name, expected_text in SIGNATURES.items():
        compare_operands(Signature(name, signatures[name]), Signature(name, expected_text))
    return numbers


def compare_names(kind: str, cpp: Mapping[str, str], python: Sequence[str]) -> None:
    """Raise InterfaceError if one language lacks what the other has."""
    for name in sorted(set(cpp) ^ set(python)):
        raise InterfaceError(f"{kind} {name} is missing in {'Python' if name in cpp else 'C++'}")


def compare_operands(cpp: Signature, python: Signature) -> None:
    """Raise InterfaceError at the first operand that differs."""
    for side in ("inputs", "layer_inputs", "outputs"):
        ours, theirs = getattr(python, side), getattr(cpp, side)
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            if mine != other:
                raise InterfaceError(f"operator {cpp.name}, {side}[{index}]: {other} in C++, {mine} in Python")
        if len(ours) != len(theirs):
            raise InterfaceError(f"operator {cpp.name} has {len(theirs)} {side} in C++ and {len(ours)} in Python")
