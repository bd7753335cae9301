"""trainer.stats_every_steps: the same training bit for bit, and values that NumPy and PyTorch find as well."""

import json

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.train.statistics.activations import tokens_of
from gpt2x.train.statistics.measure import Statistics
from tests.commands import convert
from tests.support.decide import refusal
from tests.support.in_process import train
from tests.support.layout_jobs import MEASURED, MEASURED_EXHAUSTIVE, REFERENCES
from tests.support.layout_runs import each
from tests.support.small_runs import curve, small

OPTIONS = ["trainer.max_steps=3", "trainer.micro_batch_size=8", "model.dropout=0", "trainer.checkpoint_every_steps=1",
           "trainer.keep_last=9", "trainer.keep_best=false", "trainer.max_eval_rows=8"]  # fmt: skip


def stats_of(run_dir):
    """Step -> the statistics of its line, by name without the prefix."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        line["step"]: {key.removeprefix("stats/"): value for key, value in line.items() if key.startswith("stats/")}
        for line in lines
    }


def weights_at(run_dir, step):
    return dict(checkpoint.open_checkpoint(run_dir / f"checkpoints/step_{step}").tensors("weights"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run without dropout that is measured per tensor, and the inputs of each measured update."""
    inputs, update = [], Statistics.update

    def recording(self, train_step, step_inputs, batch):
        inputs.append(step_inputs)
        return update(self, train_step, step_inputs, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Statistics, "update", recording)
        directory = tmp_path_factory.mktemp("measured")
        run = train(directory, *OPTIONS, "trainer.stats_every_steps=1", "trainer.stats_per=tensor")
    return directory, run.run_dir, inputs


@pytest.mark.run
def test_a_measured_run_of_one_micro_batch_trains_the_same_bit_for_bit(measured):
    directory, run_dir, _ = measured
    plain = train(directory, *OPTIONS).run_dir
    assert curve(run_dir) == curve(plain)
    assert not any(stats_of(plain).values())
    mine, theirs = weights_at(run_dir, 3), weights_at(plain, 3)
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_accumulation_with_dropout_trains_the_same_bit_for_bit(zoo, tmp_path):
    run_dir = zoo.plain.again(tmp_path, "trainer.stats_every_steps=5", "trainer.sample_prompts=[]").run_dir
    keys = ("train/loss", "train/grad_norm", "val/loss")
    assert curve(run_dir, *keys) == curve(zoo.plain.run_dir, *keys)
    mine, theirs = weights_at(run_dir, 16), weights_at(zoo.plain.run_dir, 16)
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    stats, norms = stats_of(run_dir), curve(run_dir, "train/grad_norm")
    assert [step for step, values in stats.items() if values] == [5, 10, 15]
    for step in (5, 10, 15):
        gradients = [value for name, value in stats[step].items() if name.startswith("grad_norm/")]
        assert len(gradients) == 5, "wte, wpe, h.0, h.1, ln_f"
        assert np.sqrt(np.sum(np.square(gradients))) == pytest.approx(norms[step][0], rel=1e-5)
        assert stats[step]["time_s"] > 0


@pytest.mark.run
def test_norms_and_ratios_are_those_of_the_checkpoints(measured):
    _, run_dir, _ = measured
    for step in (2, 3):
        before, after, stats = weights_at(run_dir, step - 1), weights_at(run_dir, step), stats_of(run_dir)[step]
        for name in before:
            old, new = np.float64(before[name]), np.float64(after[name])
            assert stats[f"weight_norm/{name}"] == pytest.approx(np.linalg.norm(old), rel=1e-5)
            ratio = np.linalg.norm(new - old) / np.linalg.norm(old)
            assert stats[f"update_ratio/{name}"] == pytest.approx(ratio, rel=1e-4)
    first = stats_of(run_dir)[1]
    assert "weight_norm/h.0.attn.c_attn.bias" in first
    assert "update_ratio/h.0.attn.c_attn.bias" not in first, "its weight is zero"


