"""Parallel layouts: a process' graphs compiled by MindSpore's frontend for pretended Ascends.

The counts are exact. A collective of the CPU's (`gpt2x/parallel/collectives.py`) would show as an AllReduce too many in
place of an AllGather or a ReduceScatter.
"""

import pytest

from tests.ascend import kernels
from tests.ascend.layouts import PRECISIONS
from tests.ascend.runs import Reports, compile_all, require_frontend

SMALL = 1  # layers, of a stage under pipelining
ADAPTED = 2  # layers with adapters, of which the first needs no gradient of its input
PEAK_GB = 4  # of a full-size case: with memory for its parameters, which take 7 to 154 GB, none would stay below

COLLECTIVES = ("AllReduce", "ReduceScatter", "AllGather")


CASES = "layouts"  # the module whose cases `compiled` compiles
pytestmark = [pytest.mark.ascend, pytest.mark.timeout(1800)]


def case(name, *values, marks=()):
    """Return the parameters of a test of a case."""
    return pytest.param(name, *values, marks=[pytest.mark.needs(name), *marks], id=name)


RARE = [pytest.mark.exhaustive]  # a case whose graphs are parts of other cases


def large_report(name, folder):
    """Compile a case of full size in a process of its own, whose peak memory is the case's."""
    require_frontend()
    report = Reports(compile_all(CASES, [name], folder, timeout_s=1150)).of(name)
    assert report["peak_gb"] < PEAK_GB
    return report


def large(name, folder):
    """Return the operators of a case of full size."""
    return large_report(name, folder)["operators"]


def collectives(graph):
    """(all-reduces, reduce-scatters, all-gathers)."""
    return tuple(graph.get(name, 0) for name in COLLECTIVES)


def check_layers(graph, layers, passes, layer_norms):
    """Flash attention in every layer, `passes` times where it is recomputed, and one gradient of each."""
    assert graph["FlashAttentionScore"] == passes * layers
    assert graph["FlashAttentionScoreGrad"] == layers
    assert graph["LayerNormGradExt"] == layer_norms
    assert "Softmax" not in graph


def check_tensor(found, layers, buckets):
    """Two sums a layer forward, two backward, one again where the block is recomputed; the embedding's, the cross
    entropy's and the head's gradient's. Gradients over the data axis, then the loss and the norm.
    """
    assert collectives(found["UpdateFromBatch"]) == (5 * layers + 3 + 2, buckets, 0)
    check_layers(found["UpdateFromBatch"], layers, 2, 2 * layers + 1)
    assert found["UpdateFromBatch"]["AdamW"] == 12 * layers + 4
    assert collectives(found["ParameterAllGather"]) == (0, 0, buckets)


def check_sequence(found, layers, buckets):
    """A gather and a scatter in place of each sum; in backward the other of the two.

    All gathers are recomputed, and one scatter a layer. Sums: the embedding, the cross entropy, the head's gradient,
    the gradients of this process' tokens, the loss, the norm.
    """
    assert collectives(found["UpdateFromBatch"]) == (6, 5 * layers + buckets, 6 * layers + 2)
    check_layers(found["UpdateFromBatch"], layers, 2, 2 * layers + 1)
    assert collectives(found["ParameterAllGather"]) == (0, 0, buckets)


def check_replicas(found, layers, buckets):
    """Gradients summed, then the loss."""
    assert list(found) == ["UpdateFromBatch"]
    assert collectives(found["UpdateFromBatch"]) == (buckets + 1, 0, 0)
    check_layers(found["UpdateFromBatch"], layers, 1, 2 * layers + 1)
    assert found["UpdateFromBatch"]["AdamW"] == 12 * layers + 4


def check_shards(found, layers, buckets):
    """Gradients scattered, then the loss and the norm summed; parameters gathered."""
    assert collectives(found["UpdateFromBatch"]) == (2, buckets, 0)
    check_layers(found["UpdateFromBatch"], layers, 1, 2 * layers + 1)
    assert collectives(found["ParameterAllGather"]) == (0, 0, buckets)


