"""WikiText-2's two protocols against independent implementations, written from shared/parity.md section 3."""

import functools
import hashlib
import http.server
import re
import threading
import zipfile

import numpy as np
import pytest
import tokenizers
from omegaconf import OmegaConf

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.config.options import CONF
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.sampling import batches
from gpt2x.data.sources.registry import open_corpus
from gpt2x.data.sources.wikitext2 import clean_articles, detokenize, reference_passages
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

GPT2 = "gpt2-tokenizer"


def config(**keys):
    return DatasetConfig(name="wikitext2", corpus="wikitext2", **keys)


def rows(split):
    return np.concatenate(
        [
            np.stack([b["input_ids"], b["attention_mask"], b["labels"]])
            for b in batches(split, batch_size=64, seed=0, epoch=0, shuffle=False, drop_last=False)
        ],
        axis=1,
    )


def independent_clean(s, number="1"):
    """The detokenizer as sed-like steps, in the order of the reference."""
    s = s.replace("s '", "s'")
    for sign in "-,.":
        s = s.replace(" @" + sign + "@ ", sign)
    for sign in ":;.":
        s = s.replace(" " + sign + " ", sign + " ")
    s = s.replace(" .", ".")
    for sign in "!?,":
        s = s.replace(" " + sign + " ", sign + " ")
    for left, right in ("()", "[]", "{}", '""', "''"):
        inner = "[^" + re.escape(right) + "]*?"
        s = re.sub(
            re.escape(left) + r"\s*(" + inner + r")\s*" + re.escape(right), lambda m, a=left, b=right: a + m[1] + b, s
        )
    for n in (4, 3, 2):
        s = s.replace(" ".join("=" * n), "=" * n)
    return s.replace(" \u00b0 ", "\u00b0").replace(" N ", f" {number} ").replace(" 's", "'s")


def independent_reference(path, keep_last):
    passages, current = [], []
    for line in path.read_text(encoding="utf-8").split("\n"):
        line = line.strip()
        if not line:
            continue
        if line[0] == "=" and line[-1] == "=":
            passages.append(current)
            current = []
        else:
            current.append(independent_clean(line))
    if keep_last:
        passages.append(current)
    return "\n".join(" ".join(p).strip() for p in passages if p).strip()


@pytest.fixture(scope="module")
def gpt2(shared_data) -> Tokenizer:
    return Tokenizer.load(shared_data / GPT2)


@pytest.fixture(scope="module")
def encode(shared_data):
    """GPT-2's tokenizer straight from the library, without gpt2x: text -> ids."""
    folder = shared_data / GPT2
    tokenizer = tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def reference_ids(shared_data, encode):
    """The validation part under protocol=reference, independently."""
    return encode(independent_reference(shared_data / "wikitext-2" / "wiki.valid.tokens", False))


def blocks_of(shared_data, cache, gpt2, block_len, split, **keys):
    dataset = config(path=str(shared_data / "wikitext-2"), **keys)
    data = prepare(
        dataset, TokenizerConfig(), Blocks(block_len - 1), cache=cache, checkpoint_tokenizer=gpt2, splits=(split,)
    )
    assert list(data.splits()) == [split]
    return data.splits()[split]