def keep(outputs, layer):
    """A hook that stores a layer's output."""

    def hook(module, arguments, output):
        outputs[layer] = (output[0] if isinstance(output, tuple) else output).detach()

    return hook


@pytest.mark.parity
def test_gradients_activations_and_attention_are_those_of_pytorch(measured, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, run_dir, inputs = measured
    assert convert(["--to", "hf", "--output", str(tmp_path / "hf"), str(run_dir / "checkpoints/step_2")]) == 0
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    ids = torch.tensor(inputs[2].ids[0], dtype=torch.long)
    projected, streams = {}, {}
    for layer, block in enumerate(model.transformer.h):
        block.attn.c_attn.register_forward_hook(keep(projected, layer))
        block.register_forward_hook(keep(streams, layer))
    outputs = model(ids[:, :-1], output_attentions=True)
    torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    stats = stats_of(run_dir)[3]
    for name, parameter in model.transformer.named_parameters():
        assert stats[f"grad_norm/{name}"] == pytest.approx(float(parameter.grad.norm()), rel=2e-4, abs=1e-6), name
    seen = torch.tril(torch.ones(32, 32))
    for layer in range(2):
        x, weights = streams[layer], outputs.attentions[layer].detach().double()
        assert stats[f"activation_rms/h.{layer}"] == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
        assert stats[f"activation_max/h.{layer}"] == pytest.approx(float(x.abs().max()), rel=1e-5)
        assert stats[f"activation_nonfinite/h.{layer}"] == 0
        queries, keys, _ = (part.view(8, 32, 2, 16).transpose(1, 2) for part in projected[layer].split(32, dim=2))
        logits = queries @ keys.transpose(2, 3) / 4 * seen
        assert stats[f"attention_logit_max/h.{layer}"] == pytest.approx(float(logits.abs().max()), rel=1e-4)
        entropy = -torch.xlogy(weights, weights).sum(-1).mean()
        assert stats[f"attention_entropy/h.{layer}"] == pytest.approx(float(entropy), rel=1e-5)


# ---- layouts


@pytest.mark.launch
@pytest.mark.parametrize("job", [*each(MEASURED), *each(MEASURED_EXHAUSTIVE, pytest.mark.exhaustive)])
def test_a_layout_measures_what_one_process_does(layout_runs, job):
    mine, theirs = stats_of(layout_runs.of(job)), stats_of(layout_runs.of(REFERENCES[job]))
    assert [step for step, reference in theirs.items() if reference] == [2]
    for step, reference in [(2, theirs[2])]:
        assert "time_s" in mine[step]
        kinds = {name.partition("/")[0] for name in mine[step]}
        assert {"weight_norm", "grad_norm", "update_ratio"} <= kinds
        for name, value in reference.items():
            if name.partition("/")[0] in kinds and name != "time_s" and "c_attn.bias" not in name:
                assert mine[step][name] == pytest.approx(value, rel=2e-3, abs=1e-6), name


@pytest.mark.parametrize(("layout", "reason"), [
    (["parallel=pp2"], "parallel.pipeline=2 spreads the layers"),
    (["parallel=dp2_zero3"], "zero_stage=3 has one block at a time"),
    (["parallel=tp2", "parallel.sequence_parallel=true"], "spreads the tokens"),
])  # fmt: skip
def test_a_layout_without_whole_activations_is_answered_with_what_can_be_measured(tmp_path, layout, reason):
    text = refusal("train", *small(tmp_path), "trainer.stats_every_steps=5", "trainer.micro_batch_size=null", *layout)
    assert reason in text
    assert "use 'trainer.stats=[weights,gradients,updates]'" in text


def test_no_statistics_are_an_error_and_unknown_ones_too(tmp_path):
    assert "trainer.stats=[] is empty" in refusal("train", *small(tmp_path), "trainer.stats_every_steps=5",
                                                  "trainer.stats=[]")  # fmt: skip
    assert "did you mean weights" in refusal("train", *small(tmp_path), "trainer.stats=[weight]")


def test_padding_is_no_token():
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert tokens_of({"attention_mask": mask}, 3).tolist() == [[1, 1, 0], [1, 1, 1]]
