"""Files of text in other encodings: read if their first bytes say it, else a message whose command gives the text."""
# ruff: noqa: RUF001 - texts of many scripts

import gzip
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2x.data.reading.encodings import MARKS, SIGNATURES, encoding_of
from gpt2x.data.reading.files import read_documents, read_lines
from gpt2x.errors import UserError

TEXTS = {
    "German": "Über die Größe der Häuser in München, “schön” – sagte er. Die Straße war naß.\n",
    "French": "Le café est fermé à l’été… ça coûte 5 €, déjà vu — où ?\n",
    "one letter": "Only one caf\u00e9 here.\n",
    "Polish": "Zażółć gęślą jaźń. Wczoraj był piękny dzień i wszyscy poszli do domu.\n",
    "Turkish": "Bugün hava çok güzel, çocuklar bahçede oynuyor. İşte şimdi ığdır.\n",
    "Russian": "Паром вышел из гавани до восхода солнца, и никто на набережной не помахал рукой.\n",
    "Greek": "Το πλοίο έφυγε από το λιμάνι πριν ανατείλει ο ήλιος και κανείς δεν χαιρέτησε.\n",
    "Japanese": "フェリーは日の出前に港を出ました。岸壁では誰も手を振りませんでした。乗組員は二人とも眠っていた。\n",
    "Chinese": "渡轮在太阳升起之前离开了港口，码头上没有人挥手。两名船员在下面睡着了；第三个人一只手扶着舵轮。\n",
    "Taiwanese": "渡輪在太陽升起之前離開了港口，碼頭上沒有人揮手。兩名船員在下面睡著了。\n",
    "Korean": "해가 뜨기 전에 배가 항구를 떠났고, 부두에서 손을 흔드는 사람은 아무도 없었다.\n",
    "English": "The ferry left the harbour before the sun was up, and nobody waved.\n",
}
LEGACY = {
    "German": ["cp1252", "latin-1"],
    "French": ["cp1252"],
    "one letter": ["cp1252", "latin-1"],
    "Polish": ["cp1250"],
    "Turkish": ["cp1254"],
    "Russian": ["cp1251", "koi8-r"],
    "Greek": ["cp1253", "iso8859-7"],
    "Japanese": ["cp932", "shift_jis", "euc-jp", "iso2022_jp"],
    "Chinese": ["gb18030", "gbk"],
    "Taiwanese": ["big5"],
    "Korean": ["euc-kr", "cp949"],
}
UNMARKED = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
CASES = [(name, code) for name, codes in LEGACY.items() for code in [*codes, *UNMARKED]]


def converted(message: str) -> bytes | None:
    """What the command of a message writes; None if there is no command."""
    command = re.search(r"Convert it: (.*) > ", message)
    if command is None:
        return None
    return subprocess.run(["sh", "-c", command[1]], capture_output=True, check=True, timeout=20).stdout


def message_of(path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_documents(path, "text"))
    return str(caught.value)


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_the_command_of_the_message_gives_the_text(tmp_path, language, encoding):
    text = "The log of a ship.\n" + TEXTS[language] * 3
    content = text.encode(encoding, "replace")
    path = tmp_path / "a log.txt"
    path.write_bytes(content)
    message = message_of(path)
    assert f"{path} is not valid UTF-8: byte 0x" in message
    assert converted(message).decode() == content.decode(encoding)
    packed = tmp_path / "a log.txt.gz"
    packed.write_bytes(gzip.compress(content))
    if language == "French":
        assert converted(message_of(packed)).decode() == content.decode(encoding)


@pytest.mark.parametrize("encoding", ["cp866", "iso8859-5", "mac_cyrillic"])
def test_no_command_is_better_than_one_that_makes_other_text(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes((TEXTS["Russian"] * 3).encode(encoding))
    assert "iconv" not in message_of(path)


@pytest.mark.run  # decodes by many codecs
@given(st.sampled_from(sorted(TEXTS)), st.integers(1, 4), st.data())
def test_a_guess_is_never_other_text(language, times, data):
    """Parts of texts in every encoding that has them: the guess decodes to the same text, or there is none."""
    text = data.draw(st.sampled_from(["", "A line.\n"])) + TEXTS[language] * times
    encoding = data.draw(st.sampled_from(LEGACY.get(language, UNMARKED) + UNMARKED))
    start = data.draw(st.integers(0, 20))
    content = text[start:].encode(encoding, "replace")
    guess = encoding_of(content)
    if guess in (None, "UTF-8", "binary"):
        assert encoding not in UNMARKED or "\0" not in content.decode("latin-1") or guess != "UTF-8"
    else:
        assert content.decode(guess) == content.decode(encoding)


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=40),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be-mark"]),
    st.booleans(),
)
def test_marked_files_are_read(tmp_path_factory, text, encoding, is_packed):
    content = ("\ufeff" + text).encode("utf-16-be") if encoding == "utf-16-be-mark" else text.encode(encoding)
    path = tmp_path_factory.mktemp("marked") / ("a.txt.gz" if is_packed else "a.txt")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b$B" not in text:
        assert "".join(read_lines(path)) == expected


def test_utf8_with_a_broken_byte_is_not_called_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((TEXTS["French"] * 3).encode() + b"broken \xf0\x9f\x98 here\n")
    message = message_of(path)
    assert "byte 0xf0" in message
    assert "(line 4)" in message
    assert "The rest is UTF-8: correct or remove this byte." in message


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_binary_file_is_named_as_what_it_is(tmp_path, signature, name):
    path = tmp_path / name
    path.write_bytes(signature + bytes(range(256)))
    assert f"is no text: its first bytes say that it is {SIGNATURES[signature]}" in message_of(path)


def test_a_file_that_ends_within_a_character(tmp_path):
    for mark, encoding in MARKS.items():
        path = tmp_path / "a.txt"
        path.write_bytes(mark + b"a")
        if not encoding.startswith("utf-8"):
            assert f"begins as {encoding.upper()} does, but is not valid" in message_of(path)
    path.write_bytes(b"some words\0\x01\x02 more")
    assert "byte 0x00 at offset 10 (line 1). A byte 0x00 is in no text" in message_of(path)
