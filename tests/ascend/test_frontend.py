"""The Ascend branch: compiled by MindSpore's frontend for a pretended Ascend, and its values where the CPU has them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from gpt2x.ops import ascend, composed
from gpt2x.runtime.device import set_up_device
from tests.ascend import frontend, kernels
from tests.support.models import CPU

LAYERS = frontend.SMALL.num_layers


CASES = "frontend"  # the module whose cases `compiled` compiles
pretended = pytest.mark.ascend
timeout = pytest.mark.timeout(1800)


def case(name, *values, marks=()):
    """Return the parameters of a test of a case."""
    return pytest.param(name, *values, marks=[pytest.mark.needs(name), pretended, timeout, *marks], id=name)


@pytest.mark.parametrize(
    ("name", "forward"),
    [case("train_fp16", 1), case("train_bf16", 1), case("train_fp16_recompute", 2, marks=[pytest.mark.exhaustive])],
)
def test_update_with_flash_attention(compiled, name, forward):
    operators = compiled.of(name)
    assert operators["FlashAttentionScore"] == forward * LAYERS
    assert operators["FlashAttentionScoreGrad"] == LAYERS
    assert operators["LayerNormGradExt"] == 2 * LAYERS + 1
    assert operators["AdamW"] == 12 * LAYERS + 4
    assert operators["EmbeddingDenseBackward"] == 2
    assert operators["Square"] == 12 * LAYERS + 4, "the norm of the gradients"
    assert "Softmax" not in operators


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        case("train_fp16_dropout", 1, marks=[pytest.mark.exhaustive]),
        case("train_bf16_dropout_recompute", 2),
        case("train_fp16_dropout_packed", 1),
    ],
)
def test_flash_attention_drops_weights(compiled, name, forward):
    operators = compiled.of(name)
    assert operators["FlashAttentionScore"] == forward * LAYERS
    assert operators["FlashAttentionScoreGrad"] == LAYERS
    assert operators.get("GeLU", 0) + operators.get("GeluExt", 0) == forward * LAYERS
    assert "Softmax" not in operators


@pretended
@timeout
@pytest.mark.needs("train_fp32")
def test_attention_in_fp32_is_written_out(compiled):
    operators = compiled.of("train_fp32")
    assert operators["Softmax"] == LAYERS
    assert "FlashAttentionScore" not in operators


@pretended
@timeout
@pytest.mark.exhaustive
@pytest.mark.needs("train_bf16_accumulation_recompute")
def test_recompute_while_micro_batches_accumulate(compiled):
    assert compiled.of("train_bf16_accumulation_recompute")["FlashAttentionScore"] == 2 * LAYERS


@pretended
@timeout
@pytest.mark.needs("train_bf16_packed_recompute")
def test_packed_rows_are_sequences_of_flash_attention(compiled):
    operators = compiled.of("train_bf16_packed_recompute")
    assert operators["FlashAttentionScore"] == 2 * LAYERS
    assert operators["FlashAttentionScoreGrad"] == LAYERS
    assert operators["TensorToTuple"] == 2, "the ends of queries and of keys, once for all layers"
    assert "LogicalOr" not in operators, "no mask (T, T)"


@pretended
@timeout
@pytest.mark.exhaustive
@pytest.mark.needs("train_13b")
def test_update_of_the_13b_model(compiled):
    operators = compiled.of("train_13b")
    assert operators["FlashAttentionScoreGrad"] == 40
    assert operators["FlashAttentionScore"] == 2 * 40, "recomputed"


@pytest.mark.parametrize(("name", "argmax"), [case("evaluate_fp16", 0), case("score_greedily_fp16", 1)])
def test_evaluation(compiled, name, argmax):
    operators = compiled.of(name)
    assert operators["FlashAttentionScore"] == LAYERS
    assert operators.get("Argmax", 0) == argmax
    assert "FlashAttentionScoreGrad" not in operators


@pytest.mark.parametrize("name", [case("decode_prompt_bf16"), case("decode_token_fp16")])
def test_decoding(compiled, name):
    assert compiled.of(name)["ScatterUpdate"] == 2 * LAYERS


KERNEL_CASES = (
    "train_fp16", "train_bf16", "train_fp32", "train_bf16_accumulation_recompute", "train_bf16_packed_recompute",
    "train_bf16_dropout_recompute", "train_fp16_dropout_packed", "evaluate_fp16", "score_greedily_fp16",
    "decode_prompt_bf16", "decode_token_fp16",
)  # fmt: skip


@pretended
@timeout
@pytest.mark.needs(*KERNEL_CASES)
def test_operators_have_aclnn_kernels_or_a_documented_reason(compiled):
    operators = set().union(*(compiled.of(name) for name in KERNEL_CASES))
    operators -= kernels.NOT_LAUNCHED | kernels.ON_HOST
    found = kernels.find_kernels({*operators, "Nonsense"})
    assert found.pop("Nonsense") == (False, False)
    assert found["FlashAttentionScore"] == (True, True)
    assert not [name for name, paths in found.items() if not any(paths)], "would fail on a device"
    without = {name for name, (has_aclnn, _) in found.items() if not has_aclnn}
    assert without - kernels.documented() == set()
    elsewhere = {"Pad", "Slice", "ScatterAdd", "Adam", "Assign"}  # in layouts, and with groups of rates
    assert kernels.documented() - without <= elsewhere


@pytest.mark.parametrize(
    ("name", "message"),
    [
        case("wrong_head_count", "must be divisible by `head_num`, but got 64 and 5"),
        case("wrong_target_length", "input1.shape = [128] and input2.shape = [126]"),
    ],
)
def test_wrong_shape_is_rejected(compiled, name, message):
    assert message in compiled.rejection(name)


def draw(*shape, seed=0, dtype=np.float32):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


@pytest.mark.run
def test_dropped_rows_that_no_byte_divides_are_written_out():
    set_up_device(CPU)
    qkv, randomness = draw(2, 6, 144, dtype=np.float16), (Tensor(7, ms.int32), Tensor(np.arange(12).reshape(-1, 1)))
    device = frontend.hardware(precision="fp16")
    dropout = composed.Dropout(0.3, 5, 32)
    fused = ascend.Ascend(device).attention(3, 16, 32, dropout)
    cpu = composed.Composed(device).attention(3, 16, 32, dropout)
    randomness = randomness[0], ops.cast(randomness[1], ms.int32)
    assert np.array_equal(fused(qkv, randomness).asnumpy(), cpu(qkv, randomness).asnumpy())


def test_compressed_mask_discards_the_future():
    mask = ascend.compressed_causal_mask()
    assert mask.shape == (2048, 2048)
    assert mask.dtype == ms.uint8
    rows, columns = np.indices((9, 9))
    assert np.array_equal(mask.asnumpy()[:9, :9] == 1, columns > rows)


@pytest.mark.run
def test_gelu_has_the_values_of_the_cpu():
    set_up_device(CPU)
    x = draw(3, 5, 64)
    assert np.allclose(ascend.GeluNew()(3 * x).asnumpy(), composed.GeluNew()(3 * x).asnumpy(), atol=1e-5)
