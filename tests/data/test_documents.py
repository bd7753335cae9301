import random
import re

import pytest

from gpt2x.data.reading.documents import Piece, SeededSplit, cut_position, document, pieces_of
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError


def documents_of(pieces):
    texts, part = [], ""
    for piece in pieces:
        part += piece.text
        if piece.ends_document:
            texts.append(part)
            part = ""
    return texts + [part] * bool(part)


def split_of(texts, fraction=0.25, seed=0):
    return SeededSplit(lambda: (p for t in texts for p in document(t)), fraction, seed, "dataset.path=x")


def test_cut_text_encodes_as_the_whole(shared_data):
    tokenizer = Tokenizer.load(shared_data / "gpt2-tokenizer")
    assert tokenizer.cuts_at_whitespace
    text = (shared_data / "wikitext-2" / "wiki.valid.raw").read_text()[:60_000]
    text += "a  b\n\n\n  c\t \n d\u00a0 e\u3000f  \n" * 50 + "it 's  \n"
    rng = random.Random(0)
    edges = sorted(rng.sample(range(len(text)), 400))
    chunks = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
    pieces = list(pieces_of(chunks))
    assert len(pieces) > 200
    assert "".join(p.text for p in pieces) == text
    assert [i for p in pieces for i in tokenizer.encode(p.text)] == tokenizer.encode(text)
    assert [p.ends_document for p in pieces].count(True) == 1
    assert pieces[-1].ends_document


def test_cut_position():
    assert cut_position("ab cd") == 2
    assert cut_position("ab  ") == 2  # never inside a run of blanks
    assert cut_position("abcd") == 0
    assert cut_position(" ab") == 0
    assert list(pieces_of(["  ", "\n"])) == []
    assert list(document(" \n")) == []


def test_documents_are_divided_by_seed():
    texts = [f"text {i}" for i in range(100)]
    parts = {seed: [documents_of(split_of(texts, 0.1, seed).pieces(s)) for s in ("train", "val")] for seed in (0, 1)}
    for train, val in parts.values():
        assert len(val) == 10
        assert sorted(train + val) == sorted(texts)
    assert parts[0] != parts[1]
    assert documents_of(split_of(texts, 0.1, 0).pieces("val")) == parts[0][1]
    drawn = [t for seed in range(200) for t in documents_of(split_of(texts[:10], 0.1, seed).pieces("val"))]
    assert {drawn.count(t) for t in texts[:10]} <= set(range(8, 36))  # 20 each on average


def test_a_long_document_stays_whole():
    def read():
        for number in range(10):
            yield Piece(f"{number} first", False)
            yield Piece(" second", True)

    split = SeededSplit(read, 0.3, 0, "x")
    train, val = (documents_of(split.pieces(s)) for s in ("train", "val"))
    assert len(val) == 3
    assert sorted(train + val) == [f"{n} first second" for n in range(10)]


def test_one_document_is_cut_at_a_line():
    text = "".join(f"line {i}\n" for i in range(100))
    split = split_of([text], 0.1)
    (train,), (val,) = (documents_of(split.pieces(s)) for s in ("train", "val"))
    assert train + val == text
    assert re.fullmatch(r"(line \d+\n)+", val)
    assert 0.07 < len(val) / len(text) <= 0.1
    assert "too few" in split.note
    assert "last 10%" in split.note


def test_three_documents_are_cut_in_the_last():
    texts = ["a\n" * 50, "b\n" * 50, "c\n" * 50]
    split = split_of(texts, 0.1)
    train, val = (documents_of(split.pieces(s)) for s in ("train", "val"))
    assert train == [*texts[:2], "c\n" * 35]
    assert val == ["c\n" * 15]


def test_no_text_and_wrong_fraction():
    with pytest.raises(UserError, match=r"dataset.path=x has no text"):
        list(split_of([" "]).pieces("train"))
    with pytest.raises(UserError, match=r"dataset.val_fraction=1.5 must lie between"):
        split_of(["a"], 1.5)
