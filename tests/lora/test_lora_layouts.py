"""Adapters trained in layouts: real processes against one. Bounds as in tests/parallel/test_layouts.py.

The rate is the default's, targets are column and row linears, whole and in thirds, and dropout is on.
"""

import pytest

from tests.parallel.runs import Runs, distance

STEPS = 6
LORA = ("lora=r8", "trainer.max_steps=6", "trainer.eval_every_steps=3")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Runs that adapt the model of one first run."""
    runs = Runs(tmp_path_factory.mktemp("adapters"))
    base = runs.of("trainer.max_steps=6")
    return lambda *overrides: runs.of(*LORA, f"load={base}", *overrides)


@pytest.mark.parametrize(
    ("targets", "layout"),
    [
        ("[q,v,c_proj,c_fc]", ("parallel=dp2",)),
        ("[q,v,c_proj,c_fc]", ("parallel=pp2",)),
        (
            "[q,v,c_proj,c_fc]",
            ("parallel=dp2_tp2_pp2", "parallel.optimizer_shards=2", "parallel.sequence_parallel=true"),
        ),
        ("[c_attn,c_fc]", ("parallel=tp2", "parallel.recompute=block")),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_a_layout_trains_adapters_as_one_process(adapters, targets, layout):
    targets = f"lora.targets={targets}"
    found = distance(adapters(targets, *layout), adapters(targets), step=STEPS, group="adapter")
    print(found)
    assert found.loss <= 1e-5
    assert found.validation <= 1e-5
    assert found.norm <= 1e-4
    assert found.weights <= 1e-4
