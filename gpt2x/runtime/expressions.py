"""Regular expressions that others wrote: those that may take for ever are rejected before they are used.

The engines of Python and of `tokenizers` (Oniguruma) go back and try again. A pattern such as `(a+)+$` takes a time
that doubles with each character of a text, within a call that nothing can interrupt.
"""

from __future__ import annotations

import re

MAX_COST = 20_000  # characters of a pattern, each as often as counts such as {2,5} repeat it
MAX_DEPTH = 50  # of groups within each other
COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
CHARS = re.compile(r"\\p\{\^?\w+\}|\\x\{\w+\}|\\.|.", re.DOTALL)


def expression_fault(pattern: str) -> str | None:
    """Return what makes a pattern take for ever on some text, or take memory; None if nothing does.

    A repetition without end of something that can match the same characters in several ways is tried in all of them:
    of a group that holds such a repetition, or alternatives.
    """
    groups: list[_Group] = [_Group()]
    atom = _Group()  # what a quantifier would repeat
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            at, atom = _end_of_class(pattern, at), _Group(cost=1)
            groups[-1].cost += 1
            continue
        count = COUNT.match(pattern, at)
        char = CHARS.match(pattern, at)
        assert char is not None
        if pattern[at] in "*+" or (count and (count[1] or count[3])):
            repeats = int(count[3] or count[1]) if count else 0
            is_endless = not count or bool(count[2] and not count[3])
            if is_endless and (atom.has_endless or atom.has_alternatives):
                return "repeats without end what itself repeats or has alternatives"
            groups[-1].has_endless |= is_endless
            groups[-1].cost += atom.cost * max(0, repeats - 1)
            atom = _Group(has_endless=is_endless, cost=atom.cost * max(1, repeats))
            at = count.end() if count else at + 1
        elif pattern[at] == "(":
            groups.append(_Group())
            at += 1
        elif pattern[at] == ")" and len(groups) > 1:
            atom = groups.pop()
            groups[-1].has_endless |= atom.has_endless
            groups[-1].cost += atom.cost
            at += 1
        else:
            groups[-1].has_alternatives |= char[0] == "|"
            if char[0] not in "?|":
                atom = _Group(cost=1)
                groups[-1].cost += 1
            at = char.end()
        if groups[-1].cost > MAX_COST or len(groups) > MAX_DEPTH:
            return "is too large or too deeply nested"
    return None


class _Group:
    """What is known of a part of a pattern."""

    def __init__(self, *, has_endless: bool = False, cost: int = 0) -> None:
        self.has_endless, self.has_alternatives, self.cost = has_endless, False, cost


def _end_of_class(pattern: str, at: int) -> int:
    """Return the position after the class that begins at `at`, classes within it included."""
    depth, begin = 0, at
    while at < len(pattern):
        char = CHARS.match(pattern, at)
        assert char is not None
        if char[0] == "[":
            depth += 1
        elif char[0] == "]" and at > begin + 1:
            depth -= 1
        at = char.end()
        if depth == 0:
            break
    return at
