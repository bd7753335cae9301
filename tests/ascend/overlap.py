"""Which computation of a compiled graph can run while a collective communicates: what neither waits for the other."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

COLLECTIVES = ("AllGather", "ReduceScatter", "AllReduce")
COMPUTATION = ("MatMulExt", "MatMul", "FlashAttentionScore", "FlashAttentionScoreGrad", "BatchMatMul")
LINE = re.compile(r"^  (%\d+)\([^)]*\) = (?:PrimFunc_)?(\w+)\((.*)")
VALUE = re.compile(r"%\d+\b")


def overlap(graph: str) -> list[dict[str, Any]]:
    """Return for each collective in the text of a graph which computation is before, after and beside it.

    A graph of several functions, such as one with a loop, is not read: its text names values per function.
    """
    if graph.count("\nsubgraph @") != 1:
        return []
    inputs: dict[str, set[str]] = {}
    operators: dict[str, str] = {}
    for line in graph.splitlines():
        if match := LINE.match(line):
            value, operator, rest = match.groups()
            inputs[value], operators[value] = set(VALUE.findall(rest)), operator
    before: dict[str, set[str]] = {}
    for value, own in inputs.items():  # a value is written before it is used
        before[value] = own.union(*(before[each] for each in own))
    computation = [value for value, operator in operators.items() if operator in COMPUTATION]

    def count(values: set[str]) -> dict[str, int]:
        return dict(Counter(operators[value] for value in computation if value in values))

    found = []
    for value, operator in operators.items():
        if operator in COLLECTIVES:
            after = {each for each in computation if value in before[each]}
            beside = set(computation) - before[value] - after
            found.append({"operator": operator, "before": count(before[value]), "after": count(after),
                          "beside": count(beside)})  # fmt: skip
    return found
