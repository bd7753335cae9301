"""The planner and `parallel.zero_stage`: memory and volumes by hand, stages that are chosen, limits."""

from dataclasses import replace

import pytest

from gpt2x.config.layout import Coordinates
from gpt2x.errors import UserError
from gpt2x.model import stats
from gpt2x.planner import report
from gpt2x.planner.choose import settle, sharding_reason
from gpt2x.planner.memory import num_communicators
from gpt2x.planner.roofline import plan_run
from gpt2x.planner.search import advise, search_layouts
from gpt2x.planner.values import model_values
from tests.support.configs import typed

ATLAS = "hardware=atlas_800t_a2"
NODE = ["model=gpt2_13b", ATLAS, "parallel=dp8", "trainer.seq_len=2048", "model.attention_dropout=0"]
MEDIUM = ["model=gpt2_medium", ATLAS, "trainer.seq_len=1024", "model.dropout=0", "parallel=dp8",
          "trainer.global_batch_size=16", "parallel.micro_batches=2"]  # fmt: skip


def planned(*overrides):
    return plan_run(typed("train", *overrides))


def staged(stage, *overrides):
    return planned(*MEDIUM, f"parallel.zero_stage={stage}", *overrides).fullest


# ---- memory


def test_each_stage_splits_one_more_part():
    ranks = [staged(stage, "model.pad_vocab_multiple=8") for stage in range(4)]
    none, states, gradients, weights = (rank.memory for rank in ranks)
    size = 4 * ranks[0].values.parameters
    assert none.gradients == states.gradients == 2 * size
    assert gradients.gradients == pytest.approx(size * 9 / 8, rel=1e-3)
    assert states.optimizer == gradients.optimizer == pytest.approx(3 * size / 8, rel=1e-3)
    assert weights.gradients < size / 2
    assert weights.weights < 0.6 * gradients.weights


def test_fully_sharded_blocks_by_hand():
    rank = staged(3)
    model, blocks, block = planned(*MEDIUM).model, 24, 12 * 1024**2 + 13 * 1024
    matrices, outside = 12 * 1024**2, stats.num_params(planned(*MEDIUM).model) - blocks * block
    slot = 2 * matrices + 4 * (block - matrices)
    memory = rank.memory
    assert memory.weights == 4 * (outside + blocks * block / 8) + 2 * slot + 2 * 50257 * 1024
    assert memory.gradients == 4 * (2 * outside + blocks * block / 8) + 2 * block
    hidden = 1024 * 1024 * 2  # one sequence of 1024 tokens, fp16
    one = planned(*MEDIUM, "parallel.zero_stage=1", "parallel.recompute=block").fullest.memory
    assert memory.activations == one.activations + hidden, "inputs of all blocks, the last output, and one block"
    assert stats.num_params(model) == rank.values.parameters


