"""The Ascend branch: compiled by MindSpore's frontend for a pretended Ascend, and its values where the CPU has them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gpt2x.ops import ascend, composed
from gpt2x.runtime.device import set_up_device
from tests.ascend import frontend
from tests.ascend.runs import compile_case, report_of
from tests.support.models import CPU

LAYERS = frontend.SMALL.num_layers


def run(case, folder):
    return compile_case("frontend", case, folder)


def operators(case, folder):
    return report_of("frontend", case, folder)


@pytest.mark.parametrize(("case", "forward"), [("train_fp16", 1), ("train_bf16", 1), ("train_fp16_recompute", 2)])
def test_update_with_flash_attention(case, forward, tmp_path):
    found = operators(case, tmp_path)
    assert found["FlashAttentionScore"] == forward * LAYERS
    assert found["FlashAttentionScoreGrad"] == LAYERS
    assert found["LayerNormGrad"] == 2 * LAYERS + 1
    assert found["Adam"] == 12 * LAYERS + 4
    assert "Softmax" not in found


@pytest.mark.parametrize(
    ("case", "forward"), [("train_fp16_dropout", 1), ("train_bf16_dropout_recompute", 2), ("train_fp32", 1)]
)
def test_update_with_attention_written_out(case, forward, tmp_path):
    found = operators(case, tmp_path)
    assert found["Softmax"] == forward * LAYERS
    assert "FlashAttentionScore" not in found


def test_recompute_while_micro_batches_accumulate(tmp_path):
    assert operators("train_bf16_accumulation_recompute", tmp_path)["FlashAttentionScore"] == 2 * LAYERS


def test_packed_rows_go_through_flash_attention_with_a_mask_of_their_own(tmp_path):
    found = operators("train_bf16_packed_recompute", tmp_path)
    assert found["FlashAttentionScore"] == 2 * LAYERS
    assert found["FlashAttentionScoreGrad"] == LAYERS
    assert found["LogicalOr"] >= 1


def test_packed_rows_with_dropout_are_written_out(tmp_path):
    found = operators("train_fp16_dropout_packed", tmp_path)
    assert found["Softmax"] == LAYERS
    assert "FlashAttentionScore" not in found


@pytest.mark.slow
def test_update_of_the_13b_model(tmp_path):
    found = operators("train_13b", tmp_path)
    assert found["FlashAttentionScoreGrad"] == 40
    assert found["FlashAttentionScore"] == 2 * 40, "recomputed"


@pytest.mark.parametrize(("case", "argmax"), [("evaluate_fp16", 0), ("score_greedily_fp16", 1)])
def test_evaluation(case, argmax, tmp_path):
    found = operators(case, tmp_path)
    assert found["FlashAttentionScore"] == LAYERS
    assert found.get("Argmax", 0) == argmax
    assert "FlashAttentionScoreGrad" not in found


@pytest.mark.parametrize("case", ["decode_prompt_bf16", "decode_token_fp16"])
def test_decoding(case, tmp_path):
    assert operators(case, tmp_path)["ScatterUpdate"] == 2 * LAYERS


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("wrong_head_count", "query_shape[1] must be equal to attribute 'head_num', but got 4 and 5"),
        ("wrong_target_length", "input1.shape = [128] and input2.shape = [126]"),
    ],
)
def test_wrong_shape_is_refused(case, message, tmp_path):
    done = run(case, tmp_path)
    assert done.returncode == 1
    assert message in done.stdout


def draw(*shape, seed=0, dtype=np.float32):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def test_attention_that_is_written_out_equals_the_cpu_one():
    set_up_device(CPU)
    q, k, v = (draw(2, 3, 8, 16, seed=seed, dtype=np.float16) for seed in range(3))
    keep = Tensor((np.random.default_rng(5).random((2, 3, 8, 8)) > 0.3).astype(np.float32) / 0.7)
    fused, cpu = ascend.AttentionAscend(3, 16, 32, flash=True), composed.Attention(16, 32)
    assert np.array_equal(fused(q, k, v, keep).asnumpy(), cpu(q, k, v, keep).asnumpy())
    changed = Tensor(np.concatenate([v.asnumpy()[:, :, :5], v.asnumpy()[:, :, 5:] + 1], axis=2))
    assert np.array_equal(fused(q, k, changed, keep).asnumpy()[:, :, :5], cpu(q, k, v, keep).asnumpy()[:, :, :5])


def test_compressed_mask_discards_the_future():
    mask = ascend.compressed_causal_mask()
    assert mask.shape == (2048, 2048)
    assert mask.dtype == ms.uint8
    rows, columns = np.indices((9, 9))
    assert np.array_equal(mask.asnumpy()[:9, :9] == 1, columns > rows)


def test_fused_operators_have_the_values_of_the_cpu_ones():
    set_up_device(CPU)
    x, weight, bias = draw(3, 5, 64), draw(64, seed=1), draw(64, seed=2)
    pairs = [
        (
            ascend.LayerNormAscend(64, 1e-5)(x, weight, bias),
            composed.LayerNorm(64, 1e-5)(x, weight, bias),
        ),
        (ascend.GeluNewAscend()(3 * x), composed.GeluNew()(3 * x)),
    ]
    for fused, cpu in pairs:
        assert np.allclose(fused.asnumpy(), cpu.asnumpy(), atol=1e-5)
