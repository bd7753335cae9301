"""Adapters beside a model: at first they change nothing; merged they compute the same; nothing else is trained."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.config import OptimizerConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.lora.cells import initial_factors, input_dropout
from gpt2x.lora.merge import merged
from gpt2x.lora.shapes import factor_placements, factor_shapes
from gpt2x.model.gpt2 import initial_weights, load_weights
from gpt2x.model.losses.language_modeling import WeightedLoss
from gpt2x.ops import backend_of
from gpt2x.optim.optimizers.adamw import AdamW
from gpt2x.parallel.gradient_reduction import local_parameters
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.update import Gradients
from tests.support.adapted import (
    EVERYWHERE,
    Logits,
    adapted,
    adapter_of,
    lazy,
    logits_of,
    lora_config,
    random_factors,
    randomness_of,
)
from tests.support.models import CPU, build, random_ids, tiny_model

pytestmark = pytest.mark.run  # most tests compile a model, some two
MODEL = tiny_model()
IDS = random_ids(MODEL, (2, 17))


@pytest.fixture(scope="module")
def plain():
    """The logits of nets without adapters, compiled once: a net's weights are those that it was given last."""
    return {
        precision: Logits(build(MODEL, hardware=replace(CPU, precision=precision))) for precision in ("fp32", "fp16")
    }


@pytest.mark.parametrize(("targets", "precision"), [(["q", "v"], "fp32"), (EVERYWHERE, "fp32"), (EVERYWHERE, "fp16")])
def test_a_fresh_adapter_changes_nothing_bit_for_bit(targets, precision, plain):
    hardware = replace(CPU, precision=precision)
    logits = Logits(adapted(MODEL, lora_config(targets=targets, dropout=0.5), hardware=hardware))
    load_weights(plain[precision].net, initial_weights(MODEL, 0))
    expected = plain[precision].of(IDS)
    assert np.array_equal(logits.of(IDS), expected)
    assert np.array_equal(logits.of(IDS, randomness_of((2, 17))), expected)


def test_fresh_factors_are_pefts():
    lora, model = lora_config(targets=EVERYWHERE, rank=16), tiny_model(hidden_size=64)
    fresh = initial_factors(lora, model, 3)
    for name, values in fresh.items():
        if name.endswith("lora_B"):
            assert not values.any()
        else:
            bound = values.shape[0] ** -0.5
            assert abs(values).max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    few = initial_factors(replace(lora, targets=["v"]), model, 3)
    assert all(np.array_equal(few[name], fresh[name]) for name in few)
    assert not np.array_equal(initial_factors(lora, model, 4)["h.0.attn.q.lora_A"], fresh["h.0.attn.q.lora_A"])


@pytest.mark.parametrize(("targets", "rank_stabilized"), [(EVERYWHERE, True), (["c_attn"], False)])
def test_merged_equals_beside(targets, rank_stabilized, plain):
    lora = lora_config(targets=targets, rank_stabilized=rank_stabilized)
    factors = random_factors(lora, MODEL)
    beside = logits_of(adapted(MODEL, lora, factors), IDS)
    weights = dict(initial_weights(MODEL, 0))
    adapter = adapter_of(factors, lora, MODEL)
    alone = plain["fp32"]
    load_weights(alone.net, dict(weights))
    assert abs(beside - alone.of(IDS)).max() > 1e-3
    together = dict(merged(lazy(weights), adapter))
    load_weights(alone.net, dict(together))
    assert abs(beside - alone.of(IDS)).max() <= 1e-5
    back = dict(merged(lazy(together), adapter, sign=-1))
    assert max(abs(back[name] - weights[name]).max() for name in weights) <= 1e-6
    for name in weights:  # boxes of a merged tensor are boxes
        if len(weights[name].shape) == 2:
            box = merged(lazy(weights), adapter).read(name, (3, 5), (7, 24))
            np.testing.assert_allclose(box, together[name][3:10, 5:29], atol=1e-6)


