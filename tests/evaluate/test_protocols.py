import math

import numpy as np
import pytest

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.evaluate.protocols import reference, strided, word
from gpt2x.evaluate.scoring import GreedyScorer, Scorer
from gpt2x.evaluate.text import TokenStream
from gpt2x.tracking.units import perplexity


@pytest.fixture(scope="module")
def stream(shakespeare, text_file, tmp_path_factory):
    dataset = DatasetConfig(name="text", corpus="text", val_path=str(text_file))
    return TokenStream(dataset, "val", shakespeare.tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def ids(stream):
    return np.concatenate(list(stream))


@pytest.fixture(scope="module")
def scorer(shakespeare):
    return Scorer(shakespeare.net, 8)


class CountedNll:
    """Stands for a scorer: the nll of a token is its id, so that sums can be done by hand."""

    batch_size = 3

    def score(self, ids):
        return ids[:, 1:].astype(np.float64)


class Numbers:
    """Stands for a stream: the tokens 1..n."""

    words = (4, "word")

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens

    def __iter__(self):
        yield np.arange(1, self.num_tokens + 1, dtype=np.int32)


def test_reference_is_the_mean_over_batches():
    result = reference(CountedNll(), Numbers(18), 4)  # blocks 1-4, 5-8, 9-12 | 13-16, tail 17 18
    first, second = np.mean([2, 3, 4, 6, 7, 8, 10, 11, 12]), np.mean([14, 15, 16])
    assert result.loss == pytest.approx((first + second) / 2)
    assert (result.unit, result.num_units) == ("batch", 2)
    assert result.token_loss == pytest.approx((9 * first + 3 * second) / 12)
    assert result.token_ppl == pytest.approx(math.exp(result.token_loss))
    assert (result.num_tokens, result.num_windows, result.dropped_tokens) == (12, 4, 2)
    assert result.metrics.keys() == {"loss", "ppl"}, "the bytes are not known"


def test_strided_weighs_windows_as_hugging_face_does():
    result = strided(CountedNll(), Numbers(9), 4, 2)  # new: 1-4 | 5 6 | 7 8 | 9
    assert result.loss == pytest.approx((3 * 3.0 + 1 * 5.5 + 1 * 7.5 + 0 * 9.0) / 5)
    assert (result.num_tokens, result.num_windows, result.total_nll) == (8, 4, 44.0)


class Rounding(CountedNll):
    """Gives tokens losses whose sums depend on the order in which they are added."""

    def __init__(self, batch_size):
        self.batch_size = batch_size

    def score(self, ids):
        return np.sin(ids[:, 1:].astype(np.float64)) ** 2 * 10.0 ** (ids[:, 1:] % 17)


def test_no_batch_size_changes_a_digit_but_of_the_mean_over_batches():
    for protocol in (
        lambda scorer: strided(scorer, Numbers(2000), 24, 5),
        lambda scorer: word(scorer, Numbers(2000), 24, 7, prefix_id=0),
    ):
        assert len({(result.loss, result.total_nll) for result in map(protocol, map(Rounding, (1, 2, 3, 7, 100)))}) == 1
    results = [reference(Rounding(size), Numbers(2000), 24) for size in (1, 2, 3, 7, 100)]
    assert len({result.token_loss for result in results}) == 1
    assert len({result.loss for result in results}) > 1


def test_bits_per_byte_are_those_of_the_scored_tokens():
    sizes = np.arange(100) % 3
    result = word(CountedNll(), Numbers(20), 4, 2, prefix_id=0, token_bytes=sizes)
    assert result.num_bytes == sizes[1:21].sum()
    assert result.bits_per_byte == pytest.approx(210 / math.log(2) / result.num_bytes)
    assert result.metrics["bits_per_byte"] == result.bits_per_byte
    nothing = word(CountedNll(), Numbers(20), 4, 2, prefix_id=0, token_bytes=np.zeros(100, int))
    assert nothing.bits_per_byte is None


def test_the_bytes_of_a_text_are_those_of_its_file(shakespeare, stream, text_file):
    """`word` scores every token of it."""
    result = word(CountedNll(), stream, 64, 32, shakespeare.tokenizer.eos_id,
                  token_bytes=shakespeare.tokenizer.token_bytes())  # fmt: skip
    assert result.num_bytes == text_file.stat().st_size


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 9, 20])
@pytest.mark.parametrize("stride", [1, 3, 4])
def test_word_scores_every_token_once(num_tokens, stride):
    result = word(CountedNll(), Numbers(num_tokens), 4, stride, prefix_id=0)
    assert result.num_tokens == num_tokens
    assert result.total_nll == num_tokens * (num_tokens + 1) / 2
    assert result.loss == pytest.approx(result.total_nll / 4)
    assert result.stride == min(stride, 3)


