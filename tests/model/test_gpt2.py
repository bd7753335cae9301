"""The model's maths: causality, sizes, golden activations, and equality with transformers on the same weights."""

import base64
import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gpt2x.config import ModelConfig
from gpt2x.model import stats
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights, logical_weights
from gpt2x.model.losses.language_modeling import TokenLosses, WeightedLoss
from gpt2x.ops import composed
from tests.support.models import CPU, build, random_ids, tiny_model

pytestmark = pytest.mark.run


class Logits(nn.Cell):
    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, ids):
        return self.net.logits(self.net(ids, None))


def logits_of(net, ids):
    return Logits(net)(Tensor(ids)).asnumpy().reshape(*ids.shape, -1)


def test_names_and_shapes_are_the_logical_ones():
    model = tiny_model()
    net = build(model)
    assert {name: tuple(p.shape) for name, p in net.parameters_and_names()} == stats.tensor_shapes(model)
    assert sum(p.size for p in net.trainable_params()) == stats.num_params(model)


def test_a_changed_future_token_leaves_the_past_unchanged():
    model = tiny_model()
    net, ids = build(model), random_ids(tiny_model(), (2, 16))
    before = logits_of(net, ids)
    ids[:, 9] = (ids[:, 9] + 1) % model.vocab_size
    after = logits_of(net, ids)
    assert np.array_equal(before[:, :9], after[:, :9])
    assert not np.allclose(before[:, 9:], after[:, 9:])


def test_first_loss_is_close_to_the_log_of_the_vocabulary():
    model = tiny_model(vocab_size=1009)
    losses = TokenLosses(build(model))(Tensor(random_ids(model, (4, 33))), None).asnumpy()
    assert losses.shape == (4 * 32,)
    assert losses.mean() == pytest.approx(np.log(1009), abs=0.1)


def test_padded_vocabulary_changes_nothing():
    model = tiny_model()
    ids = Tensor(random_ids(model, (2, 17)))
    plain = TokenLosses(build(model))(ids, None).asnumpy()
    padded_model = tiny_model(pad_vocab_multiple=64)
    net = build(padded_model)
    assert net.wte.weight.shape == (128, 32)
    assert np.allclose(plain, TokenLosses(net)(ids, None).asnumpy(), atol=1e-6)
    weights = logical_weights(net, padded_model)
    assert all(np.array_equal(weights[name], value) for name, value in initial_weights(model, 0).items())


