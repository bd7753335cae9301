"""The written-out CPU operators: values and gradients against PyTorch-free references, and dropout's statistics."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gpt2x.ops import composed
from gpt2x.runtime.device import set_up_device
from tests.support.gradients import Gradients, draw
from tests.support.models import CPU

pytestmark = pytest.mark.run


@pytest.fixture(scope="module", autouse=True)
def device():
    set_up_device(CPU)


def numeric(function, inputs, index, direction, eps=1e-4):
    """The derivative of sum(function(inputs) * direction) along a random direction of inputs[index], in float64."""
    inputs = [np.asarray(value, np.float64) if np.asarray(value).dtype.kind == "f" else value for value in inputs]
    step = np.random.default_rng(7).standard_normal(inputs[index].shape)
    ends = []
    for sign in (1, -1):
        moved = list(inputs)
        moved[index] = inputs[index] + sign * eps * step
        ends.append((function(*moved) * direction).sum())
    return step, (ends[0] - ends[1]) / (2 * eps)


def check_gradients(cell, reference, inputs, num_floats, rtol=2e-3):
    out = reference(
        *[np.asarray(value, np.float64) if np.asarray(value).dtype.kind == "f" else value for value in inputs]
    )
    direction = draw(*out.shape, seed=3)
    tensors = [Tensor(value) for value in inputs]
    assert np.allclose(cell(*tensors).asnumpy(), out, atol=2e-5)
    gradients = Gradients(cell)(Tensor(direction), *tensors)
    for index in range(num_floats):
        step, expected = numeric(reference, inputs, index, direction)
        assert (gradients[index].asnumpy() * step).sum() == pytest.approx(expected, rel=rtol, abs=1e-3)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def test_layer_norm():
    check_gradients(composed.LayerNorm(16, 1e-5), layer_norm, [draw(3, 5, 16), draw(16, seed=1), draw(16, seed=2)], 3)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("gelu_new", lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("gelu", lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        ("fast_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
    ],
)
def test_activations(name, reference):
    check_gradients(composed.Composed(CPU).activation(name), reference, [3 * draw(4, 33)], 1)


def attention(q, k, v):
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


class NoDropout(nn.Cell):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, q, k, v):
        return self.cell(q, k, v, None)


def test_attention():
    inputs = [draw(2, 3, 8, 4, seed=seed) for seed in range(3)]
    check_gradients(NoDropout(composed.Attention(4, 16)), attention, inputs, 3)


class WithDropout(nn.Cell):
    def __init__(self, cell, keep):
        super().__init__()
        self.cell, self.keep = cell, Tensor(keep)

    def construct(self, q, k, v):
        return self.cell(q, k, v, self.keep)


def test_attention_with_dropped_weights():
    keep = (np.random.default_rng(5).random((2, 3, 8, 8)) > 0.3).astype(np.float32) / 0.7

    def reference(q, k, v):
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) * keep) @ v

    inputs = [draw(2, 3, 8, 4, seed=seed) for seed in range(3)]
    check_gradients(WithDropout(composed.Attention(4, 16), keep), reference, inputs, 3)


def test_cross_entropy():
    labels = np.array([0, 6, 3, 3], np.int32)

    def reference(logits, labels):
        return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]

    check_gradients(composed.CrossEntropy(), reference, [draw(4, 7), labels], 1)


def test_cross_entropy_of_a_very_unlikely_label_is_finite():
    logits = np.array([[0.0, 300.0]], np.float32)
    assert composed.CrossEntropy()(Tensor(logits), Tensor([0], ms.int32)).asnumpy()[0] == pytest.approx(300.0)


class Mask(nn.Cell):
    def __init__(self, rate, site, columns):
        super().__init__()
        self.dropout = composed.Dropout(rate, site, columns)
        self.columns = columns

    def construct(self, key, rows):
        return self.dropout.keep(key, rows, self.columns)


def masks(rate=0.1, site=3, rows=1024, columns=256, keys=(13, 14, 99, -5)):
    mask = Mask(rate, site, columns)
    row = Tensor(np.arange(rows, dtype=np.int32).reshape(-1, 1))
    return np.stack([mask(Tensor(key, ms.int32), row).asnumpy() for key in keys])


def test_dropout_multipliers():
    values = np.unique(masks())
    assert values.tolist() == [0.0, pytest.approx(1 / 0.9)]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_masks_look_like_independent_draws(rate):
    kept = masks(rate) > 0
    z = (kept - (1 - rate)) / math.sqrt(rate * (1 - rate))  # (K, R, C), unit variance if independent

    def score(x):  # standard normal if the entries of x are independent with mean 0
        return abs(math.sqrt(x.size) * x.mean())

    assert score(z) < 4
    assert score(z[:, 1:] * z[:, :-1]) < 4, "neighbouring rows"
    assert score(z[:, :, 1:] * z[:, :, :-1]) < 4, "neighbouring columns"
    assert score(z[1:] * z[:-1]) < 4, "keys"
    assert score(z[:, 1:, 1:] * z[:, :-1, 1:] * z[:, 1:, :-1] * z[:, :-1, :-1]) < 4, "rectangles"
    assert (z.sum(1) / math.sqrt(z.shape[1])).var() == pytest.approx(1, abs=0.25), "columns' shares"
    assert (z.sum(2) / math.sqrt(z.shape[2])).var() == pytest.approx(1, abs=0.15), "rows' shares"
    pairs = z[0, :256] @ z[0, :256].T / math.sqrt(z.shape[2])
    assert pairs[np.triu_indices(256, 1)].var() == pytest.approx(1, abs=0.1), "pairs of rows"


def test_dropout_masks_differ_by_place_and_key_and_not_by_batch():
    first = masks(site=1)
    assert (first != masks(site=2)).mean() > 0.1
    assert (first[0] != first[1]).mean() > 0.1
    assert np.array_equal(first, masks(site=1))
    mask = Mask(0.1, 1, 256)
    part = mask(Tensor(13, ms.int32), Tensor(np.arange(100, 200, dtype=np.int32).reshape(-1, 1))).asnumpy()
    assert np.array_equal(part, first[0, 100:200])


def exact_mask(rate, site, key, rows, columns):
    """The mask of `Dropout.keep` as its docstring says, modulo 2^32 in numbers of 64 bits: bool (R, columns)."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x2C1B3C6D % 2**32
        x = (x ^ (x >> 13)) * 0x297A2D39 % 2**32
        return x ^ (x >> 16)

    hashed = mix((mix((rows % 2**32) ^ (site * 0x9E3779B1 + 0x7F4A7C15) % 2**31) + key) % 2**32)
    x = (
        hashed + mix(np.array([(column * 0x9E3779B97F4A7C15 % 2**64) >> 32 for column in range(1, columns + 1)]))
    ) % 2**32
    products = [int(value) * ((int(value) + 0x2C1B3C6D) % 2**32) for value in x.ravel()]  # beyond 64 bits
    assert max(products) > 2**63
    signed = np.array(products, object) % 2**32
    return np.where(signed < 2**31, signed, signed - 2**32).reshape(x.shape) >= round(rate * 2**32) - 2**31