def test_padding_rows_and_batch_size_change_nothing(shakespeare, scorer, ids):
    rows = ids[: 5 * 64].reshape(5, 64)
    five = scorer.score(rows)
    assert five.shape == (5, 63)
    assert np.allclose(Scorer(shakespeare.net, 5).score(rows), five, atol=2e-6)
    full = scorer.score(np.concatenate([rows, ids[-3 * 64 :].reshape(3, 64)]))
    assert np.array_equal(full[:5], five)


def test_right_padding_changes_nothing(scorer, ids):
    row = np.zeros((1, 64), np.int32)
    row[0, :20] = ids[:20]
    assert np.allclose(scorer.score(row)[0, :19], scorer.score(ids[None, :64])[0, :19], atol=2e-6)


def test_perplexity_of_a_diverged_model():
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1.0


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(torch, shakespeare_dir):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(shakespeare_dir).eval()


def hugging_face_loop(torch, model, ids, max_length, stride):
    """The loop of transformers' documentation, "Perplexity of fixed-length models" (v4.57): loss and n_tokens."""
    ids = torch.tensor(ids, dtype=torch.long)[None]
    nll_sum, num_counted, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        targets = ids[:, begin:end].clone()
        targets[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            mean = model(ids[:, begin:end], labels=targets).loss.item()
        weight = int((targets != -100).sum()) - 1
        nll_sum, num_counted = nll_sum + mean * weight if weight else nll_sum, num_counted + weight
        previous_end = end
        if end == ids.shape[1]:
            break
    return nll_sum / num_counted


@pytest.mark.parity
@pytest.mark.parametrize(("seq_len", "stride"), [(64, 32), (64, 64), (64, 50)])
def test_strided_equals_transformers_on_trained_weights(torch, model, scorer, stream, ids, seq_len, stride):
    result = strided(scorer, stream, seq_len, stride)
    assert result.loss == pytest.approx(hugging_face_loop(torch, model, ids, seq_len, stride), abs=1e-5)
    assert result.ppl == pytest.approx(math.exp(result.loss))


@pytest.mark.parity
def test_strided_equals_transformers_on_random_weights(torch, hardware, shakespeare_dir, stream, ids, tmp_path):
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2x.pretrained import load_pretrained

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=1000, n_positions=48, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    shutil.copy(shakespeare_dir / "tokenizer.json", tmp_path)
    net = load_pretrained(str(tmp_path), hardware, TokenizerConfig(name="checkpoint")).net
    result = strided(Scorer(net, 4), stream, 48, 24)
    assert result.loss == pytest.approx(hugging_face_loop(torch, model, ids, 48, 24), abs=1e-4)


@pytest.mark.parity
def test_reference_equals_transformers(torch, model, scorer, stream, ids):
    num_blocks = len(ids) // 64
    blocks = torch.tensor(ids[: num_blocks * 64].reshape(-1, 64), dtype=torch.long)
    with torch.no_grad():
        means = [model(part, labels=part).loss.item() for part in blocks.split(8)]
    result = reference(scorer, stream, 64)
    assert result.loss == pytest.approx(np.mean(means), abs=1e-5)
    assert (result.num_windows, result.num_tokens) == (num_blocks, num_blocks * 63)


@pytest.mark.parity
def test_word_equals_transformers(torch, model, shakespeare, scorer, stream, ids):
    """A text that fits one window: the sum of every token's nll behind an EOS, over the words."""

    class Short:
        num_tokens, words = 63, (30, "word")

        def __iter__(self):
            yield ids[:63]

    row = torch.tensor([[shakespeare.tokenizer.eos_id, *ids[:63].tolist()]], dtype=torch.long)
    with torch.no_grad():
        total = model(row, labels=row).loss.item() * 63
    result = word(scorer, Short(), 64, 32, shakespeare.tokenizer.eos_id)
    assert result.total_nll == pytest.approx(total, abs=1e-3)
    assert result.loss == pytest.approx(total / 30, abs=1e-4)


@pytest.mark.parametrize("is_exact", [True, False], ids=["cpu", "other device"])
def test_greedy_choices(shakespeare, scorer, ids, is_exact):
    """The likeliest tokens, and the losses of a plain scorer; also by the graph that other devices run."""
    greedy = GreedyScorer(shakespeare.net, 8)
    greedy.is_exact = is_exact
    rows = ids[: 3 * 33].reshape(3, 33).astype(np.int32)
    nll, is_likeliest = greedy.score_greedy(rows)
    np.testing.assert_allclose(nll, scorer.score(rows), rtol=0, atol=1e-5)
    alternatives = [scorer.score(np.tile(rows[:1, :9], (8, 1)))[0, -1]]
    for start in range(0, shakespeare.model.vocab_size, 8):  # every token in the last place
        tried = np.tile(rows[:1, :9], (8, 1))
        tried[:, -1] = range(start, start + 8)
        alternatives += scorer.score(tried)[:, -1].tolist()
    assert is_likeliest[0, 7] == (alternatives[0] == min(alternatives))
    assert 0 < is_likeliest.sum() < is_likeliest.size
