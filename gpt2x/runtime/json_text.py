"""JSON that users bring, within limits: what Python's json raises becomes one message, and texts become Unicode.

JSON has no NaN. Whatever gpt2x writes has non-finite numbers as the strings "NaN", "Infinity" and "-Infinity"
(`encoded`), and `decoded` turns them back.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.runtime import limits

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class RepeatedKeyError(ValueError):
    """One JSON object has a key twice."""


class LongNumberError(ValueError):
    """A whole number has more digits than any float."""


def parse_json(
    text: str, location: str, fix: str, *, unique_keys: bool = False, memory: int = limits.MEMORY_BYTES
) -> Any:
    """Return the value of a JSON text; half of a surrogate pair, which is no character, becomes U+FFFD.

    Args:
        text: one JSON value.
        location: the file, and the line if it has several values; begins the message.
        fix: what to do; ends the message.
        unique_keys: reject an object that has a key twice; else the last one counts, as in Python's json.
        memory: bytes that the value may take.

    Raises:
        UserError: malformed JSON, too deep nesting, a number of hundreds of digits, a key that is there twice, or so
            many values that they take more than `memory`.
    """
    if limits.memory_of_json(text) > memory:
        raise UserError(
            f"{location} has more lists, objects and texts than are read: they would take over {memory >> 20} MiB. "
            f"{fix}"
        )
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None, parse_int=_whole_number)
        if text.count("[") + text.count("{") > limits.DEPTH and limits.is_deeper(value, limits.DEPTH):
            raise RecursionError
        return well_formed(value) if SURROGATE_ESCAPE.search(text) else value
    except RepeatedKeyError as error:
        raise UserError(f"{location} has the key {error} twice in one object. Remove one of them.") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        reason = f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
        raise UserError(f"{location} is not JSON: {reason}. {fix}") from error
    except RecursionError:
        raise UserError(f"{location} is not JSON: lists or objects are nested too deeply. {fix}") from None
    except LongNumberError as error:
        raise UserError(f"{location} is not JSON: a number has too many digits. {fix}") from error


def read_json(path: Path, fix: str = "Copy or download it again.") -> dict[str, Any]:
    """Return the JSON object in a file of a model or a tokenizer.

    Args:
        path: the file.
        fix: what to do; ends the message.

    Raises:
        UserError: the file cannot be read, is not a JSON object, or exceeds a limit (`gpt2x.runtime.limits`).
    """
    content = parse_json(decoded_text(limits.read_bytes(path, limits.JSON_BYTES, fix), path, fix), str(path), fix)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object. {fix}")
    return content


def decoded_text(content: bytes, path: Path, fix: str) -> str:
    """Return the text in the bytes of a file; a byte order mark is no part of it.

    Raises:
        UserError: the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}). {fix}") from error


def encoded(value: Any) -> Any:
    """Return plain data in which each non-finite number is a string, as JSON has no such number."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    return value


def decoded(value: Any) -> Any:
    """Return plain data in which the strings of `encoded` are numbers again."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if isinstance(value, dict):
        return {key: decoded(item) for key, item in value.items()}
    return value


def well_formed(value: Any) -> Any:
    """Return plain data with each half of a surrogate pair, in texts and keys, as U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [well_formed(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(repr(key))
            seen.add(key)
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > limits.NUMBER_DIGITS:
        raise LongNumberError
    return int(digits)
