"""Logits, loss and gradients equal transformers' GPT2ForSequenceClassification, padded on the right and on the left."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.convert import load_source
from gpt2x.data.rows.labelled import compact
from gpt2x.generate.class_scorer import ClassScorer, last_tokens
from gpt2x.model import stats
from gpt2x.model.classifier import Classifier, WithFreshHead
from gpt2x.model.gpt2 import initial_weights, load_weights
from gpt2x.model.losses.classification import WeightedClassLoss
from gpt2x.runtime.device import set_up_device
from gpt2x.train.update import Gradients
from tests.support.models import CPU, tiny_model

LENGTHS = (3, 9, 1, 17)
PAD, LABELS = 100, ["a", "b", "c"]
MODEL = tiny_model(labels=LABELS, max_seq_len=40)


def texts(side: str, width: int = 20):
    """ids and mask (4, width) of texts of LENGTHS, padded on one side."""
    random = np.random.default_rng(0)
    ids, mask = np.full((4, width), PAD, np.int32), np.zeros((4, width), np.int32)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place], mask[row, place] = random.integers(0, PAD, length), 1
    return ids, mask


def classifier(weights=None) -> Classifier:
    set_up_device(CPU)
    net = Classifier(MODEL, CPU)
    load_weights(net, weights or initial_weights(MODEL, 0))
    return net


@pytest.mark.parity
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_loss_and_every_gradient(side, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            n_layer=2, n_head=4, n_embd=32, n_positions=40, vocab_size=101, num_labels=3, pad_token_id=PAD,
            initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=PAD, eos_token_id=PAD,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    source = load_source(tmp_path)
    assert source.model.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    net = classifier(source.weights())
    ids, mask = texts(side)
    labels = np.array([0, 2, 1, 2], np.int32)
    positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    found = theirs(
        torch.tensor(ids.astype(np.int64)), attention_mask=torch.tensor(mask), position_ids=positions,
        labels=torch.tensor(labels.astype(np.int64)),
    )  # fmt: skip
    found.loss.backward()

    log_probabilities = ClassScorer(net, 4, 40).score(ids, mask)
    expected = torch.log_softmax(found.logits.detach().double(), -1).numpy()
    assert np.abs(log_probabilities - expected).max() <= 1e-5

    rows, lengths = compact(ids, mask, 40)
    last = last_tokens(lengths, rows.shape[1])
    inputs = np.concatenate([rows, labels[:, None]], axis=1)
    parameters = ms.ParameterTuple(net.trainable_params())
    key, one = Tensor(0, ms.int32), Tensor(1.0, ms.float32)
    step = Gradients(WeightedClassLoss(net), parameters, has_dropout=False)
    value, gradients = step(Tensor(inputs), Tensor(last / np.float32(4)), None, key, key, one)
    assert abs(float(value.asnumpy()) - found.loss.item()) <= 1e-5
    wanted = {name.removeprefix("transformer."): p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(wanted) == {p.name for p in parameters} == set(stats.tensor_shapes(MODEL))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert np.abs(gradient.asnumpy() - wanted[parameter.name]).max() <= 1e-4, parameter.name


@pytest.mark.run
def test_padding_changes_nothing():
    scorer = ClassScorer(classifier(), 4, 40)
    right, left = scorer.score(*texts("right")), scorer.score(*texts("left"))
    assert np.array_equal(right, left)
    alone = [
        scorer.score(ids[None, :n], mask[None, :n])[0] for ids, mask, n in zip(*texts("right"), LENGTHS, strict=True)
    ]
    assert np.abs(right - alone).max() <= 1e-6
    wide = scorer.score(*texts("left", width=60))
    assert np.abs(right - wide).max() <= 1e-6
    assert np.allclose(np.exp(right).sum(axis=1), 1)


def test_rows_are_cut_to_the_least_power_of_two():
    ids, mask = texts("left", width=200)
    rows, lengths = compact(ids, mask, 128)
    assert rows.shape == (4, 32)
    assert lengths.tolist() == list(LENGTHS)
    assert [row[:n].tolist() for row, n in zip(rows, LENGTHS, strict=True)] == [
        row[m > 0].tolist() for row, m in zip(ids, mask, strict=True)
    ]
    assert not rows[np.arange(32) >= lengths[:, None]].any()
    assert compact(ids, mask, 10)[0].shape == (4, 10)
    assert compact(ids, mask, 10)[1].tolist() == [3, 9, 1, 10]
    long = np.ones((1, 33), np.int32)
    assert compact(long, long, 1024)[0].shape == (1, 64)
    assert compact(long, long, 50)[0].shape == (1, 50)


def test_a_fresh_head_on_trained_weights():
    language_model = tiny_model(max_seq_len=40)
    weights = initial_weights(language_model, 3)
    net = classifier()
    filled = WithFreshHead(weights, MODEL, seed=5)
    for name, shape in stats.tensor_shapes(MODEL).items():
        value = filled.read(name, (0,) * len(shape), shape)
        assert np.array_equal(value, (initial_weights(MODEL, 5) if name == "score.weight" else weights)[name]), name
    assert {p.name: tuple(p.shape) for p in net.get_parameters()} == stats.tensor_shapes(MODEL)


def test_an_untied_model_has_no_head_for_tokens():
    names = stats.tensor_shapes(tiny_model(labels=LABELS, tie_embeddings=False))
    assert "lm_head.weight" not in names
    assert names["score.weight"] == (3, 32)
