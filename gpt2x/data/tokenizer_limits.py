"""What a tokenizer.json may hold, checked before the library reads it: the library trusts its numbers and patterns.

A number such as a cache of 10 ** 18 entries aborts the process, in which no exception can be caught. A pattern such as
`(a+)+$` takes a time that doubles with each character of a text, within a call that nothing can interrupt.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.runtime.expressions import expression_fault

MAX_TOKENS = 1_000_000  # of a vocabulary; published ones have up to 262,144
MAX_MERGES = 2_000_000
MAX_NUMBER = 1 << 20  # of an option: a length, a number of characters
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MODEL_TABLES = ("vocab", "merges")


def check_content(content: Mapping[str, Any], file: Path) -> None:
    """Check a parsed tokenizer.json, whose `model.vocab` is a dict or a list.

    Raises:
        UserError: a table or a number is too large, or a pattern may take for ever.
    """
    model = content["model"]
    for table, most in (("vocab", MAX_TOKENS), ("merges", MAX_MERGES)):
        if isinstance(model.get(table), dict | list) and len(model[table]) > most:
            raise UserError(f"tokenizer.path={file}: its {table} has {len(model[table]):,} entries; {most:,} are read.")
    options = {key: value for key, value in model.items() if key not in MODEL_TABLES}
    for part, value in (("model", options), *((part, content.get(part)) for part in PARTS)):
        for key, one in _leaves(value):
            if isinstance(one, int) and abs(one) > MAX_NUMBER:
                raise UserError(
                    f"tokenizer.path={file}: {part} has {key}={one}, beyond {MAX_NUMBER:,}. Correct the file."
                )
            if key == "Regex" and isinstance(one, str) and (fault := expression_fault(one)):
                raise UserError(
                    f"tokenizer.path={file}: {part} has the pattern {one[:60]!r}, which {fault}. Write it without."
                )
            if key == "precompiled_charsmap" and not _is_charsmap(one):
                raise UserError(f"tokenizer.path={file}: {part} has a damaged precompiled_charsmap. Download it again.")


def _is_charsmap(value: Any) -> bool:
    """Return whether a map of SentencePiece has the table whose size it states, which the library allocates."""
    try:
        content = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    size = int.from_bytes(content[:4], "little")
    return len(content) >= 4 and size % 4 == 0 and size <= len(content) - 4


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the texts and numbers in lists and objects, each with the key of the object that it is in."""
    left = [("", value)]
    while left:
        key, one = left.pop()
        if isinstance(one, dict):
            left += one.items()
        elif isinstance(one, list):
            left += [(key, each) for each in one]
        else:
            yield key, one
