"""JSON that users bring: what Python's json raises becomes one message, what it lets through becomes Unicode."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class RepeatedKeyError(ValueError):
    """One JSON object has a key twice."""


def parse_json(text: str, location: str, fix: str, *, unique_keys: bool = False) -> Any:
    """Return the value of a JSON text; half of a surrogate pair, which is no character, becomes U+FFFD.

    Args:
        text: one JSON value.
        location: the file, and the line if it has several values; begins the message.
        fix: what to do; ends the message.
        unique_keys: reject an object that has a key twice; else the last one counts, as in Python's json.

    Raises:
        UserError: malformed JSON, too deep nesting, a number of thousands of digits, a key that is there twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
        return well_formed(value) if SURROGATE_ESCAPE.search(text) else value
    except RepeatedKeyError as error:
        raise UserError(f"{location} has the key {error} twice in one object. Remove one of them.") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        reason = f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
        raise UserError(f"{location} is not JSON: {reason}. {fix}") from error
    except RecursionError:
        raise UserError(f"{location} is not JSON: lists or objects are nested too deeply. {fix}") from None
    except ValueError as error:
        raise UserError(f"{location} is not JSON: a number has too many digits. {fix}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model or a tokenizer.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    fix = "Copy or download it again."
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). {fix}") from error
    content = parse_json(text, str(path), fix)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object. {fix}")
    return content


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
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(repr(next(key for key in keys if keys.count(key) > 1)))
    return content
