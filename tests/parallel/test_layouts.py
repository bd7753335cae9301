"""Every layout trains as one process does: real processes, 20 updates of gpt2_tiny against the single run.

Sums in another order round differently. The bounds: losses 1e-5, gradient norms 1e-4, weights (absolute) 1e-4, which
is a tenth of what one update at the full learning rate can change.
"""

import pytest

from tests.parallel.runs import distance, relative, saved
from tests.train.runs import curve

STEPS = 20
MIXED = ("model.num_layers=3", "model.tie_embeddings=false", "model.dropout=0.1")
FP16 = ("hardware.precision=fp16", "trainer.loss_scale_init=1e12", "trainer.loss_scale_factor=16")
exhaustive = pytest.mark.exhaustive


def case(name, *layout, model=(), marks=()):
    return pytest.param(layout, model, id=name, marks=marks)


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        # those that tests/parallel/test_resume.py needs as well
        case("dp2", "parallel=dp2"),
        case("tp2", "parallel=tp2"),
        case("pp2", "parallel=pp2"),
        case("zero2", "parallel=zero2"),
        case("dp2_tp2_pp2", "parallel=dp2_tp2_pp2"),
        # several features at once
        case(
            "tp2_pp2 of uneven stages, with sequence parallelism, recomputation and padding",
            "parallel=tp2_pp2", "parallel.sequence_parallel=true", "parallel.recompute=block",
            "model.pad_vocab_multiple=512", model=MIXED,
        ),
        case(
            "four replicas with accumulation, two of which share states",
            "parallel=dp4", "parallel.optimizer_shards=2", "trainer.micro_batch_size=1", model=MIXED,
        ),
        case(
            "tp2 with whole vocabularies",
            "parallel=tp2", "parallel.vocab_parallel=false", "parallel.recompute=attention", model=MIXED,
        ),
        case("more stages than micro batches", "parallel=pp2", "parallel.pipeline=4", "parallel.micro_batches=2"),
        case("dp2_tp2", "parallel=dp2_tp2"),
        case("dp2_pp2", "parallel=dp2_pp2"),
        case("tp2_pp2", "parallel=tp2_pp2"),
        case("tp2 with sequence parallelism", "parallel=tp2", "parallel.sequence_parallel=true", marks=exhaustive),
        case(
            "tp4 with a share of nothing but padding, and sequence parallelism",
            "parallel=tp4", "parallel.sequence_parallel=true", "model.pad_vocab_multiple=512", marks=exhaustive,
        ),
        case(
            "tp2 with sequence parallelism, whole vocabularies, accumulation",
            "parallel=tp2", "parallel.sequence_parallel=true", "parallel.vocab_parallel=false",
            "trainer.micro_batch_size=4", model=MIXED, marks=exhaustive,
        ),
        case(
            "all at once",
            "parallel=dp2_tp2_pp2", "parallel.optimizer_shards=2", "parallel.sequence_parallel=true",
            "parallel.recompute=block", "model.pad_vocab_multiple=512", model=MIXED, marks=exhaustive,
        ),
    ],
)  # fmt: skip
def test_a_layout_equals_one_process(runs, layout, model):
    found = distance(runs.of(*layout, *model), runs.of(*model), step=STEPS)
    print(found)
    assert found.loss <= 1e-5
    assert found.validation <= 1e-5
    assert found.norm <= 1e-4
    assert found.weights <= 1e-4


@pytest.mark.parametrize("layout", [pytest.param("dp2", marks=exhaustive), "tp2_pp2"])
def test_fp16_skips_the_same_updates(runs, layout):
    single, run_dir = runs.of(*FP16), runs.of(f"parallel={layout}", *FP16)
    mine, theirs = (curve(path, "train/loss", "train/grad_norm", "train/loss_scale") for path in (run_dir, single))
    assert [line[2] for line in mine.values()] == [line[2] for line in theirs.values()]
    skipped = [step for step, line in mine.items() if isinstance(line[1], str)]  # "NaN" or "Infinity"
    made = [step for step in mine if step not in skipped]
    assert 2 <= len(skipped) <= STEPS / 2
    assert saved(run_dir, STEPS).loop_state["num_updates"] == len(made)
    losses = [relative(mine[step][0], theirs[step][0]) for step in made]
    print(skipped, max(losses))
    assert max(losses) <= 2e-4
    assert mine[STEPS][0] < mine[made[0]][0] - 0.5, "it learns"