def test_rows_that_do_not_divide_are_padded():
    config = typed("train", *MEDIUM, "parallel.data=7", "trainer.global_batch_size=14", "parallel.zero_stage=3")
    values = model_values(plan_run(config).model, Coordinates(config.parallel, 6))
    padded = sum(-(-shape[0] // 7) * (shape[1] if len(shape) > 1 else 1)
                 for shape in stats.block_shapes(config.model).values())  # fmt: skip
    assert values.block_states == 24 * padded


@pytest.mark.parametrize("trained", ["lora=r8", "trainer.frozen=['*.attn.*']"])
def test_frozen_weights_are_split_too(trained):
    rank = staged(3, trained, "plan=true")
    assert rank.memory.weights < 0.6 * staged(2, trained, "plan=true").memory.weights
    assert rank.memory.gradients < staged(3).memory.gradients
    assert rank.memory.optimizer < staged(3).memory.optimizer


# ---- communication


def test_volumes_of_full_sharding_by_hand():
    """Two micro batches: each gathers 24 blocks twice and scatters their gradients once, in fp16."""
    sent = {part.payload: part for part in staged(3).collectives}
    matrices, vectors, blocks = 12 * 1024**2, 13 * 1024, 24
    gathered = sent["weights of blocks, gathered"]
    assert gathered.sent == pytest.approx(2 * 2 * blocks * (2 * matrices + 4 * vectors) * 7 / 8)
    assert sent["gradients of blocks, scattered"].sent == pytest.approx(2 * blocks * 2 * (matrices + vectors) * 7 / 8)
    sums = {part.payload: part for part in staged(3, "parallel.reduce_dtype=fp32").collectives}
    ratio = sums["gradients of blocks, scattered"].sent / sent["gradients of blocks, scattered"].sent
    assert ratio == pytest.approx(2)


def test_gathers_hide_behind_computation_as_far_as_it_lasts():
    def gather(*overrides):
        parts = staged(3, *overrides).collectives
        return next(part for part in parts if part.payload == "weights of blocks, gathered")

    fast, slow = gather("hardware.link_gb_per_s=1000"), gather("hardware.link_gb_per_s=0.1")
    assert fast.seconds == 0
    assert fast.hidden_s > 0
    assert slow.seconds > slow.hidden_s > fast.hidden_s
    rows = report.communication_table(planned(*MEDIUM, "parallel.zero_stage=3"))[0].rows
    assert any(float(row[-1].split(", ")[-1]) > 0 for row in rows)


def test_without_gathering_ahead_there_is_one_slot_and_nothing_is_hidden():
    one, two = staged(3, "parallel.gather_ahead=false"), staged(3)
    block = 2 * 12 * 1024**2 + 4 * 13 * 1024
    assert two.memory.weights - one.memory.weights == block
    assert all(part.hidden_s == 0 for part in one.collectives)
    pipeline = ["parallel.pipeline=24", "trainer.global_batch_size=16"]
    assert staged(3, "parallel.gather_ahead=false", *pipeline).layers == 1, "a stage of one block has one slot"


def test_hybrid_sharding_sums_shards_over_replicas():
    parts = [part.payload for part in staged(3, "parallel.optimizer_shards=4").collectives]
    assert "gradients of blocks of a shard" in parts
    assert "gradients of blocks of a shard" not in [part.payload for part in staged(3).collectives]


def test_stage_2_scatters_in_each_micro_batch():
    def scattered(stage):
        parts = staged(stage).collectives
        return next(part.sent for part in parts if part.payload == "gradients, scattered")

    assert scattered(2) == 2 * scattered(1)


# ---- the stage that is chosen


@pytest.mark.parametrize(
    ("overrides", "stage", "shards"),
    [
        (["parallel=single"], 0, 1),
        (["parallel=dp2"], 0, 1),
        (["parallel=zero2"], 1, 2),
        ([*NODE, "model=gpt2_small", "trainer.seq_len=1024"], 0, 1),
        (NODE, 3, 8),
        ([*NODE, "parallel.optimizer_shards=4"], 3, 4),
        ([*NODE, "parallel.optimizer_shards=1"], 0, 1),
        ([*NODE, "parallel.zero_stage=1"], 1, 8),
        ([*NODE, "optimizer.layer_decay=0.9"], 2, 8),
        ([*NODE, "parallel.pipeline=40", "parallel.micro_batches=1"], 0, 1),
        (["model=gpt2_52b", ATLAS, "parallel=dp8_pp16", "trainer.seq_len=1024"], 3, 8),
        (["model=gpt2_52b", ATLAS, "parallel=dp8_pp16", "trainer.seq_len=1024",
          "parallel.recompute=block"], 1, 8),
    ],
)  # fmt: skip
def test_the_lowest_stage_that_fits_is_chosen(overrides, stage, shards):
    config = typed("train", *overrides)
    assert (config.parallel.zero_stage, config.parallel.optimizer_shards) == (stage, shards)
    assert settle(config) == config, "a settled configuration stays as it is"


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["optimizer.layer_decay=0.9"], "optimizer.layer_decay=0.9"),
        (["trainer.frozen=['h.[0-9].*']"], "trainer.frozen"),
        (["parallel.pipeline=24", "trainer.global_batch_size=16"], "parallel.pipeline=24"),
    ],
)
def test_runs_that_need_whole_blocks_are_told(overrides, cause):
    with pytest.raises(UserError, match=r"use parallel\.zero_stage=[12]") as caught:
        typed("train", *MEDIUM, "parallel.zero_stage=3", *overrides)
    assert cause in str(caught.value)


