"""The Ascend branch computes on the CPU, with references for Ascend's operators, what the CPU's own branch computes.

`python -m tests.ascend.test_values` prints the table of docs/ascend.md. TOLERANCES holds the largest difference that
each comparison allows: of a loss, a tensor of gradients or logits as a share of its largest value; of updates, the
distance of all parameters as a share of how far they have moved. One rounding in fp16 is up to 5e-4.
"""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gpt2x.config import OptimizerConfig
from gpt2x.doctor import operators
from gpt2x.generate.decoder import Decoder
from gpt2x.model.losses.language_modeling import WeightedLoss
from gpt2x.ops import ascend, composed
from gpt2x.optim.optimizers.adamw import AdamW
from gpt2x.train.step import StepInputs, TrainStep
from tests.ascend import reference_ops
from tests.support.models import CPU, build, random_ids, tiny_model

pytestmark = pytest.mark.run
LENGTH, BATCH, UPDATES = 24, 2, 4
TOLERANCES = {  # (precision, what): the largest difference as a share of the largest value
    ("fp32", "loss"): 1e-6, ("fp32", "gradients"): 1e-5, ("fp32", "losses"): 1e-6, ("fp32", "updates"): 1e-3,
    ("fp32", "logits"): 1e-5,
    ("fp16", "loss"): 1e-4, ("fp16", "gradients"): 1e-2, ("fp16", "losses"): 1e-4, ("fp16", "updates"): 5e-2,
    ("fp16", "logits"): 1e-2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def references(hardware, monkeypatch):
    reference_ops.patched(monkeypatch)


def small(dropout: float, activation: str = "gelu_new"):
    """Two layers with heads of 16, which the flash kernel takes."""
    return tiny_model(hidden_size=64, dropout=dropout, activation=activation)


def both(precision: str):
    """The hardware of the composed backend, and of the Ascend branch."""
    return replace(CPU, precision=precision, native_kernels=False), reference_ops.hardware(precision)


def starts(length: int) -> np.ndarray:
    """The columns at which the segments of BATCH rows begin."""
    columns = np.arange(length)
    return np.stack([np.where(columns < 9, 0, 9), np.where(columns < 5, 0, np.where(columns < 16, 5, 16))]).astype(
        np.int32
    )


class Gradients(nn.Cell):
    """A loss and the gradients of all parameters."""

    def __init__(self, loss, parameters):
        super().__init__(auto_prefix=False)
        self.value_and_grad = ms.value_and_grad(loss, None, ms.ParameterTuple(parameters))

    def construct(self, ids, weights, key, rows, starts):
        return self.value_and_grad(ids, weights, None if key is None else (key, rows), starts)


def batch(model, packed: bool, seed: int = 3):
    """Ids, weights and starts of a micro batch."""
    ids = random_ids(model, (BATCH, LENGTH + 1), seed)
    weights = np.full((BATCH, LENGTH), 1 / (BATCH * LENGTH), np.float32)
    return ids, weights, starts(LENGTH) if packed else None


def difference(first, second) -> float:
    """The largest difference of two arrays as a share of the largest value."""
    first, second = (np.asarray(x, np.float64) for x in (first, second))
    assert np.isfinite(first).all()
    return float(np.abs(first - second).max() / np.abs(second).max())


def largest_difference(first, second) -> float:
    """The largest `difference` of tensors by their names."""
    return max(difference(first[name], second[name]) for name in second)


def distance(first, second) -> float:
    """The Euclidean distance of all tensors.

    Adam makes a whole step of a gradient that is nothing but rounding, as those of the keys' biases are. So single
    parameters may differ by steps.
    """
    return float(np.sqrt(sum(np.square(first[name].astype(np.float64) - second[name]).sum() for name in second)))


def gradients(hardware, model, packed: bool):
    net = build(model, hardware=hardware)
    parameters = list(net.trainable_params())
    key = rows = None
    if model.dropout:
        key, rows = Tensor(-77, ms.int32), Tensor(np.arange(BATCH * LENGTH, dtype=np.int32).reshape(-1, 1))
    ids, weights, begins = batch(model, packed)
    begins = None if begins is None else Tensor(begins)
    value, found = Gradients(WeightedLoss(net), parameters)(Tensor(ids), Tensor(weights), key, rows, begins)
    return float(value.asnumpy()), {p.name: g.asnumpy() for p, g in zip(parameters, found, strict=True)}


def updates(hardware, model, packed: bool):
    """Losses of a few updates, and the parameters after them."""
    net = build(model, hardware=hardware)
    config = OptimizerConfig(name="adamw", learning_rate=1e-3)
    optimizer = AdamW(config, net.trainable_params(), net.backend)
    step = TrainStep(WeightedLoss(net), net.trainable_params(), optimizer, 1, 1.0, has_dropout=model.dropout > 0)
    losses, scale = [], Tensor(128.0 if hardware.precision == "fp16" else 1.0, ms.float32)
    for update in range(1, UPDATES + 1):
        ids, weights, begins = batch(model, packed, seed=update)
        begins, scalars = begins if begins is None else begins[None], optimizer.scalars(1e-3, update)
        key = Tensor(1000 * update, ms.int32)
        result = step(StepInputs(ids[None], weights[None], key, scale, scalars, starts=begins))
        assert result.is_made
        losses.append(result.loss)
    assert losses[-1] != losses[0]
    return losses, {p.name: p.asnumpy().copy() for p in net.trainable_params()}


def logits(hardware, model):
    """What a decoder says of a prompt of 7 tokens, and of one token after it."""
    net = build(model, hardware=hardware)
    decoder = Decoder(net, BATCH, LENGTH)
    found = []
    for first, count in ((0, 7), (7, 1)):
        positions = np.tile(np.arange(first, first + count, dtype=np.int32), (BATCH, 1))
        last = Tensor(np.full(BATCH, count - 1, np.int32))
        found.append(decoder(Tensor(random_ids(model, (BATCH, count), first)), Tensor(positions), last).asnumpy())
    return np.stack(found)


def compare(precision: str, dropout: float, packed: bool, activation: str) -> dict[str, float]:
    """The largest differences of the Ascend branch from the CPU's own one, by what is compared."""
    model = small(dropout, activation)
    cpu, device = both(precision)
    (value, of_cpu), (other, of_device) = (gradients(hardware, model, packed) for hardware in (cpu, device))
    (losses, trained), (other_losses, other_trained) = (updates(hardware, model, packed) for hardware in (cpu, device))
    before = {p.name: p.asnumpy() for p in build(model, hardware=cpu).trainable_params()}
    return {
        "loss": difference(other, value),
        "gradients": largest_difference(of_device, of_cpu),
        "losses": difference(other_losses, losses),
        "updates": distance(trained, other_trained) / distance(trained, before),
    }


REFERENCE_BITS, REFERENCE_MASK = reference_ops.retained, reference_ops.discarded
MASK = ascend.compressed_causal_mask()
CASES = [
    ("fp32", 0.0, False, "gelu"),
    ("fp32", 0.2, True, "gelu_new"),
    ("fp16", 0.0, False, "gelu_new"),
    ("fp16", 0.2, False, "gelu"),
    ("fp16", 0.0, True, "gelu_new"),
    ("fp16", 0.2, True, "gelu_new"),
]


def case(precision: str, dropout: float, packed: bool, activation: str):
    """Return a case as parameters; by hand if the others call all that it calls."""
    marks = [] if dropout or packed else [pytest.mark.exhaustive]
    return pytest.param(precision, dropout, packed, activation, marks=marks)


@pytest.mark.parametrize(("precision", "dropout", "packed", "activation"), [case(*values) for values in CASES])
def test_loss_gradients_and_updates(precision, dropout, packed, activation):
    for what, found in compare(precision, dropout, packed, activation).items():
        assert found <= TOLERANCES[precision, what], what


def other_order(drop_mask):
    bits = REFERENCE_BITS(drop_mask).reshape((*drop_mask.shape, 8))
    return ops.flip(bits, (4,)).reshape((*drop_mask.shape[:-1], -1))


def no_mask(attn_mask, sparse_mode, shape):
    return REFERENCE_MASK(None, 0, shape)


def causal_alone(attn_mask, sparse_mode, shape):
    return REFERENCE_MASK(MASK, 2, shape)


@pytest.mark.parametrize(
    ("name", "wrong", "packed"),
    [
        ("retained", other_order, False),
        ("discarded", no_mask, False),
        ("discarded", causal_alone, True),
    ],
    ids=["the other order of bits", "no mask", "causal alone"],
)
def test_a_wrong_convention_shows(name, wrong, packed, monkeypatch):
    model = small(0.2)
    cpu, device = both("fp16")
    monkeypatch.setattr(reference_ops, name, wrong)
    (_, of_cpu), (_, of_device) = (gradients(hardware, model, packed) for hardware in (cpu, device))
    assert largest_difference(of_device, of_cpu) > 5 * TOLERANCES["fp16", "gradients"]


def test_ends_of_sequences():
    ends = ascend.sequence_ends(Tensor(np.array([[0, 0, 2, 2, 2, 5], [0, 0, 0, 0, 4, 4]], np.int32)), 8)
    queries, keys = (x.asnumpy().tolist() for x in ends)
    assert queries == [2, 5, 6, 10, 12, 12, 12, 12], "three are left over, without queries"
    assert keys == [2, 5, 6, 10, 12, 18, 19, 20], "none is without keys"


def attend(starts):
    """Attention of packed rows by the kernel, and written out."""
    qkv = Tensor(np.random.default_rng(0).standard_normal((*starts.shape, 3 * 64)).astype(np.float16))
    found = []
    for backend in (ascend.Ascend(reference_ops.hardware("fp16")), composed.Composed(both("fp16")[0])):
        attention = backend.attention(4, 16, starts.shape[1], None)
        found.append(attention(qkv, None, attention.segments(Tensor(starts))).asnumpy())
    return found


def causal_between_sequences(attn_mask, sparse_mode, query_ends, key_ends, queries, keys):
    return REFERENCE_MASK(attn_mask, sparse_mode, (1, 1, queries, keys)), key_ends[-1] == keys


def test_packed_rows_as_sequences(monkeypatch):
    kernel, written_out = attend(starts(LENGTH))
    assert difference(kernel, written_out) <= 1e-3
    monkeypatch.setattr(reference_ops, "discarded_between_sequences", causal_between_sequences)
    assert difference(attend(starts(LENGTH))[0], written_out) > 0.1, "causal alone"


FORMS = ("attention", "attention with dropout", "attention of packed rows", "attention of packed rows with dropout")


def test_doctor_passes_the_optimizer():
    assert "after 3 updates" in operators.compare_adamw(reference_ops.hardware("fp16"))


@pytest.mark.parametrize("name", FORMS)
def test_doctor_passes_every_form_of_flash_attention(name):
    """On a device that does what is documented."""
    device = reference_ops.hardware("fp16")
    (case,) = (case for case in operators.cases(device) if case.name == name)
    assert operators.compare(case, device).startswith("differs by ")


def test_a_list_that_the_documentation_excludes_gives_no_number(monkeypatch):
    monkeypatch.setattr(ascend, "sequence_ends", lambda starts, size: (Tensor(np.full(size, 48, np.int32)),) * 2)
    qkv = Tensor(np.zeros((BATCH, LENGTH, 3 * 64), np.float16))
    attention = ascend.Ascend(reference_ops.hardware("fp16")).attention(4, 16, LENGTH, None)
    assert np.isnan(attention(qkv, None, attention.segments(Tensor(starts(LENGTH)))).asnumpy()).all()


def test_rows_that_the_layout_tnd_does_not_hold_have_a_mask():
    attention = ascend.Ascend(reference_ops.hardware("fp16")).attention(4, 16, 64, None)
    assert isinstance(attention.segments(Tensor(np.zeros((16, 64), np.int32))), tuple)
    assert attention.segments(Tensor(np.zeros((17, 64), np.int32))).shape == (17, 64, 64)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_decoding(precision):
    model = small(0.0)
    cpu, device = (logits(hardware, model) for hardware in both(precision))
    assert difference(device, cpu) <= TOLERANCES[precision, "logits"]


def print_table() -> None:
    """Print the largest differences as the table of docs/ascend.md."""
    reference_ops.patched(pytest.MonkeyPatch())
    print("| precision | dropout | rows | activation | loss | gradients | losses | updates |\n|" + "---|" * 8)
    for precision, dropout, packed, activation in CASES:
        found = " | ".join(f"{value:.0e}" for value in compare(precision, dropout, packed, activation).values())
        print(f"| {precision} | {dropout} | {'packed' if packed else 'plain'} | {activation} | {found} |", flush=True)
    for precision in ("fp32", "fp16"):
        cpu, device = (logits(hardware, small(0.0)) for hardware in both(precision))
        print(f"logits of the decoder in {precision}: {difference(device, cpu):.0e}", flush=True)


if __name__ == "__main__":
    print_table()