def test_dropout_masks_in_bits():
    """Known answers, for rows and keys whose sums and products wrap around; the same bits without int32."""
    dropout = composed.Dropout(0.25, 17, 64)
    key, rows = -1234567, np.array([[0], [1], [123456789], [2**31 - 1], [-5]])
    arguments = Tensor(key, ms.int32), Tensor(rows.astype(np.int32)), 64
    bits = dropout.keep_bits(*arguments)
    assert bits.dtype == ms.uint8
    assert [row.tobytes().hex() for row in bits.asnumpy()] == [
        "f3f7fc7e7eefddf5", "ffdf8d4bdd2f2dc8", "773fff7da9fd5a4f", "d3feb7ba3cbf52ee", "73fd9a8f70ee2bdf",
    ]  # fmt: skip
    kept = np.unpackbits(bits.asnumpy(), axis=1, bitorder="little").astype(bool)
    assert np.array_equal(kept, exact_mask(0.25, 17, key, rows, 64))
    assert np.array_equal(kept, dropout.keep(*arguments).asnumpy() > 0)
    assert np.array_equal(
        kept[:, :24], np.unpackbits(dropout.keep_bits(*arguments[:2], 24).asnumpy(), axis=1, bitorder="little")
    )


def test_fp16_attention_and_norm_stay_close():
    q, k, v = (draw(1, 2, 8, 4, seed=seed) for seed in range(3))
    half = [Tensor(value.astype(np.float16)) for value in (q, k, v)]
    out = composed.Attention(4, 16)(*half, None)
    assert out.dtype == ms.float16
    assert np.allclose(out.asnumpy(), attention(q, k, v), atol=5e-3)
    x, ones = draw(4, 16), Tensor(np.ones(16, np.float32))
    normed = composed.LayerNorm(16, 1e-5)(Tensor(x.astype(np.float16)), ones, ops.zeros_like(ones))
    assert np.allclose(normed.asnumpy(), layer_norm(x, 1, 0), atol=5e-3)
