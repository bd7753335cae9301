"""What a value of a table means as a text and as a label: the same in every format."""

from __future__ import annotations

import math

from gpt2x.compatibility import Entry, Format, Use
from gpt2x.errors import UserError

VALUES = Format(
    "Data files: values",
    "Of the columns that a source reads (`dataset.text_column`, `text_columns`, `label_column`; `instruction`, "
    "`input`, `output`; `prompt`), the same in `.csv`, `.tsv`, `.jsonl`, `.json` and `.parquet`. A rejected value is "
    "named with its line or row.",
    (
        Entry("a text", Use.READ, "itself; as a label without the blanks around it"),
        Entry("null, NaN or an empty text as text", Use.READ, "no text: `dataset=text` leaves the row out, and an "
              "empty labelled text is one end-of-text token; a note counts them"),
        Entry("null, NaN or an empty text as input", Use.READ, "no input"),
        Entry("null, NaN or an empty text as output", Use.REJECTED, "or left out and counted: `dataset.skip_empty`"),
        Entry("null, NaN or an empty text as label or instruction", Use.REJECTED, "remove the row"),
        Entry("null, NaN or no text as prompt", Use.REJECTED, "an empty text starts from EOS"),
        Entry("a number, true, false as label", Use.READ, "as pandas writes them to a .csv: `1`, `0.5`, `True`"),
        Entry("a number, true, false as text", Use.REJECTED, "write it in quotes"),
        Entry("infinity, a list, an object, bytes, a date", Use.REJECTED),
        Entry("half of a surrogate pair, as \\ud83d", Use.READ, "as U+FFFD, in texts, labels, keys and prompts"),
        Entry("a column that is read twice in a header, a key twice in an object", Use.REJECTED,
              "also if the names differ in blanks around them; other columns may be there twice"),
        Entry("a row of more or fewer fields than the header", Use.REJECTED),
        Entry("other columns and keys", Use.IGNORED),
    ),
    "rejected.",
)  # fmt: skip
KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}


def text_of(value: object, name: str, location: str) -> str:
    """Return the text of a field; empty if it is missing (null, or NaN in its place).

    Raises:
        UserError: the value is no text; names location and field.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    hint = "Join its parts to one text" if isinstance(value, list) else "Write it in quotes"
    raise UserError(f"{location}: {name!r} is {shown(value)}, not text. {hint}, or name the column that has the text.")


def label_of(value: object, name: str, location: str) -> str:
    """Return the label in a field, without blanks around it.

    Raises:
        UserError: no label, or a value that is no label; names location and field.
    """
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        label = str(value).strip()
    elif is_missing(value):
        label = ""
    else:
        several = " A text has one label here: leave out the others." if isinstance(value, list) else ""
        raise UserError(
            f"{location}: {name!r} is {shown(value)}, not a label (a text, a number, true or false).{several} "
            "Correct it, or set dataset.label_column."
        )
    if not label:
        raise UserError(f"{location} has an empty {name!r}. Label the text, or remove the row.")
    return label


def is_missing(value: object) -> bool:
    """Return whether a field has no value: null, or NaN, which exports of tables write in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: object) -> str:
    """Return the kind of a value, and the beginning of the value, for messages."""
    text = repr(value)
    return f"{KINDS.get(type(value), type(value).__name__)} ({text[:40]}{'…' if len(text) > 40 else ''})"