def check_stage(found, layers, buckets, stage):
    """Forward and backward communicate outside graphs; the update sums a tied embedding on the ends as well."""
    if stage == "last":
        assert list(found) == ["LastStage", "UpdateFromSums", "ParameterAllGather"]
        backward, own = found["LastStage"], 3  # the last layer norm, the tied embedding
    else:
        assert list(found) == ["StageForward", "StageBackward", "UpdateFromSums", "ParameterAllGather"]
        assert found["StageForward"]["FlashAttentionScore"] == layers
        assert "FlashAttentionScoreGrad" not in found["StageForward"]
        assert collectives(found["StageForward"]) == (0, 0, 0)
        backward, own = found["StageBackward"], 2 if stage == "first" else 0
    check_layers(backward, layers, 2, 2 * layers + (stage == "last"))
    assert collectives(backward) == (0, 0, 0)
    assert backward["AssignAdd"] == 12 * layers + own + 1, "the sums of the gradients, and the loss"
    assert collectives(found["UpdateFromSums"]) == (2 if stage == "middle" else 3, buckets, 0)
    assert found["UpdateFromSums"]["AdamW"] == 12 * layers + own
    assert collectives(found["ParameterAllGather"]) == (0, 0, buckets)


def check_decoder(found, layers):
    """Two sums a layer and the embedding's; the logits gathered. A prompt and one token."""
    for graph in (found["Decoder"], found["Decoder again"]):
        assert collectives(graph) == (2 * layers + 1, 0, 1)
        assert graph["ScatterUpdate"] == 2 * layers


@pytest.mark.parametrize(
    "name", [case("tp_dropout_fp16"), case("tp_fp16", marks=RARE), case("tp_dropout_bf16", marks=RARE)]
)
def test_tensor_parallel_update(compiled, name):
    check_tensor(compiled.of(name)["operators"], SMALL, 1)


@pytest.mark.needs("tp_accumulated_bf16")
def test_tensor_parallel_update_of_several_micro_batches(compiled):
    found = compiled.of("tp_accumulated_bf16")["operators"]
    assert collectives(found["Accumulation"]) == (5 * SMALL + 3, 0, 0)
    check_layers(found["Accumulation"], SMALL, 2, 2 * SMALL + 1)
    assert collectives(found["UpdateFromSums"]) == (2, 1, 0)
    assert collectives(found["ParameterAllGather"]) == (0, 0, 1)


@pytest.mark.needs("sp_bf16")
def test_sequence_parallel_update(compiled):
    check_sequence(compiled.of("sp_bf16")["operators"], SMALL, 1)


@pytest.mark.needs("lora_tp_bf16")
def test_tensor_parallel_update_of_adapters(compiled):
    """Beside what a full update sums over the tensor axis, the gradients of the copied factors, in one bucket; the
    first block needs no gradient of its input.
    """
    found = compiled.of("lora_tp_bf16")["operators"]
    all_reduces, scatters, gathers = collectives(found["UpdateFromBatch"])
    assert all_reduces == 5 * ADAPTED + 3 + 2
    assert (scatters, gathers) == (1, 0)
    assert found["UpdateFromBatch"]["AdamW"] == 2 * 5 * ADAPTED


@pytest.mark.needs("dp_fp16")
def test_update_of_replicas(compiled):
    check_replicas(compiled.of("dp_fp16")["operators"], SMALL, 1)


@pytest.mark.needs("zero_bf16")
def test_update_of_replicas_that_share_the_optimizer(compiled):
    check_shards(compiled.of("zero_bf16")["operators"], SMALL, 1)


BLOCK_GRAPHS = ["Fill", "BlockForward", "BlockForward again", "BlockBackward", "BlockBackward again"]
END_GRAPHS = {"first": ["StageForward", "StageBackward"], "middle": [], "last": ["LastStage"]}


def check_blocks(report, ends=("first", "last")):
    """Full sharding: one graph per direction and slot for any number of blocks, and the order of its communication.

    `ends` are the ends of the model that the process has.
    """
    found, overlaps = report["operators"], report["overlaps"]
    of_ends = [graph for end in ends for graph in END_GRAPHS[end]]
    all_gather = ["ParameterAllGather"] if of_ends else []  # of what is no part of a block
    assert list(found) == [*BLOCK_GRAPHS, *of_ends, "UpdateFromSums", *all_gather]
    for slot in ("", " again"):
        forward, backward = f"BlockForward{slot}", f"BlockBackward{slot}"
        assert collectives(found[forward]) == (0, 0, 2), "the next block's matrices, and its vectors"
        assert collectives(found[backward]) == (0, 2, 2)
        assert (found[forward]["FlashAttentionScore"], found[backward]["FlashAttentionScore"]) == (1, 1)
        for name in (forward, backward):
            for collective in overlaps[name]:
                if collective["operator"] == "AllGather":
                    assert (collective["before"], collective["after"]) == ({}, {}), "it overlaps the whole block"
                    assert collective["beside"]["MatMul"] == found[name]["MatMul"]
        scatters = [each for each in overlaps[backward] if each["operator"] == "ReduceScatter"]
        assert all(each["after"] == {} for each in scatters), "nothing in the graph waits for a scatter"
        assert min(each["beside"]["MatMul"] for each in scatters) == 1, "that of matrices waits for nearly all"
    if ends == ("first", "last"):
        assert collectives(found["UpdateFromSums"])[0] == 2, "the loss and the norm"
        assert found["UpdateFromSums"]["AdamW"] == 2 + 4, "two stacks, whatever the number of blocks"


