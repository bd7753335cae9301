"""The planner: counts of values, volumes calculated by hand, the calibration, verdicts, searches."""

import math
import subprocess
import sys

import pytest

from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates, world_size
from gpt2x.errors import UserError
from gpt2x.model import stats
from gpt2x.parallel.placement import owns, placements
from gpt2x.planner import report
from gpt2x.planner.roofline import plan_run
from gpt2x.planner.search import CLOSE, advise, search_layouts, tokens_per_s
from gpt2x.planner.values import model_values
from tests.support.configs import ROOT, typed

ATLAS = "hardware=atlas_800t_a2"
G13B = ["model=gpt2_13b", ATLAS, "trainer.seq_len=2048", "model.attention_dropout=0"]
G52B = ["model=gpt2_52b", ATLAS, "trainer.seq_len=1024", "trainer.global_batch_size=1024", "model.attention_dropout=0"]
SMALL = {"name": "t", "num_layers": 5, "num_heads": 4, "hidden_size": 32, "max_seq_len": 16, "vocab_size": 96}


def planned(*overrides):
    return plan_run(typed("train", *overrides))


# ---- parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("degrees", [(1, 1, 1), (2, 2, 2), (1, 4, 1), (1, 1, 3), (4, 1, 2)])
def test_each_parameter_is_owned_once(degrees, tied):
    data, tensor, pipeline = degrees
    model = ModelConfig(**SMALL, tie_embeddings=tied)
    parallel = ParallelConfig(name="t", data=data, tensor=tensor, pipeline=pipeline)
    total = local_total = 0
    for rank in range(world_size(parallel)):
        coordinates = Coordinates(parallel, rank)
        sizes = {name: math.prod(part.shape) for name, part in placements(model, coordinates).items()}
        local = model_values(model, coordinates)
        assert local.parameters == sum(sizes.values()), "the planner counts what the rank holds"
        local_total += local.parameters
        if coordinates.data == 0:
            total += sum(size for name, size in sizes.items() if owns(name, coordinates))
    assert total == stats.num_params(model)
    assert local_total >= data * total


def test_optimizer_states_are_sharded_and_counted_once():
    model = ModelConfig(**SMALL)
    parallel = ParallelConfig(name="t", data=4, optimizer_shards=4)
    states = [model_values(model, Coordinates(parallel, rank)).states for rank in range(4)]
    whole = stats.num_params(model)
    unsharded = whole - 4 * model_values(model, Coordinates(parallel, 0)).masters
    assert sum(states) == whole + 3 * unsharded
    assert unsharded == 0


# ---- volumes


def test_volumes_of_a_layout_by_hand():
    """tp2 on one node: two sums per layer, forward and backward, of 2 x 16 x 32 fp16 values; 2 (n - 1) / n = 1."""
    plan = planned("model=gpt2_tiny", ATLAS, "parallel=tp2", "trainer.seq_len=16", "trainer.global_batch_size=2",
                   "model.hidden_size=32", "model.vocab_size=96", "model.num_layers=3")  # fmt: skip
    sent = {part.payload: part.sent for part in plan.ranks[0].collectives}
    assert sent["hidden states"] == 3 * 4 * (2 * 16 * 32 * 2)
    assert sent["embedding"] == 2 * 16 * 32 * 4
    assert sent["gradient of the head"] == 2 * 16 * 32 * 2
    assert sent["cross entropy"] == 3 * (2 * 16) * 4
    assert not any(part.crosses_nodes for part in plan.ranks[0].collectives)


