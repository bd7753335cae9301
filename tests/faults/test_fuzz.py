"""Spoilt files of every format are read or answered with a message; `tests.faults.fuzz` is the long form."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.errors import UserError
from tests.faults import seeds
from tests.faults.hostile_entries import answer
from tests.faults.mutations import TARGETS, spoil

NUMBERS = st.integers(0, 1 << 32)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A copy of each seed, which the mutations of all examples overwrite, and the content of the spoilt files."""
    root = tmp_path_factory.mktemp("fuzz")
    folders = {target: seeds.copy(target.seed, root / str(number)) for number, target in enumerate(TARGETS)}
    return {target: (folder, (folder / target.file).read_bytes()) for target, folder in folders.items()}


@pytest.mark.run
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name} {target.entry}")
@given(number=NUMBERS)
def test_a_spoilt_file_is_read_or_answered_with_a_message(originals, target, number):
    folder, content = originals[target]
    with contextlib.suppress(UserError):
        answer(target.entry, spoil(target, folder, content, number))
