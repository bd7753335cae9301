"""The plan of scoring and decoding: bytes and seconds by hand, and single changes that save memory."""

from dataclasses import replace

import pytest

from gpt2x.config import ParallelConfig
from gpt2x.planner.inference import Decoding, Scoring, plan_inference, smaller_plans
from gpt2x.planner.report import inference_table, inference_verdict
from tests.support.configs import typed

SINGLE = ParallelConfig(name="single")
MEDIUM = typed("train", "model=gpt2_medium", "tokenizer=gpt2").model
MATRICES, HEAD = 24 * 12 * 1024**2, 50257 * 1024
VECTORS = 24 * 13 * 1024 + 1024 * 1024 + 2 * 1024  # with the positions
DEVICE = typed("train", "hardware=atlas_800t_a2").hardware
CPU = typed("train").hardware


def test_a_device_keeps_matrices_of_blocks_in_the_compute_dtype():
    memory = plan_inference(MEDIUM, SINGLE, DEVICE, Decoding(4, 256, 64)).memory
    assert memory.weights == 2 * MATRICES + 4 * (HEAD + VECTORS) + 2 * HEAD
    assert memory.cache == 2 * 2 * 24 * 1024 * (4 * 256 + 64)
    assert memory.logits == 4 * 4 * 50257
    assert memory.communicators == 0


def test_the_cpu_keeps_fp32_and_the_copies_that_decoding_reads():
    def weights(kind):
        return plan_inference(MEDIUM, SINGLE, CPU, Decoding(1, 32, 32, kind)).memory.weights

    assert weights("fp32") == 4 * (MATRICES + HEAD + VECTORS)
    assert weights("bf16") - weights("fp32") == 2 * (MATRICES + HEAD)
    assert weights("int8") - weights("fp32") == MATRICES + HEAD + 4 * HEAD


def test_a_draft_has_weights_and_caches_of_its_own():
    alone = plan_inference(MEDIUM, SINGLE, CPU, Decoding(2, 64, 32)).memory
    both = plan_inference(MEDIUM, SINGLE, CPU, Decoding(2, 64, 32, draft=MEDIUM)).memory
    assert both.total == 2 * alone.total


def test_decoding_reads_weights_and_caches_once_unless_launches_take_longer():
    plan = plan_inference(MEDIUM, SINGLE, DEVICE, Decoding(1, 1024, 32))
    bandwidth = DEVICE.memory_gb_per_s * 1e9
    assert plan.seconds["weights"] == pytest.approx((2 * MATRICES + 8 * HEAD) / bandwidth)
    assert plan.seconds["cache"] == pytest.approx(2 * 2 * 24 * 1024 * 1024 / bandwidth)
    assert sum(plan.seconds.values()) == pytest.approx(24 * 30 * 10e-6), "a small model waits for launches"
    few, many = (plan_inference(MEDIUM, SINGLE, DEVICE, Decoding(texts, 1024, 32)) for texts in (8, 64))
    assert many.tokens_per_s > few.tokens_per_s, "the weights are read once for all texts"


def test_speed_on_the_cpu_is_not_predicted():
    assert plan_inference(MEDIUM, SINGLE, CPU, Decoding(1, 32, 32)).tokens_per_s is None
    assert plan_inference(MEDIUM, SINGLE, CPU, Scoring(1, 32)).tokens_per_s is None


def test_scoring_keeps_the_logits_of_all_tokens():
    plan = plan_inference(MEDIUM, SINGLE, CPU, Scoring(4, 512))
    assert plan.memory.logits == 4 * 4 * 512 * 50257
    device = plan_inference(MEDIUM, SINGLE, DEVICE, Scoring(4, 512))
    assert device.seconds["products"] > 2 * 4 * 512 * MATRICES / (DEVICE.peak_tflops * 1e12)
    labels = replace(MEDIUM, labels=["no", "yes"])
    assert plan_inference(labels, SINGLE, CPU, Scoring(4, 512)).memory.logits == 0


def test_changes_that_save_memory_are_named():
    plan = plan_inference(MEDIUM, SINGLE, replace(DEVICE, memory_gb=1.6), Decoding(16, 1024, 256))
    assert not plan.fits
    assert [change for change, _ in smaller_plans(plan)] == [
        "generation.batch_size=1", "parallel=tp2", "parallel=tp4", "parallel=tp8",
    ]  # fmt: skip
    lines = inference_verdict(plan)
    assert lines[0].startswith("does not fit: ")
    assert any(line.endswith(" GB, fits") for line in lines)
    assert [change for change, _ in smaller_plans(plan_inference(MEDIUM, SINGLE, CPU, Scoring(1, 32)))] == []


def test_the_table_leaves_out_what_takes_nothing():
    rows = inference_table(plan_inference(MEDIUM, SINGLE, DEVICE, Scoring(4, 512))).rows
    assert rows[-1][0] == "tokens/s of a replica"
    assert not any(row[0] == "cache, GB" for row in rows)
