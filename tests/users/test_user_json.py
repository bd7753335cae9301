"""JSON that users bring, against Python's json: the same values, or one message; no text that is no Unicode."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.errors import UserError
from gpt2x.runtime.json_text import parse_json, read_json, well_formed

TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)  # halves of surrogate pairs too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
HALVES = ["\ud83d", "\udc00", "a\udfff", "\ud83dx", "x\ud83d\ud83d"]


@given(VALUES, st.booleans())
def test_values_are_those_of_python_in_unicode(value, ascii_only):
    text = json.dumps(well_formed(value) if not ascii_only else value, ensure_ascii=ascii_only)
    parsed = parse_json(text, "a.json", "Correct it.")
    assert parsed == well_formed(json.loads(text))
    json.dumps(parsed, ensure_ascii=False).encode()  # no surrogate is left


@pytest.mark.parametrize("half", HALVES)
def test_half_of_a_pair_becomes_the_replacement_character(half):
    expected = "".join("�" if 0xD800 <= ord(character) < 0xE000 else character for character in half)
    assert parse_json(json.dumps({half: [half]}), "a.json", "") == {expected: [expected]}
    assert parse_json('"\\ud83d\\ude00 \\\\ud83d"', "a.json", "") == "\U0001f600 \\ud83d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "a.json, line 3 is not JSON: lists or objects are nested too deeply. Fix it."),
        ('{"a":' * 100_000, "a.json, line 3 is not JSON: lists or objects are nested too deeply. Fix it."),
        ("9" * 5000, "a.json, line 3 is not JSON: a number has too many digits. Fix it."),
        ('{"a": 1,}', "a.json, line 3 is not JSON: Expecting property name"),
        ('{"a": "b\nc"}', "a.json, line 3 is not JSON: Invalid control character at line 1, column 9. Fix it."),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "a.json, line 3 has the key 'c' twice in one object."),
    ],
)
def test_what_python_raises_is_one_message(text, message):
    with pytest.raises(UserError) as caught:
        parse_json(text, "a.json, line 3", "Fix it.", unique_keys=True)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{", "cannot be read as UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "holds a list, not a JSON object"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_of_a_model_that_is_no_object(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2}')
    assert read_json(path) == {"a": 2}  # as transformers reads it; a byte order mark is skipped
