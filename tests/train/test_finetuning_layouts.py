"""Fine-tuning in layouts: real processes against one. Bounds as in tests/parallel/test_layouts.py.

Some tensors are frozen, rates decay over the layers, and the embedding has two rows more than the base's.
"""

import numpy as np
import pytest

from gpt2x import checkpoint
from tests.parallel.runs import Runs, distance, saved
from tests.support.tokenizers import grown_tokenizer

STEPS = 4
SIZES = ("model.num_layers=2", "model.hidden_size=64", "model.num_heads=4", f"trainer.max_steps={STEPS}",
         "trainer.eval_every_steps=2")  # fmt: skip
TUNING = ("optimizer.layer_decay=0.7", "tokenizer.extend=true")
FROZEN = "trainer.frozen=[wpe.weight,'h.0.*','mlp.c_fc.*']"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Runs that fine-tune the model of one first run, whose directory is `tuned.base`."""
    runs = Runs(tmp_path_factory.mktemp("finetuning"))
    runs.base = runs.of(*SIZES)
    tokenizer = checkpoint.list_checkpoints(runs.base)[-1] / "tokenizer"
    path = grown_tokenizer(tokenizer, runs.directory / "tokenizer", ("<|user|>", "<|assistant|>"))
    runs.tune = lambda *overrides: runs.of(
        *SIZES, *TUNING, FROZEN, f"load={runs.base}", f"tokenizer.path={path}", *overrides
    )
    return runs


@pytest.mark.parametrize("layout", ["zero2", "tp2", "pp2"])
def test_a_layout_fine_tunes_as_one_process(tuned, layout):
    mine, reference = tuned.tune(f"parallel={layout}"), tuned.tune()
    found = distance(mine, reference, step=STEPS)
    print(found)
    assert found.loss <= 1e-5
    assert found.validation <= 1e-5
    assert found.norm <= 1e-4
    assert found.weights <= 1e-4
    base, after = saved(tuned.base, STEPS), saved(mine, STEPS)
    assert after.shape("weights", "wte.weight")[0] == base.shape("weights", "wte.weight")[0] + 2
    for name in ("wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"):
        assert np.array_equal(base.tensor("weights", name), after.tensor("weights", name))
        assert f"mean.{name}" not in after.names("optimizer")
