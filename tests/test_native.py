"""Kernels of our own against the operators written out: values, gradients, masks, updates, decoding."""

import itertools
import subprocess
import sys
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gpt2x import native as library
from gpt2x.config import OptimizerConfig
from gpt2x.model.losses.language_modeling import TokenLosses, WeightedLoss
from gpt2x.ops import backend_of, composed, native
from gpt2x.optim.optimizers.adamw import AdamW
from gpt2x.runtime.device import set_up_device
from gpt2x.train.step import StepInputs, TrainStep
from tests.support.gradients import Gradients, draw
from tests.support.models import CPU, build, random_ids, tiny_model

pytestmark = pytest.mark.run
PLAIN = replace(CPU, native_kernels=False)


@pytest.fixture(autouse=True)
def device():
    set_up_device(CPU)
    assert isinstance(backend_of(CPU), native.Native), "the package was installed without its kernels"


def check_same(cell, other, inputs, num_floats, atol=1e-5):
    """Values and gradients of two cells, whose first `num_floats` inputs have gradients."""
    tensors = [Tensor(value) for value in inputs]
    value, expected = cell(*tensors).asnumpy(), other(*tensors).asnumpy()
    assert np.allclose(value, expected, atol=atol, rtol=1e-5)
    direction = Tensor(draw(*value.shape, seed=9) if value.shape else np.float32(0.7))
    found, wanted = (Gradients(each)(direction, *tensors)[:num_floats] for each in (cell, other))
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.allclose(mine.asnumpy(), theirs.asnumpy(), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5), (37, 20, 60), (130, 96, 33)])
def test_linear(shape, has_bias):
    rows, wide, out = shape
    inputs = [draw(rows, wide), draw(wide, out, seed=1), draw(out, seed=2)][: 3 if has_bias else 2]
    check_same(native.Linear(), composed.Linear(), inputs, len(inputs))


@pytest.mark.parametrize("shape", [(2, 3, 16), (1, 1, 5), (3, 41, 200)])
def test_layer_norm(shape):
    inputs = [3 + draw(*shape), draw(shape[-1], seed=1), draw(shape[-1], seed=2)]
    check_same(native.LayerNorm(shape[-1], 1e-5), composed.LayerNorm(shape[-1], 1e-5), inputs, 3)


@pytest.mark.parametrize(("name", "other"), [("gelu_new", composed.GeluNew), ("fast_gelu", composed.FastGelu)])
def test_activation(name, other):
    x = np.concatenate([6 * draw(7, 33), np.array([[-1e4, -90, -20, 0, 20, 90, 1e4] + [0.5] * 26], np.float32)])
    check_same(native.Activation(name), other(), [x], 1)


KEY, ROWS = Tensor(12345, ms.int32), Tensor(np.arange(100, 182, dtype=np.int32).reshape(-1, 1))


class Dropped(nn.Cell):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def construct(self, x):
        return self.dropout(x, KEY, ROWS)


@pytest.mark.parametrize("first", [0, 16])
def test_dropout_has_the_same_mask_to_the_bit(first):
    """Of columns from `first` on, which are those of the whole mask."""
    cell, other = (Dropped(module.Dropout(0.3, 5, 48 - first, first)) for module in (native, composed))
    x = draw(2, 41, 48)
    share = Tensor(x[..., first:])
    assert np.array_equal(cell(share).asnumpy(), other(share).asnumpy())
    assert np.array_equal(cell(share).asnumpy(), Dropped(native.Dropout(0.3, 5, 48))(Tensor(x)).asnumpy()[..., first:])
    check_same(cell, other, [x[..., first:]], 1)


class Attending(nn.Cell):
    def __init__(self, attention, has_dropout, starts):
        super().__init__()
        self.attention, self.randomness = attention, (KEY, ROWS) if has_dropout else None
        self.starts = None if starts is None else Tensor(starts)

    def construct(self, qkv):
        segments = None if self.starts is None else self.attention.segments(self.starts)
        return self.attention(qkv, self.randomness, segments)


