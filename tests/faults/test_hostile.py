"""Hostile inputs are answered with one message: a part of the table of `tests.faults.hostile`, and what it rests on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.checkpoint.manifest import coverage_fault
from gpt2x.errors import UserError
from gpt2x.runtime import json_text, limits
from gpt2x.runtime.expressions import expression_fault
from tests.faults.hostile import CASES, faults, outcome
from tests.faults.hostile_entries import ENTRIES

# files of hundreds of MB are written by the long form only
SHORT = [case for case in CASES if not any(size in case.name for size in ("MB", "million", "GB", "10 ** 6", "300,000"))]


@pytest.mark.run
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_part_of_the_table(tmp_path, entry):
    cases = [case for case in SHORT if case.entry == entry]
    for number, case in enumerate(cases[:: max(1, len(cases) // 6)]):
        end = outcome(case, tmp_path / str(number))
        assert not faults(case, end), (case.name, end)


@pytest.mark.exhaustive
@pytest.mark.run
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry} {case.name}"[:80])
def test_the_whole_table(tmp_path, case):
    end = outcome(case, tmp_path / "it")
    assert not faults(case, end), end


def test_the_table_has_as_many_inputs_as_it_claims():
    assert len(CASES) >= 200
    assert len({(case.entry, case.name) for case in CASES}) == len(CASES)


boxes = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@given(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.lists(boxes, max_size=5))
def test_slices_cover_a_tensor_once_if_each_value_is_covered_once(shape, drawn):
    slices = [{"start": [a, b], "shape": [c, d]} for a, b, c, d in drawn]
    counts = np.zeros((8, 8), int)
    for piece in slices:
        counts[tuple(slice(at, at + n) for at, n in zip(piece["start"], piece["shape"], strict=True))] += 1
    is_inside = all(at + n <= size for piece in slices
                    for at, n, size in zip(piece["start"], piece["shape"], shape, strict=True))  # fmt: skip
    whole = np.zeros((8, 8), int)
    whole[: shape[0], : shape[1]] = 1
    assert (coverage_fault(shape, slices) is None) == (is_inside and np.array_equal(counts, whole))


def test_slices_of_a_grid_cover_a_tensor():
    pieces = [
        {"start": [8 * row, 4 * column], "shape": [8, 4]} for row, column in itertools.product(range(200), range(100))
    ]
    assert coverage_fault((1600, 400), pieces) is None
    assert coverage_fault((1600, 400), pieces[:-1]) == "hold 639968 of 640000 values"
    assert coverage_fault((1600, 400), [*pieces[:-1], pieces[0]]) == "overlap"
    assert coverage_fault((1600, 399), pieces) == "reach beyond it"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")  # fmt: skip
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"


@pytest.mark.parametrize(
    "pattern", [GPT2, CL100K, O200K, MARKS, " {2,}", ".", "[0-9]", r"(?<=\s)|(?=\s)", "(ab)+", "(?:ab?c)*x"]
)
def test_patterns_of_published_tokenizers_are_read(pattern):
    assert expression_fault(pattern) is None


@pytest.mark.parametrize(
    "pattern", ["(a+)+", "(?:a|b)*c", "((ab)*c)*", "(a*){2,}", "(?:[a)]+b?)+", r"(\(+)+", "(" * 200, "(a{200}){200}"]
)
def test_patterns_that_may_take_for_ever_are_rejected(pattern):
    assert expression_fault(pattern)


def test_numbers_that_json_does_not_have_are_texts():
    values = {"a": [float("nan"), {"b": float("-inf")}, 1.5, None, True, "NaN?"], "c": float("inf")}
    encoded = json_text.encoded(values)
    assert encoded == {"a": ["NaN", {"b": "-Infinity"}, 1.5, None, True, "NaN?"], "c": "Infinity"}
    assert str(json_text.decoded(encoded)) == str(values)


def test_a_file_is_not_read_beyond_its_limit(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert limits.read_bytes(file, 5, "Fix it.") == b"12345"
    with pytest.raises(UserError, match=r"a has 5 bytes; a file of its kind has at most 4, .* Fix it\."):
        limits.read_bytes(file, 4, "Fix it.")
    with pytest.raises(UserError, match=r"is no regular file\. Fix it\."):
        limits.read_bytes(tmp_path, 4, "Fix it.")