def test_initial_weights():
    model = tiny_model(hidden_size=128, num_layers=8, vocab_size=2000)
    weights = initial_weights(model, 3)
    assert weights["wte.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["h.5.mlp.c_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.03)
    assert weights["h.5.attn.c_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.03)
    assert weights["h.0.mlp.c_fc.weight"].std() == pytest.approx(0.02, rel=0.03)
    assert set(weights["ln_f.weight"]) == {1.0}
    assert set(weights["h.1.attn.c_attn.bias"]) == {0.0}
    reference = initial_weights(dataclasses.replace(model, initializer_range=0.01, scale_residual_init=False), 3)
    assert reference["h.5.mlp.c_proj.weight"].std() == pytest.approx(0.01, rel=0.03)
    assert all(np.array_equal(value, initial_weights(model, 3)[name]) for name, value in weights.items())
    assert not np.array_equal(weights["wte.weight"], initial_weights(model, 4)["wte.weight"])


def gradients_of(net, ids):
    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.loss, self.parameters = WeightedLoss(net), ms.ParameterTuple(net.trainable_params())

        def forward(self, ids, weights):
            return self.loss(ids, weights, None)

        def construct(self, ids, weights):
            return ms.value_and_grad(self.forward, None, self.parameters)(ids, weights)

    num_targets = ids.shape[0] * (ids.shape[1] - 1)
    weights = np.full((ids.shape[0], ids.shape[1] - 1), 1 / num_targets, np.float32)
    loss, gradients = Gradients()(Tensor(ids), Tensor(weights))
    names = [p.name for p in net.trainable_params()]
    return float(loss), {name: value.asnumpy() for name, value in zip(names, gradients, strict=True)}


@pytest.mark.parametrize("recompute", ["attention", "block"])
def test_recompute_gives_the_same_gradients(recompute):
    model, ids = tiny_model(), random_ids(tiny_model(), (2, 17))
    loss, plain = gradients_of(build(model), ids)
    other_loss, other = gradients_of(build(model, recompute=recompute), ids)
    assert loss == other_loss
    assert all(np.array_equal(plain[name], other[name]) for name in plain)


def test_fp16_computes_close_to_fp32():
    hardware = dataclasses.replace(CPU, precision="fp16")
    model, ids = tiny_model(), random_ids(tiny_model(), (2, 17))
    loss, exact = gradients_of(build(model), ids)
    half_loss, half = gradients_of(build(model, hardware=hardware), ids)
    assert half_loss == pytest.approx(loss, rel=2e-3)
    for name, value in exact.items():
        assert half[name].dtype == np.float32
        assert np.abs(half[name] - value).max() <= 0.05 * np.abs(value).max() + 1e-5, name


def decode(entry):
    return np.frombuffer(base64.b64decode(entry["data"]), np.float32).reshape(entry["shape"])


class Activations(nn.Cell):
    """Everything that gpt-nano-sort's stored forward pass holds; `ln1` to `mlpResid` are of the first block."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net
        self.attention = composed.AttentionKernel(16, 11)  # which has weights to show

    def construct(self, ids):
        net = self.net
        x = net.embed(ids, ms.ops.arange(ids.shape[1]).astype(ms.int32))
        block = net.h[0]
        ln1 = block.ln_1(x)
        q, k, v = block.attn.queries_keys_values(ln1)
        mixed, weights = self.attention(q, k, v, None, None)
        attended = block.attn.merge(mixed)
        residual = x + attended
        ln2 = block.ln_2(residual)
        wide = block.mlp.c_fc(ln2)
        active = block.mlp.activation(wide)
        narrow = block.mlp.c_proj(active)
        first = block(x, None)
        second = net.h[1](first, None)
        third = net.h[2](second, None)
        logits = net.logits(net(ids, None)).reshape(ids.shape[0], ids.shape[1], -1)
        qkv = block.attn.c_attn(ln1)
        y = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
        return (net.wte(ids), x, ln1, q, k, v, qkv, weights, y, attended, residual, ln2, wide, active, narrow,
                residual + narrow, first, second, third, net.ln_f(third), logits,
                ms.ops.softmax(logits, -1))  # fmt: skip


ACTIVATIONS = ("tok_emb", "x", "ln1", "q", "k", "v", "qkv", "attSm", "y", "yProj", "attnResid", "ln2", "fc", "gelu",
               "mlp", "mlpResid", "block0", "block1", "block2", "ln_f", "lm_head", "probs")  # fmt: skip


def test_every_stored_activation_of_gpt_nano_sort(shared_data):
    folder = shared_data / "checkpoints" / "gpt-nano-sort"
    stored = json.loads((folder / "gpt-nano-sort-model.json").read_text(encoding="utf-8"))
    partials = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text(encoding="utf-8"))
    model = ModelConfig(name="nano", num_layers=3, num_heads=3, hidden_size=48, max_seq_len=11, vocab_size=3,
                        tie_embeddings=False, dropout=0.0)  # fmt: skip
    weights = {}
    for name, shape in stats.tensor_shapes(model).items():
        value = decode(stored[name if name == "lm_head.weight" else f"transformer.{name}"])
        is_linear = ".c_" in name and name.endswith(".weight")  # stored as nn.Linear, not Conv1D
        weights[name] = value.T if is_linear else value
        assert weights[name].shape == shape, name
    net = build(model)
    load_weights(net, weights)
    ids = decode(partials["idx"]).astype(np.int32)
    found = dict(zip(ACTIVATIONS, (value.asnumpy() for value in Activations(net)(Tensor(ids))), strict=True))
    found["pos_emb"] = weights["wpe.weight"][None]
    scores = found["q"] @ found["k"].swapaxes(-1, -2) / 4
    found["att"] = np.where(np.isinf(decode(partials["att"])), -np.inf, scores)  # the model adds -1e9 instead
    missing = set(partials) - set(found) - {"config", "idx"}
    assert not missing
    for name, value in found.items():
        expected = decode(partials[name])
        finite = np.isfinite(expected)
        assert np.array_equal(finite, np.isfinite(value)), name
        assert np.abs(value[finite] - expected[finite]).max() <= 1e-5, name


def hf_model(**changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(**changes)
    return torch, transformers.GPT2LMHeadModel(config).eval()


def numpy_weights(hf):
    return {
        name.removeprefix("transformer."): value.detach().numpy()
        for name, value in hf.state_dict().items()
        if name != "lm_head.weight"
    }


@pytest.mark.parity
@pytest.mark.parametrize(
    ("size", "length"),
    [
        pytest.param("gpt2_tiny", 128),
        pytest.param("gpt2_small", 64, marks=pytest.mark.run),
    ],
)
def test_logits_loss_and_every_gradient_equal_transformers(size, length):
    shapes = {"gpt2_tiny": (4, 4, 128, 256, 2048), "gpt2_small": (12, 12, 768, 1024, 50257)}[size]
    layers, heads, hidden, positions, vocab = shapes
    torch, hf = hf_model(n_layer=layers, n_head=heads, n_embd=hidden, n_positions=positions, vocab_size=vocab)
    model = ModelConfig(name=size, num_layers=layers, num_heads=heads, hidden_size=hidden, max_seq_len=positions,
                        vocab_size=vocab)  # fmt: skip
    net = build(model)
    load_weights(net, numpy_weights(hf))
    ids = random_ids(model, (2, length))
    expected = hf(torch.tensor(ids.astype(np.int64)), labels=torch.tensor(ids.astype(np.int64)))
    assert np.abs(logits_of(net, ids) - expected.logits.detach().numpy()).max() <= 1e-4
    expected.loss.backward()
    loss, gradients = gradients_of(net, ids)
    assert loss == pytest.approx(float(expected.loss.detach()), abs=1e-5)
    for name, parameter in hf.named_parameters():
        value, mine = parameter.grad.numpy(), gradients[name.removeprefix("transformer.")]
        error = np.linalg.norm(mine - value) / np.linalg.norm(value)
        assert error <= 1e-4, (name, error)


@pytest.mark.parity
@pytest.mark.parametrize(("activation", "hf_name"), [("gelu", "gelu"), ("fast_gelu", "quick_gelu")])
def test_other_activations_equal_transformers(activation, hf_name):
    torch, hf = hf_model(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=101, activation_function=hf_name)
    model = tiny_model(num_heads=2, activation=activation)
    net = build(model)
    load_weights(net, numpy_weights(hf))
    ids = random_ids(model, (2, 20))
    expected = hf(torch.tensor(ids.astype(np.int64))).logits.detach().numpy()
    assert np.abs(logits_of(net, ids) - expected).max() <= 1e-5


def test_dropout_is_off_without_randomness_and_on_with_it():
    model = tiny_model(dropout=0.2)
    net = build(model)
    ids = Tensor(random_ids(model, (2, 9)))
    rows = Tensor(np.arange(16, dtype=np.int32).reshape(-1, 1))
    plain = TokenLosses(net)(ids, None).asnumpy()
    assert np.array_equal(plain, TokenLosses(build(tiny_model()))(ids, None).asnumpy())
    first, second = (TokenLosses(net)(ids, (Tensor(key, ms.int32), rows)).asnumpy() for key in (1, 2))
    assert not np.allclose(plain, first)
    assert not np.allclose(first, second)
    assert isinstance(net, GPT2)
