import math
from dataclasses import replace

import numpy as np
import pytest

from gpt2x.config import DatasetConfig, ParallelConfig, TokenizerConfig
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks
from gpt2x.data.sampling import batches
from gpt2x.evaluate.scoring import Scorer
from gpt2x.evaluate.validation import Validation
from gpt2x.parallel.mesh import Mesh
from gpt2x.pretrained import load_pretrained
from tests.support.decide import decide


@pytest.fixture(scope="module")
def split(shakespeare, text_file, tmp_path_factory):
    dataset = DatasetConfig(name="text", corpus="text", val_path=str(text_file))
    data = prepare(dataset, TokenizerConfig(name="checkpoint"), Blocks(32), cache=tmp_path_factory.mktemp("cache"),
                   checkpoint_tokenizer=shakespeare.tokenizer, splits=("val",))  # fmt: skip
    return data.val


def test_loss_is_the_mean_over_tokens_of_all_blocks(shakespeare, split):
    validation = Validation(shakespeare.net, split, batch_size=16)
    result = validation.run()
    one = Scorer(shakespeare.net, 1)
    total, count = 0.0, 0
    for batch in batches(split, batch_size=1, seed=0, epoch=0, shuffle=False, drop_last=False):
        mask = batch["attention_mask"][:, 1:]
        total, count = total + (one.score(batch["input_ids"]) * mask).sum(), count + mask.sum()
    assert split.num_blocks % 16  # the last batch is padded
    assert validation.num_tokens == count == split.num_tokens - 1  # each token but the first, padding never
    assert result["val/loss"] == pytest.approx(total / count, abs=1e-6)
    assert result["val/ppl"] == pytest.approx(math.exp(result["val/loss"]))


def test_no_batch_size_changes_a_digit(shakespeare, split):
    """Whether the batches come out even or not; in layouts: tests/parallel/test_validation.py."""
    validations = [Validation(shakespeare.net, split, batch_size=size, max_rows=41) for size in (1, 2, 5, 16, 41)]
    losses = {validation.run()["val/loss"] for validation in validations}
    assert {validation.num_tokens for validation in validations} == {41 * 32}
    assert len(losses) == 1, losses


def validated(run, hardware, sizes, *overrides):
    """Return the values of a run's last weights by batches of each size, on 13 rows of different lengths."""
    decision = decide("train", *run.options, *overrides, "trainer.max_eval_rows=13")
    pretrained = load_pretrained(str(run.run_dir), hardware, TokenizerConfig(name="checkpoint"))
    values = []
    for size in sizes:
        trainer = replace(decision.config.trainer, micro_batch_size=size, global_batch_size=size)
        now = replace(decision, config=replace(decision.config, trainer=trainer))
        values.append(decision.task.validation(now, pretrained.net, Mesh(ParallelConfig(name="single"))).run())
    return values


def test_no_batch_size_changes_the_values_of_a_classifier(zoo, hardware):
    """Though a batch is padded to its longest text. Only the product of one row with the head rounds differently."""
    one, all_at_once = validated(zoo.classifier, hardware, (1, 13))
    assert one.keys() == {"val/loss", "val/accuracy", "val/f1", "val/mcc"}
    assert one == all_at_once | {"val/loss": pytest.approx(all_at_once["val/loss"], rel=1e-6)}


def test_no_batch_size_changes_the_loss_of_responses(zoo, hardware):
    """Though a batch is padded to its longest example."""
    one, all_at_once = validated(zoo.instructions, hardware, (1, 13), "dataset.packing=false")
    assert one == all_at_once


def test_bits_per_byte_are_those_of_the_text(shakespeare, split, text_file):
    """All of it but its first token, which has no prediction."""
    sizes = shakespeare.tokenizer.token_bytes()
    values = Validation(shakespeare.net, split, batch_size=16, token_bytes=sizes).run()
    text = text_file.read_text(encoding="utf-8")
    num_bytes = len(text.encode()) - sizes[shakespeare.tokenizer.encode(text)[0]]
    nll = values["val/loss"] * (split.num_tokens - 1)
    assert values["val/bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes)


def test_a_second_run_sees_new_weights_and_the_old_ones_again(shakespeare, split):
    validation = Validation(shakespeare.net, split, batch_size=16, max_rows=32)
    before = validation.run()
    assert validation.num_tokens == 2 * 16 * 32
    bias = shakespeare.net.ln_f.bias
    kept = bias.asnumpy().copy()
    from mindspore import Tensor

    bias.set_data(Tensor(kept + np.float32(0.5)))
    changed = validation.run()
    bias.set_data(Tensor(kept))
    assert changed != before
    assert validation.run() == before
