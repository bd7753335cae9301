import json

import numpy as np
import pytest

from gpt2x.config import DatasetConfig, EvaluationConfig, TokenizerConfig
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.evaluate.text import TokenStream, num_windows, open_texts, windows


def hugging_face_windows(num_tokens, length, stride):
    """begin, end and trg_len of transformers' loop."""
    found, previous_end = [], 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + length, num_tokens)
        found.append((begin, end, end - previous_end))
        previous_end = end
        if end == num_tokens:
            break
    return found


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 8, 9, 11, 12, 13, 50])
@pytest.mark.parametrize("stride", [1, 3, 4, 8])
@pytest.mark.parametrize("part", [1, 5, 50])
def test_windows_are_those_of_hugging_face(num_tokens, stride, part):
    stream = np.arange(num_tokens, dtype=np.int32)
    parts = np.split(stream, range(part, num_tokens, part))
    found = [(w.ids[0], w.ids[-1] + 1, w.num_new) for w in windows(parts, 8, stride)]
    assert found == hugging_face_windows(num_tokens, 8, stride)
    assert len(found) == num_windows(num_tokens, 8, stride)
    assert sum(num_new for _, _, num_new in found) == num_tokens


@pytest.fixture
def tokenizer(shared_data):
    return Tokenizer.load(shared_data / "gpt2-tokenizer")


def tokens(stream):
    return np.concatenate(list(stream)).tolist()


def test_a_text_file_is_its_own_tokens_and_nothing_else(tokenizer, text_file, tmp_path):
    dataset = DatasetConfig(name="text", corpus="text", val_path=str(text_file))
    stream = TokenStream(dataset, "val", tokenizer, tmp_path)
    text = text_file.read_text(encoding="utf-8")
    assert tokens(stream) == tokenizer.encode(text)
    assert stream.num_tokens == len(tokenizer.encode(text))
    assert stream.words == (len(text.split()), "word")


def test_eos_stands_between_documents(tokenizer, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One more.", "Two")), encoding="utf-8")
    stream = TokenStream(DatasetConfig(name="text", corpus="text", val_path=str(path)), "val", tokenizer, tmp_path)
    assert tokens(stream) == [*tokenizer.encode("One more."), tokenizer.eos_id, *tokenizer.encode("Two")]
    assert stream.words == (3, "word")


@pytest.mark.run
def test_wikitext_has_the_text_of_each_protocol(tokenizer, shared_data, tmp_path):
    path = str(shared_data / "wikitext-2")
    for protocol in ("clean", "reference"):
        dataset = DatasetConfig(name="wikitext2", corpus="wikitext2", path=path, protocol=protocol)
        texts = open_texts(dataset, EvaluationConfig(seq_len=1024), tokenizer, tmp_path)
        assert texts["strided"] is texts["word"]
        assert texts["word"].words == (217_646, "original word")
        assert (texts["reference"].form, texts["word"].form) == ("wikitext2 reference", "wikitext2 clean")
        assert texts["reference"].num_tokens == 231 * 1024 + 443  # parity.md 3, docs/data.md


@pytest.mark.run
def test_reference_blocks_are_those_of_preparation(tokenizer, shared_data, tmp_path):
    from gpt2x.data.sampling import batches

    dataset = DatasetConfig(
        name="wikitext2", corpus="wikitext2", path=str(shared_data / "wikitext-2"), protocol="reference"
    )
    data = prepare(dataset, TokenizerConfig(name="gpt2"), Blocks(1023), splits=("val",),
                   cache=tmp_path, checkpoint_tokenizer=tokenizer)  # fmt: skip
    rows = batches(data.val, batch_size=300, seed=0, epoch=0, shuffle=False, drop_last=False)
    blocks = np.concatenate([row["input_ids"] for row in rows])
    stream = TokenStream(dataset, "val", tokenizer, tmp_path)
    found = [w.ids for w in windows(stream, 1024, 1024)][: len(blocks)]
    assert np.array_equal(np.stack(found), blocks)


def test_records_serve_reference_alone(tokenizer, text_file, tmp_path):
    dataset = DatasetConfig(name="text", corpus="text", val_path=str(text_file))
    data = prepare(dataset, TokenizerConfig(name="gpt2"), Blocks(31), splits=("val",), cache=tmp_path,
                   checkpoint_tokenizer=tokenizer)  # fmt: skip
    records = DatasetConfig(name="text", corpus="text", val_path=str(data.val.files[0]))
    texts = open_texts(records, EvaluationConfig(protocols=["reference"], seq_len=32), tokenizer, tmp_path)
    assert texts["reference"].num_blocks == data.val.num_blocks
    with pytest.raises(UserError, match=r"evaluation\.protocols=\[reference\]"):
        open_texts(records, EvaluationConfig(seq_len=32), tokenizer, tmp_path)


def test_a_split_that_is_not_there(tokenizer, text_file, tmp_path):
    dataset = DatasetConfig(name="text", corpus="text", val_path=str(text_file))
    with pytest.raises(UserError, match=r"evaluation\.split=train.*dataset\.train_path"):
        TokenStream(dataset, "train", tokenizer, tmp_path)