def test_the_data_axis_is_reduced_hierarchically_across_nodes():
    """16 replicas on two nodes: the 8 of a node exchange all bytes, then each exchanges 1/8 with the other node."""
    plan = planned("model=gpt2_small", ATLAS, "parallel.data=16", "trainer.global_batch_size=16", "trainer.seq_len=64")
    size = 4 * stats.num_params(plan.model)
    (part,) = plan.ranks[0].collectives
    assert part.sent == pytest.approx(2 * size * 7 / 8 + 2 * size / 8 / 2)
    link, network = plan.hardware.link_gb_per_s * 1e9, plan.hardware.network_gb_per_s * 1e9
    assert part.seconds == pytest.approx(2 * size / 8 / link + size / 8 / network)
    assert part.crosses_nodes


def test_pipeline_messages_and_the_tied_embedding():
    plan = planned("model=gpt2_small", ATLAS, "parallel=pp2", "trainer.global_batch_size=8", "trainer.seq_len=64")
    first, last = plan.ranks
    message = 4 * (2 * 64 * 768 * 2)  # four micro batches of two sequences, fp16
    assert {part.payload: part.sent for part in first.collectives} == {
        "hidden states": message,
        "gradient of the tied embedding": 50257 * 768 * 4,
    }
    assert {part.payload: part.sent for part in last.collectives} == {
        "gradients": message,
        "gradient of the tied embedding": 50257 * 768 * 4,
    }


def test_recomputation_and_stages_add_forward_passes():
    common = ["model=gpt2_small", ATLAS, "trainer.global_batch_size=8", "trainer.seq_len=64", "model.dropout=0"]
    none, block = planned(*common), planned(*common, "parallel.recompute=block")
    forward = stats.forward_flops_per_token(none.model, 64) * 8 * 64
    assert none.ranks[0].flops == pytest.approx(3 * forward)
    head = 2 * 50257 * 768 * 8 * 64
    assert block.ranks[0].flops == pytest.approx(4 * forward - head)
    first, last = planned(*common, "parallel=pp2").ranks
    assert first.flops / 4 == pytest.approx((last.flops - 3 * head) / 3)


# ---- speed


@pytest.mark.parametrize(("hardware", "published"), [("atlas_800t_a2", 1376), ("atlas_900_a2_podc", 1286)])
def test_efficiency_is_calibrated_by_the_references_finetune(hardware, published):
    """13B on one node: 8 fully sharded replicas of 2 x 2048 tokens, fp16."""
    plan = planned(*G13B, f"hardware={hardware}", "parallel=dp8", "trainer.global_batch_size=16")
    assert plan.speed.tokens_per_s == pytest.approx(published, rel=0.01)


def test_a_small_model_is_predicted_too_fast_by_less_than_a_third():
    """16 dies of 910C, GPT-2 124M, 32 x 1024 tokens each: 102,200 tokens/s per die, by a program without graphs."""
    plan = planned("model=gpt2_small", "model.vocab_size=50304", "model.dropout=0", "hardware=atlas_900_a3",
                   "parallel=dp8", "parallel.data=16", "trainer.seq_len=1024",
                   "trainer.global_batch_size=512")  # fmt: skip
    assert 1.0 < plan.speed.tokens_per_s / 102_200 < 1.33


def test_launches_limit_tiny_operators():
    def seconds(*overrides):
        return planned(*G13B, "model.hidden_size=80", "model.vocab_size=96", "trainer.global_batch_size=2",
                       *overrides).ranks[0].compute_s  # fmt: skip

    assert seconds("trainer.seq_len=16") == seconds("trainer.seq_len=32") == pytest.approx(40 * 90 * 10e-6)
    assert seconds("trainer.seq_len=16", "hardware.mode=pynative") == pytest.approx(40 * 90 * 17e-6)


def test_the_pipeline_waits_as_the_formula_says():
    plan = planned(*G52B, "parallel=dp8_pp16", "model.vocab_size=128", "parallel.optimizer_shards=1",
                   "parallel.zero_stage=0")  # fmt: skip
    assert plan.speed.waiting == pytest.approx(15 / (64 + 15), abs=0.02)


def test_speed_is_not_predicted_without_figures():
    plan = planned()
    assert plan.speed is None
    assert any("hardware=cpu: speed is not predicted without " in note for note in report.assumptions(typed("train")))


