"""Loaded weights whose tables of tokens grow, and the tokenizers that they may grow for."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.checkpoint.tensors import LazyTensors, Spec
from gpt2x.config import TokenizerConfig
from gpt2x.convert import load_source
from gpt2x.convert.added_rows import with_added_rows
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
from gpt2x.pretrained import source_tokenizer
from tests.support.models import CPU, build, random_ids, tiny_model
from tests.support.tokenizers import grown_tokenizer

NUM_ROWS, NUM_ADDED = 101, 5


def lazy(weights, dtype=np.float32) -> LazyTensors:
    values = {name: np.asarray(weights[name], dtype) for name in weights}

    def read(name, start, shape):
        return values[name][tuple(slice(at, at + size) for at, size in zip(start, shape, strict=True))]

    return LazyTensors({name: Spec(value.shape, value.dtype) for name, value in values.items()}, read)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_old_rows_stay_and_new_ones_are_their_mean_in_every_box(dtype):
    weights = lazy(initial_weights(tiny_model(tie_embeddings=False), 0), dtype)
    found = with_added_rows(weights, NUM_ROWS + NUM_ADDED)
    for name in ("wte.weight", "lm_head.weight"):
        values = found[name]
        assert values.shape == found.shapes[name] == (NUM_ROWS + NUM_ADDED, 32)
        assert values.dtype == dtype
        assert np.array_equal(values[:NUM_ROWS], weights[name])
        mean = weights[name].astype(np.float64).mean(axis=0).astype(dtype)
        assert np.array_equal(values[NUM_ROWS:], np.tile(mean, (NUM_ADDED, 1)))
        for first, stop in ((0, 7), (0, 101), (99, 103), (101, 106), (103, 105), (0, 106)):
            assert np.array_equal(found.read(name, (first, 8), (stop - first, 16)), values[first:stop, 8:24])
    assert np.array_equal(found["wpe.weight"], weights["wpe.weight"])
    assert found.shapes["wpe.weight"] == (32, 32)
    assert with_added_rows(weights, NUM_ROWS) is weights


@pytest.mark.run
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_old_tokens_are_computed_as_before_and_new_ones_stay_improbable(tie):
    model = tiny_model(tie_embeddings=tie)
    ids = Tensor(random_ids(model, (4, 16)))
    before = build(model)
    after = GPT2(tiny_model(tie_embeddings=tie, vocab_size=NUM_ROWS + NUM_ADDED), CPU)
    load_weights(after, with_added_rows(lazy(initial_weights(model, 0)), NUM_ROWS + NUM_ADDED))
    old, new = before(ids, None), after(ids, None)
    assert np.array_equal(old.asnumpy(), new.asnumpy())
    logits, more = before.logits(old).asnumpy(), after.logits(new).asnumpy()
    print(f"largest difference of an old logit {np.abs(logits - more[:, :NUM_ROWS]).max():.1e}")
    assert np.abs(logits - more[:, :NUM_ROWS]).max() <= 1e-6
    shares = np.exp(more - more.max(axis=1, keepdims=True))
    shares = shares[:, NUM_ROWS:].sum(axis=1) / shares.sum(axis=1)
    assert shares.max() <= NUM_ADDED / (NUM_ROWS + NUM_ADDED) + 1e-6


@pytest.mark.run
@pytest.mark.parity
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_equals_transformers_resized_embeddings(tie, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = {"vocab_size": NUM_ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, tie_word_embeddings=tie))
    theirs.save_pretrained(tmp_path)
    mine = with_added_rows(load_source(tmp_path).weights(), NUM_ROWS + NUM_ADDED)
    theirs.resize_token_embeddings(NUM_ROWS + NUM_ADDED, mean_resizing=True)
    tables = {"wte.weight": theirs.transformer.wte.weight}
    if not tie:
        tables["lm_head.weight"] = theirs.lm_head.weight
    for name, table in tables.items():
        # their mean has noise of a variance of 1e-9 times that of the rows, about 0.02 ** 2
        assert np.abs(mine[name] - table.detach().numpy()).max() <= 1e-5, name


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A trained tokenizer, it with added tokens, and another of its size."""
    root = tmp_path_factory.mktemp("tokenizers")
    byte_level_bpe.train(["a cat sat on a mat"] * 9, 270).save(root / "own")
    grown_tokenizer(root / "own", root / "more", ("<|user|>", "<|assistant|>"))
    byte_level_bpe.train(["other words here, quite other ones"] * 9, 280).save(root / "other")
    return root


def chosen(root, path, *, extend: bool, own: str = "own") -> Tokenizer:
    source = SimpleNamespace(path=root / "checkpoint", tokenizer_dir=root / own if own else None)
    return source_tokenizer(source, TokenizerConfig(name="test", path=str(root / path), extend=extend))


def test_a_tokenizer_that_adds_tokens_is_taken_where_it_is_asked_for(directories):
    own = Tokenizer.load(directories / "own")
    found = chosen(directories, "more", extend=True)
    assert found.vocab_size == own.vocab_size + 2
    assert found.encode("a cat<|user|>") == [*own.encode("a cat"), own.vocab_size]
    assert found.extends(own)
    assert not own.extends(found)
    assert chosen(directories, "own", extend=True).fingerprint == own.fingerprint


@pytest.mark.parametrize(
    ("path", "extend", "own", "message"),
    [
        ("more", False, "own", "give tokenizer.extend=true to train with the tokens that it adds"),
        ("other", False, "own", r"is not the tokenizer with which .*\. Drop tokenizer\.path\.$"),
        ("other", True, "own", "tokenizer.extend=true requires the same first 267 ids and end-of-text token"),
        ("own", True, "more", "tokenizer.extend=true requires the same first 269 ids"),
        ("more", True, None, "holds no tokenizer with which tokenizer.path=.* can be compared"),
    ],
    ids=["not asked for", "another", "asked for another", "shrunk", "nothing to compare with"],
)
def test_other_tokenizers_are_refused(directories, path, extend, own, message):
    with pytest.raises(UserError, match=message):
        chosen(directories, path, extend=extend, own=own)


@pytest.mark.parametrize(("token", "cuts"), [("<|user|>", True), ("<|end of turn|>", False)])
def test_a_token_with_a_blank_in_it_is_not_cut(directories, tmp_path, token, cuts):
    found = Tokenizer.load(grown_tokenizer(directories / "own", tmp_path / "grown", (token,)))
    assert found.cuts_at_whitespace == cuts