def gradients(net, lora, key=7):
    parts = local_parameters(net, MODEL, single(), factor_placements(lora, MODEL, single().coordinates))
    step = Gradients(WeightedLoss(net), ms.ParameterTuple([part.parameter for part in parts]), True)
    weights = np.full((2, 16), 1 / 32, np.float32)
    drawn = Tensor(key, ms.int32), Tensor(0, ms.int32)
    _, values = step(Tensor(IDS), Tensor(weights), None, *drawn, Tensor(1.0, ms.float32))
    return {part.name: value.asnumpy() for part, value in zip(parts, values, strict=True)}


def single():
    return Mesh(ParallelConfig(name="single"))


def test_only_factors_are_trained_and_have_states():
    lora = lora_config()
    net = adapted(MODEL, lora)
    assert {parameter.name for parameter in net.trainable_params()} == set(factor_shapes(lora, MODEL))
    parts = local_parameters(net, MODEL, single(), factor_placements(lora, MODEL, single().coordinates))
    optimizer = AdamW(OptimizerConfig(name="adamw", learning_rate=1e-3), [part.trained for part in parts], net.backend)
    assert {p.name.partition(".")[2] for p in (*optimizer.mean, *optimizer.square)} == set(factor_shapes(lora, MODEL))


def test_gradients_are_those_of_differences():
    lora = lora_config(targets=EVERYWHERE)
    factors = random_factors(lora, MODEL)
    computed = gradients(adapted(MODEL, lora, factors), lora)
    weights = Tensor(np.full((2, 16), 1 / 32, np.float32))
    net = adapted(MODEL, lora, factors)
    loss = WeightedLoss(net)
    parameters = {parameter.name: parameter for parameter in net.trainable_params()}
    for name in ("h.0.attn.q.lora_A", "h.1.attn.v.lora_B", "h.0.mlp.c_proj.lora_A", "h.1.mlp.c_fc.lora_B"):
        coordinates = np.unravel_index(abs(computed[name]).argmax(), computed[name].shape)
        losses = []
        for sign in (1, -1):
            moved = factors[name].copy()
            moved[coordinates] += sign * 1e-2
            parameters[name].set_data(Tensor(moved))
            losses.append(float(loss(Tensor(IDS), weights, None)))
        parameters[name].set_data(Tensor(factors[name]))
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(computed[name][coordinates], rel=2e-2)


def test_dropout_is_a_function_of_the_key():
    lora = lora_config(targets=EVERYWHERE, dropout=0.3)
    logits = Logits(adapted(MODEL, lora, random_factors(lora, MODEL)))
    one, same, other = (logits.of(IDS, randomness_of((2, 17), key)) for key in (1, 1, 2))
    assert np.array_equal(one, same)
    assert abs(one - other).max() > 1e-3
    assert not np.array_equal(logits.of(IDS), one)


@pytest.mark.parametrize("module", ["h.1.attn.c_proj", "h.0.mlp.c_proj", "h.0.attn.q"])
def test_a_share_of_the_inputs_drops_what_one_process_drops(module):
    lora = lora_config(targets=[module], dropout=0.4)
    key, rows = randomness_of((2, 5))
    masks = []
    for coordinates in [
        Coordinates(ParallelConfig(name="single"), 0),
        *(Coordinates(ParallelConfig(name="tp2", tensor=2), r) for r in (0, 1)),
    ]:
        part = factor_placements(lora, MODEL, coordinates)[f"{module}.lora_A"]
        dropout = input_dropout(lora, MODEL, module, part, backend_of(CPU))
        masks.append(dropout.keep(key, rows, part.shape[0]).asnumpy())
    expected = masks[1] if module.endswith("q") else np.concatenate(masks[1:], axis=1)
    assert np.array_equal(masks[0], expected)


def test_dropouts_of_modules_differ():
    lora = lora_config(targets=["q", "k"], dropout=0.4)
    key, rows = randomness_of((2, 16))
    parts = factor_placements(lora, MODEL, Coordinates(ParallelConfig(name="single"), 0))
    one, other = (
        input_dropout(lora, MODEL, name, parts[f"{name}.lora_A"], backend_of(CPU)).keep(key, rows, 32).asnumpy()
        for name in ("h.0.attn.q", "h.0.attn.k")
    )
    assert 0.4 < (one != other).mean() < 0.56  # 2 x 0.4 x 0.6