@pytest.mark.run
@pytest.mark.parametrize(("block_len", "blocks", "tail"), [(1025, 231, 212), (1024, 231, 443)])
def test_reference_validation_blocks(shared_data, tmp_path, gpt2, reference_ids, block_len, blocks, tail):
    split, ids = blocks_of(shared_data, tmp_path, gpt2, block_len, "val", protocol="reference"), reference_ids
    assert (split.num_blocks, split.dropped_tokens) == (len(ids) // block_len, len(ids) % block_len) == (blocks, tail)
    assert split.num_tokens == blocks * block_len
    assert split.num_words == 217_646
    got, mask, labels = rows(split)
    np.testing.assert_array_equal(got.ravel(), ids[: blocks * block_len])
    np.testing.assert_array_equal(labels, got)
    assert mask.all()


@pytest.mark.run
@pytest.mark.exhaustive
def test_reference_train_blocks(shared_data, tmp_path, gpt2, encode):
    split = blocks_of(shared_data, tmp_path, gpt2, 1025, "train", protocol="reference")
    ids = encode(independent_reference(shared_data / "wikitext-2" / "wiki.train.tokens", False))
    assert (split.num_blocks, split.dropped_tokens) == (len(ids) // 1025, len(ids) % 1025) == (2194, 1000)
    np.testing.assert_array_equal(rows(split)[0].ravel(), ids[: 2194 * 1025])
    assert split.num_words == 2_088_628


@pytest.mark.run
def test_clean_validation_blocks(shared_data, tmp_path, gpt2, encode):
    split = blocks_of(shared_data, tmp_path, gpt2, 1025, "val")
    text = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    articles = re.split(r"(?m)^ \n(?= = [^=\n]+ = \n \n)", text)  # a title stands between blank lines
    articles = [article for article in articles if article.strip()]
    ids = []
    for article in articles:
        lines = [independent_clean(line.strip(), "N") for line in article.split("\n") if line.strip()]
        ids += [*encode("\n".join(lines)), 50256]
    assert (split.num_documents, len(articles)) == (60, 60)
    assert (split.num_tokens, split.dropped_tokens) == (len(ids), 0)
    assert split.num_blocks == -(-(len(ids) - 1) // 1024) == 237
    got, mask, labels = rows(split)
    np.testing.assert_array_equal(labels, got)
    weight = mask[:, 1:].astype(bool)
    np.testing.assert_array_equal(got[:, 1:][weight], ids[1:])  # each token but the first, once, in order
    np.testing.assert_array_equal(got[1:, 0], got[:-1, -1])
    assert weight.sum() == len(ids) - 1
    assert (got[-1][mask[-1] == 0] == 50256).all()


def test_words_as_published(shared_data, tmp_path):
    corpus = open_corpus(config(path=str(shared_data / "wikitext-2")), tmp_path)
    assert [corpus.num_words(split) for split in ("train", "val")] == [2_088_628, 217_646]
    assert sum(piece.ends_document for piece in corpus.pieces("train")) == 600


def test_detokenizer(shared_data):
    line = "The dogs ' bowl , 1 @,@ 000 @-@ odd ( so \" to say \" ) : it 's 3 @.@ 5 \u00b0 C ; N N ! No . [ a ] { b } ."
    assert detokenize(line) == independent_clean(line)
    lines = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8").split("\n")
    assert [detokenize(x.strip()) for x in lines] == [independent_clean(x.strip()) for x in lines]


def test_passages_and_articles():
    lines = [
        " = A = \n",
        " \n",
        " one . \n",
        " = = B = = \n",
        " two \n",
        " three \n",
        " \n",
        " = C = \n",
        " \n",
        " four \n",
    ]
    assert list(reference_passages(iter(lines), False)) == ["one.", "two three"]
    assert list(reference_passages(iter(lines), True)) == ["one.", "two three", "four"]
    assert list(clean_articles(iter(lines))) == ["= A =\none.\n== B ==\ntwo\nthree", "= C =\nfour"]
    assert list(clean_articles(iter([]))) == []


@pytest.fixture
def server(tmp_path):
    """A local web server with a small archive; yields (url, sha256 of the archive, its folder)."""
    folder = tmp_path / "web"
    folder.mkdir()
    archive = folder / "wikitext-2-v1.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split in ("train", "valid", "test"):
            file.writestr(f"wikitext-2/wiki.{split}.tokens", " \n = A = \n \n some text here . \n")
    (folder / "broken.zip").write_bytes(b"no archive")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/wikitext-2-v1.zip"
        yield url, hashlib.sha256(archive.read_bytes()).hexdigest(), folder
        web.shutdown()


def files_below(folder):
    return [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []


def test_download_with_and_without_checksum(server, tmp_path):
    url, sha256, folder = server
    cache = tmp_path / "cache"
    corpus = open_corpus(config(url=url), cache)
    assert any(sha256 in note for note in corpus.notes)
    assert [p.text for p in corpus.pieces("val")] == ["= A =\nsome text here."]
    (folder / "wikitext-2-v1.zip").unlink()
    again = open_corpus(config(url=url, sha256=sha256.upper()), cache)  # from the cache
    assert again.has("train")
    assert not again.notes
    with pytest.raises(UserError, match=f"dataset.sha256=00, but the archive of dataset.url=.* has sha256 {sha256}"):
        open_corpus(config(url=url, sha256="00"), cache)


def test_the_default_archive_is_checked(server, tmp_path):
    shipped = OmegaConf.load(CONF / "dataset" / "wikitext2.yaml")
    with pytest.raises(UserError, match=r"dataset.sha256=92675f1d.*Accept any archive with dataset.sha256=null"):
        open_corpus(config(url=server[0], sha256=shipped.sha256), tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []


def test_failed_downloads_leave_nothing(server, tmp_path):
    url, sha256, _ = server
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=f"dataset.sha256=00.*has sha256 {sha256}"):
        open_corpus(config(url=url, sha256="00"), cache)
    with pytest.raises(UserError, match=r"dataset.url=.*broken.zip is not a zip archive"):
        open_corpus(config(url=url.replace("wikitext-2-v1", "broken")), cache)
    with pytest.raises(UserError, match=r"dataset.url=.*none.zip cannot be downloaded from 127.*dataset.path="):
        open_corpus(config(url=url.replace("wikitext-2-v1", "none")), cache)
    with pytest.raises(UserError, match=r"cannot be downloaded from 127.0.0.1:9: .*refused"):
        open_corpus(config(url="http://127.0.0.1:9/x.zip"), cache)
    assert files_below(cache) == []
    assert [p for p in cache.rglob("*") if p.name.startswith(".")] == []


def test_wrong_places(tmp_path):
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(UserError, match=r"has neither wiki.train.tokens.*it has other.txt"):
        open_corpus(config(path=str(tmp_path)), tmp_path)
    with pytest.raises(UserError, match=r"dataset.path=.*none is not a folder"):
        open_corpus(config(path=str(tmp_path / "none")), tmp_path)
    with pytest.raises(UserError, match=r"dataset.val_path=.*none.tokens does not exist"):
        open_corpus(config(val_path=str(tmp_path / "none.tokens")), tmp_path)
    with pytest.raises(UserError, match=r"dataset.path=null"):
        open_corpus(config(), tmp_path)
    with pytest.raises(
        UserError,
        match=r"dataset.protocol=raw is not defined for dataset.corpus=wikitext2. Choose one of: clean, reference",
    ):
        open_corpus(config(protocol="raw", path=str(tmp_path)), tmp_path)