def attention_cases():
    """All four of the odd width; of the others both or neither, and one alone by hand."""
    for head_dim, has_dropout, has_starts in itertools.product([5, 16, 64, 80], [False, True], [False, True]):
        by_hand = head_dim != 5 and has_dropout != has_starts
        yield pytest.param(head_dim, has_dropout, has_starts, marks=[pytest.mark.exhaustive] if by_hand else [])


@pytest.mark.parametrize(("head_dim", "has_dropout", "has_starts"), list(attention_cases()))
def test_attention(head_dim, has_dropout, has_starts):
    """41 tokens, more than a block of queries; heads of a share (first 2 of 7) whose masks are one device's."""
    starts = None
    if has_starts:
        starts = np.zeros((2, 41), np.int32)
        starts[0, 9:], starts[0, 30:], starts[1, 1:] = 9, 30, 1
    cells = []
    for module in (native, composed):
        dropout = module.Dropout(0.2, 4, 64) if has_dropout else None
        extra = () if module is native else (composed.Attention(head_dim, 64),)
        cells.append(Attending(module.HeadAttention(*extra, 3, head_dim, dropout, 2, 7), has_dropout, starts))
    check_same(*cells, [2 * draw(2, 41, 9 * head_dim)], 1)


def test_attention_of_many_tokens_is_split_over_queries():
    cells = [
        native.HeadAttention(1, 8, None, 0, 1),
        composed.HeadAttention(composed.Attention(8, 300), 1, 8, None, 0, 1),
    ]
    check_same(*[Attending(cell, False, None) for cell in cells], [draw(1, 300, 24)], 1)


class Loss(nn.Cell):
    def __init__(self, head, is_trained, labels):
        super().__init__()
        self.head, self.is_trained, self.labels = head, is_trained, Tensor(labels)

    def construct(self, hidden, table, weights):
        return self.head(hidden, table, self.labels, weights, self.is_trained)


class PlainLoss(nn.Cell):
    def __init__(self, labels, vocab_size):
        super().__init__()
        self.labels, self.size, self.cross_entropy = Tensor(labels), vocab_size, composed.CrossEntropy()

    def construct(self, hidden, table, weights):
        logits = ms.ops.matmul(hidden, table[: self.size].T)
        return (self.cross_entropy(logits, self.labels) * weights).sum()


@pytest.mark.parametrize("num_rows", [1, 45, 700])
def test_head_loss(num_rows):
    """A table with three rows of padding; 700 rows of 48,003 columns take two shares."""
    vocab_size = 48_000 if num_rows == 700 else 101
    labels = np.random.default_rng(3).integers(0, vocab_size, num_rows).astype(np.int32)
    weights = np.abs(draw(num_rows, seed=2)) / num_rows
    inputs = [draw(num_rows, 8), draw(vocab_size + 3, 8, seed=1), weights]
    check_same(Loss(native.HeadLoss(vocab_size), True, labels), PlainLoss(labels, vocab_size), inputs, 3)
    tensors = [Tensor(value) for value in inputs]
    frozen = Gradients(Loss(native.HeadLoss(vocab_size), False, labels))(Tensor(1.0, ms.float32), *tensors)
    whole = Gradients(Loss(native.HeadLoss(vocab_size), True, labels))(Tensor(1.0, ms.float32), *tensors)
    assert np.array_equal(frozen[0].asnumpy(), whole[0].asnumpy())
    assert not frozen[1].asnumpy().any()


