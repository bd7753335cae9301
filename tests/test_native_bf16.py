"""hardware.precision=bf16 on the CPU: products of rounded operands, summed in fp32; all else as in fp32."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gpt2x import checkpoint
from gpt2x import native as library
from gpt2x.errors import UserError
from gpt2x.generate.fused import is_fused
from gpt2x.ops import backend_of, native
from gpt2x.runtime.device import measure_peak_tflops, set_up_device
from tests.support.gradients import Gradients, draw
from tests.support.in_process import run
from tests.support.models import CPU, build, tiny_model
from tests.support.small_runs import curve, small

pytestmark = pytest.mark.run
BF16 = replace(CPU, precision="bf16")
TRAINED = ("hardware.precision=bf16", "trainer.max_steps=6", "trainer.checkpoint_every_steps=3", "model.dropout=0.1")


@pytest.fixture
def fast_bf16():
    set_up_device(CPU)
    if not library.has_fast_bf16():
        pytest.skip("this processor has neither AMX nor AVX512-BF16")


def rounded(x):
    """The nearest bf16 as fp32, ties to even; by fp64, which adds and divides these numbers exactly."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)


def check_close(value, expected):
    assert np.abs(value - expected).max() <= 2e-6 * np.abs(expected).max() * np.sqrt(expected.size)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5), (37, 20, 60), (130, 96, 33)])
@pytest.mark.usefixtures("fast_bf16")
def test_linear(shape, has_bias):
    rows, wide, out = shape
    x, weight, bias, dy = draw(rows, wide), draw(wide, out, seed=1), draw(out, seed=2), draw(rows, out, seed=9)
    inputs = [Tensor(value) for value in (x, weight, bias)[: 3 if has_bias else 2]]
    cell = native.Linear("bf16")
    check_close(cell(*inputs).asnumpy(), rounded(x) @ rounded(weight) + bias * has_bias)
    gradients = [each.asnumpy() for each in Gradients(cell)(Tensor(dy), *inputs)]
    check_close(gradients[0], rounded(dy) @ rounded(weight).T)
    check_close(gradients[1], rounded(x).T @ rounded(dy))
    if has_bias:
        check_close(gradients[2], dy.sum(0))


@pytest.mark.usefixtures("fast_bf16")
def test_ties_go_to_even_and_what_is_not_finite_stays():
    ties = np.array([[1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 1.5]], np.float32)
    out = native.Linear("bf16")(Tensor(ties), Tensor(np.eye(4, dtype=np.float32))).asnumpy()
    assert out.tolist() == [[1, 1 + 4 / 256, -1, 1.5]]
    payload = np.array([0x7F800001], np.uint32).view(np.float32)  # a NaN whose upper half is that of infinity
    x = np.array([[payload[0]], [np.inf], [2]], np.float32)
    out = native.Linear("bf16")(Tensor(x), Tensor(np.ones((1, 1), np.float32))).asnumpy()[:, 0]
    assert np.isnan(out[0])
    assert out[1:].tolist() == [np.inf, 2]


class Head(nn.Cell):
    """The head's loss with its other operands fixed."""

    def __init__(self, vocab_size, labels, weights, is_trained):
        super().__init__()
        self.loss, self.is_trained = native.HeadLoss(vocab_size, "bf16"), is_trained
        self.labels, self.weights = Tensor(labels), Tensor(weights)

    def construct(self, hidden, table):
        return self.loss(hidden, table, self.labels, self.weights, self.is_trained)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize(("num_rows", "vocab_size", "padded"), [(7, 50, 51), (130, 300000, 300008)])
@pytest.mark.usefixtures("fast_bf16")
def test_head_loss(num_rows, vocab_size, padded, is_trained):
    """The larger table takes its rows in two parts."""
    hidden, table = draw(num_rows, 24), draw(padded, 24, seed=1)
    labels = np.random.default_rng(2).integers(0, vocab_size, num_rows).astype(np.int32)
    weights = np.abs(draw(num_rows, seed=3))
    logits = (rounded(hidden) @ rounded(table).T)[:, :vocab_size].astype(np.float64)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    nll = -np.log(share[np.arange(num_rows), labels])
    gradient = np.zeros((num_rows, padded), np.float32)
    gradient[:, :vocab_size] = share * weights[:, None]
    gradient[np.arange(num_rows), labels] -= weights

    cell = Head(vocab_size, labels, weights, is_trained)
    assert cell(Tensor(hidden), Tensor(table)).asnumpy() == pytest.approx((nll * weights).sum(), rel=1e-5)
    found = Gradients(cell)(Tensor(np.float32(1)), Tensor(hidden), Tensor(table))
    # a last bit of fp32 decides now and then which bf16 is nearer
    for mine, expected in zip(
        found, (rounded(gradient) @ rounded(table), rounded(gradient).T @ rounded(hidden) * is_trained), strict=True
    ):
        assert np.abs(mine.asnumpy() - expected).max() <= 1e-3 * np.abs(expected).max()
    losses = cell.loss.losses(Tensor(hidden), Tensor(table), Tensor(labels)).asnumpy()
    assert np.allclose(losses, nll, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("fast_bf16")
def test_tensors_are_fp32_and_fused_kernels_decode():
    net = build(tiny_model(), hardware=BF16)
    assert net.dtype == ms.float32
    assert is_fused(net)
    assert measure_peak_tflops("bf16", 0.01, (256,)) > 0


@pytest.mark.usefixtures("fast_bf16")
def test_training_follows_fp32_and_continues_bit_for_bit(tmp_path):
    whole, exact, part = (tmp_path / name for name in ("whole", "exact", "part"))
    for folder in (whole, exact, part):
        folder.mkdir()
    first = run("train", *small(whole), *TRAINED).run_dir
    fp32 = run("train", *small(exact), *TRAINED, "hardware.precision=fp32").run_dir
    losses, expected = (np.array([loss for loss, *_ in curve(each).values()]) for each in (first, fp32))
    assert np.abs(losses - expected).max() < 5e-3  # of ln(300) = 5.7; a bf16 has 8 bits
    assert (losses != expected).any()
    run("train", *small(part), *TRAINED, "trainer.stop_after_steps=3")
    second = run("train", *small(part), *TRAINED, "resume=auto").run_dir
    assert curve(second) == curve(first)
    mine, theirs = (checkpoint.open_checkpoint(each / "checkpoints" / "step_6") for each in (second, first))
    for group in ("weights", "optimizer"):
        for name in theirs.names(group):
            assert theirs.tensor(group, name).dtype == np.float32
            assert np.array_equal(mine.tensor(group, name), theirs.tensor(group, name)), name


def test_a_processor_without_it_and_missing_kernels_are_errors(monkeypatch):
    monkeypatch.setattr(library, "has_fast_bf16", lambda: False)
    expected = (
        r"hardware\.precision=bf16: this processor has neither AMX nor AVX512-BF16; use hardware\.precision=fp32\."
    )
    for start in (set_up_device, backend_of):
        with pytest.raises(UserError, match=expected):
            start(BF16)

    def missing():
        raise library.MissingKernelsError("they are not compiled")

    monkeypatch.setattr(library, "has_fast_bf16", missing)
    with pytest.raises(UserError, match=r"precision=bf16: gpt2x's C\+\+ kernels .* not compiled; use .*precision=fp32"):
        set_up_device(BF16)
