"""Decoding by the C++ kernels beside the model's cells: kinds of weights and cache, several tokens at a time."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor

from gpt2x import native
from gpt2x.errors import UserError
from gpt2x.generate.decoder import Decoder
from gpt2x.generate.fused import FusedDecoder, Weights, bf16_bits, int4_groups, int8_rows, is_fused, panels
from gpt2x.generate.slots import Slots
from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
from gpt2x.runtime.device import set_up_device
from tests.support.adapted import logits_of
from tests.support.gradients import draw
from tests.support.models import CPU, build, random_ids, tiny_model

pytestmark = pytest.mark.run
PLAIN = replace(CPU, native_kernels=False)


def decoding_net(hidden_size, hardware=CPU):
    model = tiny_model(hidden_size=hidden_size, num_layers=1 if hidden_size == 192 else 2, pad_vocab_multiple=8)
    set_up_device(hardware)
    net = GPT2(model, hardware)
    return net, draw_weights(net, model)


def draw_weights(net, model, std=0.3):
    load_weights(net, initial_weights(replace(model, initializer_range=std), seed=1))
    return model


def decoder_of(net, model, kind="fp32", batch_size=2, cache="fp32"):
    return FusedDecoder(model, Weights(net, kind, cache), batch_size, 32)


def fed(decoder, ids, widths):
    """Logits behind each part of rows of tokens (B, T) that are given in parts of some widths."""
    found, start = [], 0
    for width in widths:
        part = ids[:, start : start + width]
        positions = np.tile(np.arange(start, start + width, dtype=np.int32), (len(ids), 1))
        last = np.full(len(ids), width - 1, np.int32)
        if isinstance(decoder, FusedDecoder):
            decoder.bind()
            found.append(decoder.logits(part, positions, last[:, None]))
            assert np.array_equal(decoder.likeliest(part, positions, last[:, None])[:, 0], found[-1].argmax(axis=1))
        else:
            found.append(decoder(Tensor(part), Tensor(positions), Tensor(last)).asnumpy())
        start += width
    return found


@pytest.fixture(scope="module")
def wide():
    """A net of 192 values, its shape, and its decoder in fp32, which reads the parameters in place."""
    net, model = decoding_net(192)
    return net, model, decoder_of(net, model)


@pytest.mark.parametrize("hidden_size", [32, 36, 192])
def test_decoding_equals_the_models_cells(hidden_size, wide):
    """Widths that are and that are no multiple of a tile; a prompt, steps of one token and of several."""
    net, model = decoding_net(hidden_size, PLAIN)
    assert not is_fused(net)
    ids = random_ids(model, (2, 24))
    expected = logits_of(net, ids)
    if hidden_size == 36:  # the cells have a cache too, into which steps write several tokens
        for cached, end in zip(fed(Decoder(net, 2, 32), ids, [8, 8, 8]), (8, 16, 24), strict=True):
            assert np.allclose(cached, expected[:, end - 1], atol=1e-4)
    set_up_device(CPU)
    fused = wide[2] if hidden_size == 192 else decoder_of(*decoding_net(hidden_size))
    draw_weights(fused.weights.net, model)
    widths = [10, 1, 1, 3, 1, 8]
    for mine, end in zip(fed(fused, ids, widths), np.cumsum(widths), strict=True):
        assert np.allclose(mine, expected[:, end - 1, : model.vocab_size], atol=1e-4)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4"])
def test_a_token_is_the_same_to_the_bit_whatever_is_decoded_with_it(kind, wide):
    """What speculative decoding relies on: one at a time, or up to eight together, in one row or in two."""
    net, model, decoder = wide
    draw_weights(net, model)
    decoder = decoder if kind == "fp32" else decoder_of(net, model, kind)
    ids, one_by_one = random_ids(model, (2, 24)), [10] + [1] * 14
    single = fed(decoder, ids, one_by_one)
    for widths in ([10, 5, 8, 1], [10, 2, 3, 4, 5]):
        fed(decoder, ids[:, ::-1], one_by_one)  # so that the cache does not hold the right values already
        found = fed(decoder, ids, widths)
        for logits, end in zip(found[1:], np.cumsum(widths)[1:], strict=True):
            assert np.array_equal(logits, single[end - 10])
    alone = fed(decoder_of(net, model, kind, batch_size=1), ids[:1], one_by_one)
    assert all(np.array_equal(one[0], two[0]) for one, two in zip(alone[1:], single[1:], strict=True))


@pytest.mark.parametrize(("kind", "bound"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.2)])
def test_narrow_weights_stay_close(kind, bound, wide):
    net, model, exactly = wide
    draw_weights(net, model, std=0.05)
    ids, widths = random_ids(model, (2, 24)), [10, 1, 3, 1, 8]
    found = fed(decoder_of(net, model, kind), ids, widths)
    for mine, exact in zip(found, fed(exactly, ids, widths), strict=True):
        assert 0 < np.linalg.norm(mine - exact) < bound * np.linalg.norm(exact)


def test_a_narrow_cache_stays_close(wide):
    """Of a decoder, and of slots, into which a prompt's cache is copied."""
    net, model, exactly = wide
    draw_weights(net, model)
    ids, widths = random_ids(model, (2, 24)), [10, 1, 3, 1, 8]
    found = fed(decoder_of(net, model, cache="bf16"), ids, widths)
    for mine, exact in zip(found[1:], fed(exactly, ids, widths)[1:], strict=True):
        assert 0 < np.linalg.norm(mine - exact) < 0.02 * np.linalg.norm(exact)
    logits = {}
    for cache in ("fp32", "bf16"):
        slots = Slots(net, model, CPU)
        slots.open(2, [10], 8, [(1, 1)], False, "fp32", cache)
        slots.enter(1, ids[0, :10].tolist())
        logits[cache] = slots.step({1: (10, ids[0, 10:11].tolist())})[1]
    assert 0 < np.linalg.norm(logits["bf16"] - logits["fp32"]) < 0.02 * np.linalg.norm(logits["fp32"])