def updates(hardware, recompute="none", steps=4):
    """Losses, norms and final parameters of some updates; the third one's gradients are not finite."""
    model = tiny_model(num_heads=4, hidden_size=40, dropout=0.1, max_seq_len=64)
    net = build(model, hardware=hardware, recompute=recompute)
    parameters = net.trainable_params()
    optimizer = AdamW(OptimizerConfig(name="adamw", learning_rate=1e-3), parameters, net.backend)
    step = TrainStep(WeightedLoss(net), parameters, optimizer, 2, 1.0, has_dropout=True)
    weights, found = np.full((2, 2, 50), 1 / 200, np.float32), []
    for index in range(steps):
        scale = Tensor(np.float32(np.inf) if index == 2 else 1.0, ms.float32)
        ids = random_ids(model, (2, 2, 51), seed=index)
        key, scalars = Tensor(index, ms.int32), optimizer.scalars(1e-3, index + 1)
        found.append(step(StepInputs(ids, weights, key, scale, scalars)))
    return found, {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


@pytest.fixture(scope="module")
def native_updates():
    return updates(CPU)


@pytest.fixture(scope="module")
def composed_updates():
    return updates(PLAIN)


@pytest.mark.parametrize("recompute", ["none", "attention", "block"])
def test_updates(recompute, native_updates, composed_updates):
    found, values = native_updates if recompute == "none" else updates(CPU, recompute)
    expected, others = composed_updates
    assert [update.is_made for update in found] == [True, True, False, True] == [update.is_made for update in expected]
    for mine, theirs in zip(found, expected, strict=True):
        if mine.is_made:
            assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
            assert mine.norm == pytest.approx(theirs.norm, rel=1e-5)
    for name, value in values.items():
        assert np.allclose(value, others[name], atol=1e-4), name


def test_what_is_missing_is_said_once_and_changes_nothing(monkeypatch, capsys):
    def missing():
        raise library.MissingKernelsError("this processor has no AVX2")

    monkeypatch.setattr(library, "library", missing)
    set_up_device(CPU)
    expected = (
        "warning: gpt2x's C++ kernels are not available (this processor has no AVX2); training will be slower. "
        "Set hardware.native_kernels=false to silence this warning."
    )
    assert expected in " ".join("".join(capsys.readouterr()).split())
    backend = backend_of(CPU)
    assert type(backend) is composed.Composed
    assert isinstance(backend.linear(), composed.Linear)


def test_threads_are_the_cores_or_what_the_environment_allows(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for value, expected in {"": 4, "3": 3, "9": 4, "0": 4, "x": 4}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert library.num_threads() == expected


@pytest.mark.launch
def test_the_variant_for_processors_without_avx512_computes_the_same(native_updates):
    code = (
        "from gpt2x import native; native.VARIANTS.pop('avx512')\n"
        "import numpy as np; from tests import test_native as t\n"
        "found, values = t.updates(t.CPU); assert native.library().variant == 'avx2'\n"
        "print(*(f'{u.loss:.9f}' for u in found if u.is_made))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    losses = [float(value) for value in result.stdout.split()]
    expected = [update.loss for update in native_updates[0] if update.is_made]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_two_backends_work_in_one_process_and_give_their_own_results():
    """Nets that are built and run in turn; the device is set up for either before the other one runs."""
    model = tiny_model(num_layers=1, hidden_size=40, max_seq_len=64)
    ids = Tensor(random_ids(model, (2, 33)))
    nets = {hardware.native_kernels: build(model, hardware=hardware) for hardware in (CPU, PLAIN)}
    assert type(nets[True].backend) is native.Native
    assert type(nets[False].backend) is composed.Composed
    assert nets[True].head_loss is not None
    assert nets[False].head_loss is None
    first = {key: TokenLosses(net)(ids, None).asnumpy() for key, net in nets.items()}
    set_up_device(CPU)
    again = {key: TokenLosses(nets[key])(ids, None).asnumpy() for key in (False, True)}
    for key, losses in first.items():
        assert np.array_equal(losses, again[key])
    assert np.allclose(first[True], first[False], atol=1e-5)
    assert not np.array_equal(first[True], first[False]), "the two backends round differently"


def test_in_fp16_only_the_update_is_native():
    backend = backend_of(replace(CPU, precision="fp16"))
    assert isinstance(backend.linear(), composed.Linear)
    assert isinstance(backend.adamw(0.9, 0.95), native.AdamWUpdate)
