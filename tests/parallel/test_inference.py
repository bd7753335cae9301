"""evaluate.py and predict.py with real processes: the numbers and the text of one process."""

import json

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
from tests.train.runs import run_dirs, small, start, train

PROMPTS = ["the cat sat on", "", "then some dogs ran over this green hill and", "a mat", "the"]
GREEDY = ("generation.repetition_penalty=1.2",)
SAMPLING = ("generation.temperature=1.0", "generation.top_p=0.95", "generation.min_new_tokens=3", "seed=3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 40 steps; its vocabulary is odd, so two processes share a padded one."""
    directory = tmp_path_factory.mktemp("inference")
    train(directory, "trainer.max_steps=40", "tokenizer.vocab_size=291", "optimizer.learning_rate=3e-3")
    (run_dir,) = run_dirs(directory)
    assert open_checkpoint(run_dir / "checkpoints" / "step_40").model.vocab_size == 291
    return run_dir


def options(trained, layout, output):
    directory = trained.parents[2]
    paths = [option for option in small(directory) if option.startswith("paths.")]
    return [f"load={trained}", f"parallel={layout}", "tracker=none", f"output={output}", *paths]


def evaluated(trained, layout, tmp_path):
    """What evaluate.py prints, and results.json."""
    text = trained.parents[2] / "corpus.txt"
    done = start("evaluate.py", *options(trained, layout, tmp_path / "results.json"), "dataset=text",
                 f"dataset.val_path={text}", "evaluation.batch_size=4", f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    assert done.stderr == ""
    return done.stdout, json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def single_evaluation(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("single")
    return directory, *evaluated(trained, "single", directory)


def table(out):
    """What is printed, up to the place of the results."""
    assert out.count("results: ") == 1
    return out.partition("results: ")[0]


@pytest.mark.parametrize("layout", ["dp2", "tp2", "dp2_tp2"])
def test_evaluation_in_a_layout(trained, single_evaluation, layout, tmp_path):
    out, found = evaluated(trained, layout, tmp_path)
    single_path, single_out, wanted = single_evaluation
    assert table(out) == table(single_out)
    for protocol, values in wanted["results"].items():
        assert values["ppl_low"] < values["ppl"] < values["ppl_high"]
        assert values["num_windows"] % 8 in (1, 2, 3)  # the last batch is not whole, and one replica's alone
        exact = {key: value for key, value in values.items() if not isinstance(value, float)}
        assert exact.items() <= found["results"][protocol].items()
        for key in values.keys() - exact.keys():
            assert found["results"][protocol][key] == pytest.approx(values[key], rel=1e-6)
    assert (found.pop("parallel"), wanted["parallel"]) == (layout, "single")
    assert all(found[key] == wanted[key] for key in found if key != "results")
    scores, same = (load_scores(path / "run" / "scores.npz") for path in (tmp_path, single_path))
    for protocol in scores:
        assert np.array_equal(scores[protocol].weight, same[protocol].weight)
        assert np.allclose(scores[protocol].nll, same[protocol].nll, rtol=0 if layout == "dp2" else 1e-6, atol=0)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def predicted(trained, layout, tmp_path, *sampling):
    """The completions, without their speed."""
    output = tmp_path / f"{layout}.jsonl"
    done = start("predict.py", *options(trained, layout, output), f"prompts={json.dumps(PROMPTS)}", *sampling,
                 "generation.max_new_tokens=10", "generation.batch_size=2")  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.startswith(f"5 completions -> {output}, ")
    assert done.stderr.count("\n") == 1
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all(row.pop("tokens_per_s") > 0 for row in rows)
    assert [row["prompt"] for row in rows] == PROMPTS
    return rows


@pytest.fixture(scope="module")
def single_completions(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("single")
    return {sampling: predicted(trained, "single", directory, *sampling) for sampling in (GREEDY, SAMPLING)}


@pytest.mark.parametrize(("layout", "sampling"), [("tp2", GREEDY), ("dp2", GREEDY), ("dp2_tp2", SAMPLING)])
def test_text_in_a_layout(trained, single_completions, layout, sampling, tmp_path):
    rows = predicted(trained, layout, tmp_path, *sampling)
    assert rows == single_completions[sampling]
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
    from gpt2x.pretrained import padded_for

    model = ModelConfig(name="m", num_layers=1, num_heads=6, hidden_size=48, max_seq_len=8, vocab_size=50257)
    with pytest.raises(UserError, match=r"load=DIR: model\.num_heads=6 is not divisible by parallel\.tensor=4; use"):
        padded_for(model, ParallelConfig(name="tp4", tensor=4), "load=DIR")
    padded = padded_for(model, ParallelConfig(name="tp3", tensor=3), "load=DIR")
    assert (padded.vocab_size, stats.padded_vocab_size(padded)) == (50257, 50259)
    whole = ParallelConfig(name="tp2", tensor=2, vocab_parallel=False)
    assert padded_for(model, whole, "load=DIR") == model


class Standing:
    """A mesh that says where a process stands."""

    def __init__(self, layout, rank):
        self.coordinates = Coordinates(layout, rank)


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_each_batch_is_one_replicas(count):
    from gpt2x.generate.replicas import Replicas
    from gpt2x.parallel.replica_batches import ReplicaBatches

    batches = list(range(count))
    meshes = [Standing(ParallelConfig(name="dp3", data=3), rank) for rank in range(3)]
    owned = [list(ReplicaBatches(mesh).own(iter(batches))) for mesh in meshes]
    assert sorted(batch for own in owned for batch in own) == batches
    rounds = [list(Replicas(mesh).rounds(batches)) for mesh in meshes]
    assert [batch for turn in zip(*rounds, strict=True) for batch in turn if batch is not None] == batches
    assert list(Replicas().rounds(batches)) == list(ReplicaBatches().own(batches)) == batches