def test_forms_of_narrow_weights():
    values = draw(6, 70)
    rows, scales = int8_rows(values)
    assert np.abs(rows * scales[:, None] - values).max() <= scales.max() / 2 + 1e-7
    assert np.array_equal(int8_rows(np.zeros((2, 3), np.float32))[0], np.zeros((2, 3), np.int8))
    back = (bf16_bits(values).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(back / values - 1).max() <= 2**-8
    packed = panels(values, 64, 4, 2)
    assert packed.shape == (2, 4, 64, 2)
    assert np.array_equal(packed.transpose(1, 3, 0, 2).reshape(8, 128)[:6, :70], values)
    groups, factors = int4_groups(draw(64, 7), 32)
    back = (groups.reshape(2, 32, 7) * factors[:, None].astype(np.float32)).reshape(64, 7)
    assert np.abs(groups).max() == 8
    assert np.linalg.norm(back - draw(64, 7)) < 0.12 * np.linalg.norm(back)
    assert np.array_equal(int4_groups(np.zeros((32, 2), np.float32), 32)[0], np.zeros((32, 2), np.int8))


def test_narrow_weights_need_the_kernels():
    set_up_device(PLAIN)
    model = tiny_model()
    slots = Slots(build(model, hardware=PLAIN), model, PLAIN)
    with pytest.raises(UserError, match=r"generation.weights=int8 .* use generation.weights=fp32"):
        slots.open(1, [4], 4, [(1, 1)], True, "int8")
    with pytest.raises(UserError, match=r"generation.cache=bf16 .* use generation.cache=fp32"):
        slots.open(1, [4], 4, [(1, 1)], True, "fp32", "bf16")


def largest_sums(kind):
    """Logits of a model whose feed-forward layer has the largest sums that its width allows: all terms are alike."""
    model = tiny_model(num_layers=1, ffn_size=5000)
    net = GPT2(model, CPU)
    weights = dict(initial_weights(replace(model, initializer_range=0.3), seed=1))
    outputs = np.linspace(-0.01, 0.01, model.hidden_size)
    for name, value in {"h.0.mlp.c_fc.weight": 0, "h.0.mlp.c_fc.bias": 3, "h.0.mlp.c_proj.weight": outputs}.items():
        weights[name] = np.broadcast_to(np.float32(value), weights[name].shape).copy()
    load_weights(net, weights)
    return fed(decoder_of(net, model, kind), random_ids(model, (2, 12)), [10, 1, 1])


def decoded():
    """Logits after a prompt of ten tokens and after further steps, by kind of weights."""
    net, model = decoding_net(192)
    draw_weights(net, model, std=0.05)
    ids = random_ids(model, (2, 24))
    logits = {kind: fed(decoder_of(net, model, kind), ids, [10, 1, 3, 8]) for kind in ("fp32", "bf16", "int8", "int4")}
    return logits | {"int8_largest": largest_sums("int8")}


def test_the_largest_sums_of_bytes_fit():
    set_up_device(CPU)
    for mine, exact in zip(largest_sums("int8"), largest_sums("fp32"), strict=True):
        assert np.abs(mine - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.launch
@pytest.mark.parametrize(
    ("variant", "instructions"),
    [("avx2", "AVX2"), ("avx2", "AVX2_VNNI"), ("avx512", "AVX512_CORE"), ("avx512", "AVX512_CORE_VNNI")],
)
def test_processors_with_fewer_instructions_decode_the_same(tmp_path, variant, instructions):
    """Without narrow instructions, prompts widen bf16 and int4 to fp32; sums of int8 are exact in every way."""
    if not native.VARIANTS[variant] <= native.processor_flags():
        pytest.skip("this processor has no AVX-512")
    code = (
        f"from gpt2x import native; native.VARIANTS = {{'{variant}': native.VARIANTS['{variant}']}}\n"
        "import numpy as np; from tests import test_native_decoding as t\n"
        "t.set_up_device(t.CPU)\n"
        "arrays = {f'{kind}{i}': x for kind, parts in t.decoded().items() for i, x in enumerate(parts)}\n"
        f"assert native.library().variant == '{variant}'\n"
        f"np.savez({str(tmp_path / 'logits.npz')!r}, **arrays)"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    set_up_device(CPU)
    bounds = {"fp32": 1e-5, "bf16": 5e-3, "int8": 5e-4, "int4": 5e-3}  # prompts: activations in bf16, 14 bits or fp32
    if variant == native.library().variant:
        bounds["int8"] = 0.0
    with np.load(tmp_path / "logits.npz") as logits:
        for kind, found in decoded().items():
            for index, mine in enumerate(found):
                error = np.linalg.norm(mine - logits[f"{kind}{index}"])
                assert error <= bounds[kind.partition("_")[0]] * np.linalg.norm(mine), (kind, index)