# ---- verdicts


def test_13b_on_eight_devices_does_not_fit_unless_weights_are_split():
    plan = planned(*G13B, "parallel=dp8", "parallel.zero_stage=0", "parallel.recompute=block",
                   "trainer.global_batch_size=16")  # fmt: skip
    assert not plan.fits
    lines = report.verdict(plan)
    assert lines[0].startswith("does not fit: ")
    assert any("parallel.tensor=8" in line and ", fits" in line for line in lines)
    assert any("parallel.zero_stage=3" in line and ", fits" in line for line in lines)
    assert not any("parallel.zero_stage=1" in line and ", fits" in line for line in lines)


def test_52b_as_the_reference_lays_it_out_fits():
    plan = planned(*G52B, "parallel=dp8_pp16")
    assert plan.fits
    assert report.verdict(plan)[0].startswith("fits: ")
    without = planned(*G52B, "parallel=dp8_pp16", "parallel.recompute=none", "parallel.zero_stage=1")
    assert not without.fits
    assert any(item.change == "parallel.recompute=block" and item.plan.fits for item in advise(without))


def test_several_changes_if_one_is_not_enough():
    common = ["model=gpt2_small", ATLAS, "hardware.memory_gb=3.65", "parallel=dp2", "trainer.global_batch_size=16",
              "trainer.micro_batch_size=8", "trainer.seq_len=1024", "parallel.vocab_parallel=false",
              "model.dropout=0"]  # fmt: skip
    plan = planned(*common)
    last = advise(plan)[-1]
    assert last.plan.fits
    assert len(last.change.split()) > 1
    again = planned(*common, *last.change.split())
    assert again.fits, "the advice can be typed as it stands"


def test_an_assumed_vocabulary_is_stated():
    config = typed("train", "model=gpt2_tiny", "plan=true")
    assert plan_run(config).model.vocab_size == config.tokenizer.vocab_size
    assert any("are assumed" in note for note in report.assumptions(config))
    assert planned("model=gpt2_tiny", "tokenizer=gpt2").model.vocab_size == 50257


# ---- search


def test_search_is_sorted_and_fits():
    result = search_layouts(typed("train", *G13B, "trainer.global_batch_size=8", "num_devices=32"))
    speeds = [tokens_per_s(plan) for plan in result.fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert all(plan.fits and world_size(plan.parallel) == 32 for plan in result.fitting)
    assert not any(plan.fits for plan in result.too_large)
    rows = report.search_tables(result, typed("train", *G13B, "num_devices=32"))[0].rows
    assert rows[0][-1] == "best"
    close = [plan for plan in result.fitting[1:] if tokens_per_s(plan) > (1 - CLOSE) * speeds[0]]
    assert sum("too close to tell" in row[-1] for row in rows) == len(close)


def test_a_search_states_why_layouts_do_not_fit():
    result = search_layouts(typed("train", *G13B, "trainer.global_batch_size=8", "num_devices=1"))
    assert not result.fitting
    (table,) = report.search_tables(result, typed("train", *G13B, "num_devices=1"))
    assert "GB too much" in table.rows[0][-1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_devices=32"], "hardware.peak_tflops"),
        (
            [ATLAS, "num_devices=37", "trainer.global_batch_size=8", "model=gpt2_small"],
            "num_devices=37: no layout divides",
        ),
    ],
)
def test_impossible_searches_are_rejected(overrides, words):
    with pytest.raises(UserError, match=words):
        search_layouts(typed("train", "model=gpt2_small", "trainer.global_batch_size=32", *overrides))


def test_an_assumed_vocabulary_is_padded():
    plan = planned("model=gpt2_tiny", "tokenizer=gpt2", "parallel=tp2", "model.num_heads=4")
    assert stats.padded_vocab_size(plan.model) == 50258


# ---- the program