@pytest.mark.needs("full_sharding_bf16")
def test_blocks_of_full_sharding(compiled):
    check_blocks(compiled.of("full_sharding_bf16"))


@pytest.mark.parametrize(
    ("name", "stage"), [case("pp_first_bf16", "first"), case("pp_middle_fp16", "middle"), case("pp_last_bf16", "last")]
)
def test_stage(compiled, name, stage):
    check_stage(compiled.of(name)["operators"], SMALL, 1, stage)


@pytest.mark.needs("decode_fp16")
def test_tensor_parallel_decoder(compiled):
    check_decoder(compiled.of("decode_fp16")["operators"], SMALL)


KERNEL_CASES = (
    "tp_accumulated_bf16", "tp_dropout_fp16", "sp_bf16", "lora_tp_bf16", "dp_fp16", "zero_bf16", "decode_fp16",
    "full_sharding_bf16", "pp_first_bf16", "pp_middle_fp16", "pp_last_bf16",
)  # fmt: skip


@pytest.mark.needs(*KERNEL_CASES)
def test_operators_of_layouts_have_aclnn_kernels_or_a_documented_reason(compiled):
    graphs = [graph for name in KERNEL_CASES for graph in compiled.of(name)["operators"].values()]
    found = kernels.find_kernels(set().union(*graphs) - kernels.NOT_LAUNCHED - kernels.ON_HOST)
    assert not [name for name, paths in found.items() if not any(paths)], "would fail on a device"
    without = {name for name, (has_aclnn, _) in found.items() if not has_aclnn} - kernels.COMMUNICATION
    assert without - kernels.documented() == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        case("wrong_head_count", "must be divisible by `head_num`, but got 32 and 3", marks=RARE),
        case("wrong_head_split", "x_shape: [const vector]{2, 8, 32}, and out_shape: [const vector]{2, 8, 2, 32}"),
        case("wrong_message", "input shape: [const vector]{2, 64, 320}, gamma shape: [const vector]{256}"),
    ],
)
def test_wrong_shape_is_rejected(compiled, name, message):
    assert message in compiled.rejection(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", PRECISIONS)
class TestFullSize:
    """The shipped layouts of 13B and 52B. Buckets: matrices beyond 8 M values (a share of them) travel alone."""

    def test_13b_dp4_tp8(self, precision, tmp_path):
        check_tensor(large(f"13b_dp4_tp8_{precision}", tmp_path), 40, 243)

    def test_13b_dp8(self, precision, tmp_path):
        check_replicas(large(f"13b_dp8_{precision}", tmp_path), 40, 323)

    def test_13b_dp8_full_sharding(self, precision, tmp_path):
        check_blocks(large_report(f"13b_dp8_full_sharding_{precision}", tmp_path))

    def test_13b_dp8_zero(self, precision, tmp_path):
        check_shards(large(f"13b_dp8_zero_{precision}", tmp_path), 40, 323)

    @pytest.mark.parametrize(("stage", "buckets"), [("first", 35), ("middle", 33), ("last", 34)])
    def test_52b_dp8_pp16(self, stage, buckets, precision, tmp_path):
        check_stage(large(f"52b_{stage}_{precision}", tmp_path), 4, buckets, stage)

    @pytest.mark.parametrize("stage", ["first", "middle", "last"])
    def test_52b_dp8_pp16_full_sharding(self, stage, precision, tmp_path):
        check_blocks(large_report(f"52b_{stage}_full_sharding_{precision}", tmp_path), (stage,))

    def test_13b_decoder_tp8(self, precision, tmp_path):
        check_decoder(large(f"13b_decode_tp8_{precision}", tmp_path), 40)


@pytest.mark.exhaustive
def test_sequence_parallel_update_of_four_layers_of_13b(tmp_path):
    check_sequence(large("13b_sp_fp16", tmp_path), 4, 23)
