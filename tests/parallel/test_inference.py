"""evaluate.py and predict.py with real processes: the numbers and the text of one process."""

import json
import math

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from gpt2x.checkpoint import open_checkpoint
from gpt2x.commands.hydra_entry import register_schemas
from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.files import to_typed
from gpt2x.config.layout import Coordinates
from gpt2x.config.options import CONF
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import load_scores
from gpt2x.model import stats
from tests.support.layout_jobs import EVALUATED, JOBS, PREDICTED, PROMPTS, REFERENCES
from tests.support.layout_runs import each


def output(layout_runs, job):
    """Return the file that a job was told to write."""
    layout_runs.of(job)
    return next(text for text in reversed(JOBS[job].arguments(layout_runs.folder)) if text.startswith("output="))[7:]


def evaluated(layout_runs, job):
    """Return what evaluate.py printed up to the path of the results, and results.json."""
    out, error = layout_runs.printed(job)
    assert error == ""
    assert out.count("results: ") == 1
    with open(output(layout_runs, job), encoding="utf-8") as file:
        return out.partition("results: ")[0], json.load(file)


@pytest.mark.launch
@pytest.mark.timeout(2400)
@pytest.mark.needs("odd vocabulary")
@pytest.mark.parametrize("job", each(EVALUATED))
def test_evaluation_in_a_layout(layout_runs, job):
    checkpoint = layout_runs.of("odd vocabulary") / "checkpoints" / "step_40"
    assert open_checkpoint(checkpoint).model.vocab_size == 291, "two processes share a padded vocabulary"
    reference = REFERENCES[job]
    (table, results), (expected_table, expected) = evaluated(layout_runs, job), evaluated(layout_runs, reference)
    assert table == expected_table
    for protocol, values in expected["results"].items():
        assert values["ppl_low"] < values["ppl"] < values["ppl_high"]
        assert values["num_windows"] % 8 in (1, 2, 3)  # the last batch is not whole, and one replica's alone
        exact = {key: value for key, value in values.items() if not isinstance(value, float)}
        assert exact.items() <= results["results"][protocol].items()
        for key in values.keys() - exact.keys():
            assert results["results"][protocol][key] == pytest.approx(values[key], rel=1e-6)
    layout = job.rpartition(" ")[2]
    assert (results.pop("parallel"), expected["parallel"]) == (layout, "single")
    assert all(results[key] == expected[key] for key in results if key != "results")
    run_dir = layout_runs.of(job)
    scores, same = (load_scores(path / "scores.npz") for path in (run_dir, layout_runs.of(reference)))
    for protocol in scores:
        assert np.array_equal(scores[protocol].weight, same[protocol].weight)
        assert np.allclose(scores[protocol].nll, same[protocol].nll, rtol=0 if layout == "dp2" else 1e-6, atol=0)
    assert len((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def predicted(layout_runs, job):
    """Return the completions, without their speed."""
    out, error = layout_runs.printed(job)
    assert out == ""
    assert error.startswith(f"5 completions -> {output(layout_runs, job)}, ")
    assert error.count("\n") == 1
    with open(output(layout_runs, job), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert all(row.pop("tokens_per_s") > 0 for row in rows)
    assert [row["prompt"] for row in rows] == PROMPTS
    return rows


@pytest.mark.launch
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("job", each(PREDICTED))
def test_text_in_a_layout(layout_runs, job):
    rows = predicted(layout_runs, job)
    assert rows == predicted(layout_runs, REFERENCES[job])
    assert len({row["completion"] for row in rows}) > 1


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("evaluate", ["parallel=pp2"], r"parallel\.pipeline=2 \(parallel=pp2\): evaluate\.py runs under data and tensor "
     r"layouts; use parallel=tp2"),
    ("predict", ["parallel=tp2_pp2", "prompts=[a]"], r"parallel\.pipeline=2 .*predict\.py runs under"),
    ("predict", ["parallel=tp2", "parallel.sequence_parallel=true", "prompts=[a]"],
     r"parallel\.sequence_parallel=true .*use parallel\.sequence_parallel=false"),
])  # fmt: skip
def test_layouts_that_are_not_for_inference(name, changes, message):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(name, overrides=["load=x", *changes])
    with pytest.raises(UserError, match=message):
        to_typed(name, composed)


def test_a_loaded_model_must_fit_the_layout():
    from gpt2x.config.layout import fitted_to

    model = ModelConfig(name="m", num_layers=1, num_heads=6, hidden_size=48, max_seq_len=8, vocab_size=50257)
    with pytest.raises(UserError, match=r"load=DIR: model\.num_heads=6 is not divisible by parallel\.tensor=4; use"):
        fitted_to(model, ParallelConfig(name="tp4", tensor=4), "load=DIR")
    padded = fitted_to(model, ParallelConfig(name="tp3", tensor=3), "load=DIR")
    assert (padded.vocab_size, stats.padded_vocab_size(padded)) == (50257, 50259)
    whole = ParallelConfig(name="tp2", tensor=2, vocab_parallel=False)
    assert fitted_to(model, whole, "load=DIR") == model


class Standing:
    """A mesh that says where a process stands."""

    def __init__(self, layout, rank, told=()):
        self.coordinates, self.told = Coordinates(layout, rank), told

    def gather(self, value):
        self.told.append(np.array(value))
        return np.array(self.told)


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_each_batch_is_one_replicas(count):
    from gpt2x.generate.replicas import Replicas
    from gpt2x.parallel.replica_batches import ReplicaBatches

    batches = list(range(count))
    meshes = [Standing(ParallelConfig(name="dp3", data=3), rank) for rank in range(3)]
    owned = [list(ReplicaBatches(mesh).local(iter(batches))) for mesh in meshes]
    assert sorted(batch for own in owned for batch in own) == batches
    rounds = [list(Replicas(mesh).rounds(batches)) for mesh in meshes]
    assert [batch for turn in zip(*rounds, strict=True) for batch in turn if batch is not None] == batches
    assert list(Replicas().rounds(batches)) == list(ReplicaBatches().local(batches)) == batches


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_a_sum_does_not_depend_on_replicas_or_order(replicas):
    """Of values whose sum in float64 depends on both."""
    from gpt2x.parallel.replica_batches import ReplicaBatches

    random = np.random.default_rng(0)
    values = random.standard_normal(3000) * 10.0 ** random.integers(-6, 12, 3000)
    assert values.sum() != values[::-1].sum() or values.sum() != np.sort(values).sum()
    expected, layout = math.fsum(values), ParallelConfig(name="x", data=replicas)
    for shuffled in (values, np.sort(values), random.permutation(values)):
        told: list[np.ndarray] = []
        parts = np.array_split(shuffled, replicas)
        totals = [ReplicaBatches(Standing(layout, rank, told)).total(parts[rank]) for rank in range(replicas)]
        assert totals[-1] == expected  # the last process has heard all of them
        assert ReplicaBatches().total(shuffled) == expected
    assert math.isnan(ReplicaBatches(Standing(layout, 0, [])).total([1.0, math.nan]))
    assert ReplicaBatches(Standing(layout, 0, [])).total([math.inf, 1.0]) == math.inf