def test_a_plan_says_why_weights_are_split():
    config = typed("train", *NODE)
    assert sharding_reason(config).startswith("zero_stage 3 over 8 replicas: stage 2 would need ")
    assert sharding_reason(config).endswith(" of 59.0 GB")
    assert sharding_reason(typed("train")) == ""


# ---- the batch and the vocabulary


@pytest.mark.parametrize(
    ("overrides", "batch"),
    [
        ([], 4),
        (["parallel=dp8"], 8),
        (["parallel=pp2"], 4),
        (["parallel=dp2_pp2", "parallel.micro_batches=3"], 6),
        (["trainer.micro_batch_size=3"], 6),
        (["parallel=dp2", "trainer.micro_batch_size=8"], 16),
        (["plan=search", "num_devices=32"], 32),
        (["trainer.global_batch_size=10"], 10),
    ],
)
def test_a_batch_that_nobody_typed_suits_the_layout(overrides, batch):
    assert typed("train", *overrides).trainer.batch == batch


def test_a_vocabulary_is_padded_for_its_layout():
    config = typed("train", "model=gpt2_small", "parallel=tp4")
    assert config.model.pad_vocab_multiple == 4
    assert stats.padded_vocab_size(plan_run(config).model) == 50260
    assert typed("train", "model=gpt2_13b", "parallel=tp8").model.pad_vocab_multiple == 128
    whole = typed("train", "model=gpt2_small", "parallel=tp4", "parallel.vocab_parallel=false")
    assert whole.model.pad_vocab_multiple == 1


# ---- advice and search


def test_advice_names_the_stage():
    plan = planned(*NODE, "parallel.zero_stage=0", "parallel.recompute=block")
    changes = {advice.change: advice.plan for advice in advise(plan)}
    assert changes["parallel.zero_stage=3 parallel.optimizer_shards=8"].fits
    assert not changes["parallel.zero_stage=2 parallel.optimizer_shards=8"].fits


def test_a_search_varies_the_stage_and_shards_within_a_node():
    config = typed("train", *NODE, "plan=search", "num_devices=16", "trainer.global_batch_size=32",
                   "model.num_layers=8")  # fmt: skip
    result = search_layouts(config)
    layouts = {plan.parallel.name: plan.parallel for plan in [*result.fitting, *result.too_large]}
    assert layouts["dp16"].zero_stage in (1, 2, 3)
    limited = search_layouts(replace(config, optimizer=replace(config.optimizer, layer_decay=0.9)))
    assert all((plan.parallel.zero_stage or 0) < 3 for plan in limited.fitting)


# ---- communicators


@pytest.mark.parametrize(
    ("overrides", "rank"),
    [
        (["parallel=single"], 0),
        (["parallel=dp8"], 3),
        (["parallel=tp2"], 1),
        (["parallel=zero2"], 1),
        (["parallel=dp8", "parallel.optimizer_shards=4"], 5),
        (["parallel=dp2_tp2_pp2"], 0),
        (["parallel=dp8_pp16", "model.num_layers=32"], 0),
        (["parallel=dp8_pp16", "model.num_layers=32"], 64),
    ],
)
def test_communicators_are_those_of_the_mesh(overrides, rank, monkeypatch):
    from gpt2x.parallel.mesh import Mesh

    created = []
    monkeypatch.setattr("mindspore.communication.create_group", lambda name, ranks: created.append(name))
    parallel = typed("train", "model=gpt2_medium", ATLAS, *overrides).parallel
    mesh = Mesh(parallel, "Ascend", rank)
    assert num_communicators(Coordinates(parallel, rank)) == len(created) + (mesh.world is not None)


def test_communicators_take_memory_of_a_device_and_none_of_the_cpu():
    assert planned(*NODE).fullest.memory.communicators == 2 * 200 * 2**20
    assert planned("parallel=dp2").fullest.memory.communicators == 0
