import json
import subprocess
import sys
from dataclasses import replace

import pytest

from gpt2x.config import TokenizerConfig
from gpt2x.convert.tokenizer_files import special_ids
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from tests.support.hub import fill_cache, hub_at

TEXT = "It's a test:  two  blanks,\n\n\nnewlines and 1234 “quotes” — über 日本語 🙂\t<|endoftext|> end \n"


@pytest.fixture(scope="module")
def trained():
    return byte_level_bpe.train(iter([TEXT, "the cat sat on the mat " * 20]), 300)


@pytest.mark.run
def test_gpt2_ids(shared_data):
    tokenizer = Tokenizer.load(shared_data / "gpt2-tokenizer")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.eos_token) == (50257, 50256, "<|endoftext|>")
    assert tokenizer.encode("a<|endoftext|>b") == [64, 50256, 65]
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()
    cut = int(len(text) * 0.9)
    assert [len(tokenizer.encode(part)) for part in (text[:cut], text[cut:])] == [301_966, 36_059]
    assert tokenizer.encode_batch([TEXT, "x"]) == [tokenizer.encode(TEXT), tokenizer.encode("x")]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("name", ["shakespeare-a", "lyrics", "horoscope-tarot"])
def test_checkpoint_tokenizers(shared_data, name):
    folder = shared_data / "checkpoints" / name
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (1000, 0)
    assert Tokenizer.load(folder / "tokenizer.json").fingerprint == tokenizer.fingerprint


@pytest.mark.run
def test_save_and_load_keep_ids_and_fingerprint(trained, shared_data, tmp_path):
    for number, tokenizer in enumerate((trained, Tokenizer.load(shared_data / "gpt2-tokenizer"))):
        folder = tmp_path / str(number)
        tokenizer.save(folder)
        again = Tokenizer.load(folder)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(TEXT) == tokenizer.encode(TEXT)
        (folder / "tokenizer.json").unlink()
        assert Tokenizer.load(folder).fingerprint == tokenizer.fingerprint  # vocab.json and merges.txt alone
    assert trained.fingerprint != byte_level_bpe.train(iter([TEXT]), 280).fingerprint


@pytest.mark.parity
def test_transformers_loads_what_is_saved(trained, shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = TEXT + (shared_data / "tinyshakespeare" / "input.txt").read_text()[:100_000]
    sources = (
        trained,
        Tokenizer.load(shared_data / "gpt2-tokenizer"),
        Tokenizer.load(shared_data / "checkpoints/lyrics"),
    )
    for number, tokenizer in enumerate(sources):
        folder = tmp_path / str(number)
        tokenizer.save(folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.encode(text) == tokenizer.encode(text)
        assert (theirs.eos_token_id, len(theirs)) == (tokenizer.eos_id, tokenizer.vocab_size)
        assert theirs.decode(tokenizer.encode(TEXT)) == tokenizer.decode(tokenizer.encode(TEXT))


def test_trained_tokenizer_reaches_every_byte(trained):
    assert trained.eos_id == 0
    assert trained.vocab_size == 300
    rare = "\x00\x7fÿ\U0001d518"
    assert trained.decode(trained.encode(rare)) == rare


def test_the_bytes_of_tokens_are_those_of_their_text(trained, tmp_path):
    """A special token has none; one that was added to be written in texts has its own."""
    special = "<|endoftext|>"
    sizes = trained.token_bytes()
    assert sizes.shape == (trained.vocab_size,)
    assert sizes[trained.encode(TEXT)].sum() == len(TEXT.encode()) - len(special)
    assert sizes[trained.eos_id] == 0
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    added = {**content["added_tokens"][0], "id": trained.vocab_size, "content": "<ü>", "special": False}
    content["added_tokens"].append(added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    grown = Tokenizer.load(tmp_path)
    assert grown.token_bytes()[-1] == len("<ü>".encode()) == 4


def test_configured_training():
    """What `tokenizer.kind=byte_level_bpe` does: the same, by the configuration's keys."""
    config = TokenizerConfig(name="bpe", vocab_size=280, eos_token="<end>")
    tokenizer = byte_level_bpe.TRAIN([TEXT], config)
    assert tokenizer.fingerprint == byte_level_bpe.train([TEXT], 280, "<end>").fingerprint
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=null"):
        byte_level_bpe.TRAIN([TEXT], replace(config, vocab_size=None))
    with pytest.raises(UserError, match=r"tokenizer.settings.x does not exist"):
        byte_level_bpe.TRAIN([TEXT], replace(config, settings={"x": 1}))


def test_eos_as_the_files_name_it(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}}))
    assert Tokenizer.load(tmp_path).eos_token == "!"
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": trained.encode("a")[0]}))
    assert Tokenizer.load(tmp_path).eos_token == "a"
    (tmp_path / "config.json").unlink()
    assert Tokenizer.load(tmp_path, "?").eos_token == "?"
    with pytest.raises(UserError, match=r"'<none>' is not in the tokenizer's vocabulary.*tokenizer\.eos_token"):
        Tokenizer.load(tmp_path, "<none>")


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.path=/no/such/place does not exist.*tokenizer=bpe"):
        Tokenizer.load("/no/such/place")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"has no tokenizer: .*it has notes\.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="vocab_size=200 is too small"):
        byte_level_bpe.train(iter(["x"]), 200)


def test_a_tokenizer_of_the_hub(trained, tmp_path):
    trained.save(tmp_path / "saved")
    fill_cache(tmp_path / "cache", "someone/gpt2", tmp_path / "saved")
    with hub_at("http://127.0.0.1:9", tmp_path / "cache"):
        assert Tokenizer.load("someone/gpt2").fingerprint == trained.fingerprint
        with pytest.raises(UserError, match=r"tokenizer\.path=someone/gpt is no local.* failed \(.*tokenizer=bpe"):
            Tokenizer.load("someone/gpt")


@pytest.mark.launch
def test_readers_do_not_import_mindspore():
    code = "import sys, gpt2x.data.prepare, gpt2x.data.sampling; assert 'mindspore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_special_tokens_keep_their_roles(trained, tmp_path):
    trained.save(tmp_path)
    names = {"bos_token": "a", "eos_token": {"content": "!"}, "pad_token": "b"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "a", "mask_token": "d"}))
    expected = {"bos_token": "a", "eos_token": "!", "pad_token": "b", "mask_token": "d"}
    ids = {role: trained._backend.token_to_id(token) for role, token in expected.items()}
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == expected
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == tuple(
        ids[role] for role in ("bos_token", "eos_token", "pad_token")
    )
    assert special_ids(tmp_path) == ids
    tokenizer.save(tmp_path / "saved")
    assert expected.items() <= Tokenizer.load(tmp_path / "saved").special_tokens.items()


def test_gpt2_class_names_three_tokens_by_itself(trained, tmp_path):
    trained.save(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == dict.fromkeys(("bos_token", "unk_token", "eos_token"), "<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.pad_id) == (tokenizer.eos_id, None)