@pytest.mark.launch
def test_plan_runs_nothing(tmp_path):
    """Import no mindspore, read no data and write no run directory; plan 52B in less than 1 GB."""
    code = (
        "import re, sys\n"
        "from pathlib import Path\nfrom gpt2x.commands.entry import start\n"
        "from gpt2x.runtime.role import Role\nfrom gpt2x.commands.hydra_entry import compose_config\n"
        f"config = compose_config('train', {['plan=true', 'parallel=dp8_pp16', *G52B]})\n"
        "start('train', config, Role(), Path())\n"
        "assert not {'mindspore', 'mlflow', 'matplotlib', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        # getrusage's peak would include that of the parent process
        "assert int(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]) < 1e6\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "GB (first stage)" in process.stdout
    command = [sys.executable, "-m", "gpt2x", "plan", "--search", "num_devices=8", *G13B, "trainer.global_batch_size=8",
               "tracker=none", f"paths.outputs={tmp_path}/outputs"]  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "that fit" in " ".join(process.stdout.split())
    assert not (tmp_path / "outputs").exists()


def test_tables_are_complete():
    plan = planned(*G52B, "parallel=dp8_pp16")
    for table in report.plan_tables(plan):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert table.text().count("\n") == len(table.rows) + 2
        assert table.markdown().count("\n") == len(table.rows) + 3


# ---- what is trained

LARGE = ["model=gpt2_xl", "hardware=atlas_800t_a2", "trainer.seq_len=512", "trainer.global_batch_size=16",
         "trainer.micro_batch_size=2", "plan=true"]  # fmt: skip


@pytest.mark.parametrize("layout", ["parallel=dp8", "parallel=dp8_zero"])
def test_a_plan_of_adapters_counts_only_them(layout):
    whole, adapted = planned(*LARGE, layout).fullest, planned(*LARGE, layout, "lora=r8").fullest
    num_trained = 8 * 2 * 48 * (1600 + 1600)  # rank x (q, v) x layers x (in + out)
    assert adapted.trained.parameters == num_trained
    assert adapted.memory.gradients == 4 * num_trained
    assert adapted.memory.weights - whole.memory.weights == 4 * num_trained
    shards = 8 if layout.endswith("zero") else 1
    assert adapted.memory.optimizer == pytest.approx(whole.memory.optimizer * num_trained / whole.values.parameters)
    assert adapted.trained.states == num_trained // shards
    gradients = [part for part in adapted.collectives if part.axis == "data"]
    assert 0 < sum(part.sent for part in gradients) < 3 * 4 * num_trained
    assert adapted.flops < whole.flops


def test_a_plan_of_frozen_tensors_leaves_out_their_gradients():
    whole, frozen = planned(*LARGE, "parallel=dp8"), planned(*LARGE, "parallel=dp8", "trainer.frozen=['h.[0-9].*']")
    trained = 1 - 10 * (12 * 1600**2 + 13 * 1600) / whole.fullest.values.parameters
    for part in ("gradients", "optimizer"):
        fraction = getattr(frozen.fullest.memory, part) / getattr(whole.fullest.memory, part)
        assert fraction == pytest.approx(trained)
    saved = 2 * 10 * 12 * 1600**2 * 2 * 512  # the weight gradients of ten blocks, for one micro batch of 2
    assert whole.fullest.flops - frozen.fullest.flops == pytest.approx(saved * whole.micro_batches)
    assert frozen.speed.tokens_per_s > whole.speed.tokens_per_s


def test_a_search_plans_adapters():
    options = [
        "trainer.micro_batch_size=null",
        "plan=search",
        "num_devices=2",
        "lora=r8",
        "model.pad_vocab_multiple=128",
    ]
    result = search_layouts(typed("train", "model=gpt2_small", *LARGE[1:-1], *options))
    assert result.fitting
    assert all(plan.trainable.is_adapter for plan in result.fitting)
