"""What lora.targets names, what it adds up to, and every mistake in it."""

import pytest

from gpt2x.config import LoraConfig
from gpt2x.config.layout import Coordinates
from gpt2x.config.options import known_models
from gpt2x.config.patterns import adapted_modules, scaling
from gpt2x.errors import UserError
from gpt2x.lora.shapes import factor_placements, factor_shapes, num_trainable
from tests.support.configs import typed
from tests.support.models import tiny_model


def lora_config(**changes) -> LoraConfig:
    return LoraConfig(**({"name": "test", "rank": 4, "alpha": 8.0} | changes))


@pytest.mark.parametrize(("model", "number"), [("gpt2_small", 2_359_296), ("gpt2_xl", 19_660_800)])
def test_the_reference_recipe_trains_as_many_values(model, number):
    config = typed("train", f"model={model}", "lora=r64", "load=somewhere")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 128, 0.1)
    assert num_trainable(config.lora, config.model) == number


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (["q", "v"], ["h.0.attn.q", "h.0.attn.v", "h.1.attn.q", "h.1.attn.v"]),
        (["c_attn"], ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        (["c_proj"], ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj"]),
        (["attn.c_proj", "h.1.mlp.c_fc"], ["h.0.attn.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_fc"]),
        (["h.[1-9].mlp.*"], ["h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
    ],
)
def test_targets_name_modules(targets, modules):
    assert adapted_modules(lora_config(targets=targets), 2) == modules


def test_rank_stabilized_scaling_divides_by_the_root():
    assert scaling(lora_config()) == 2.0
    assert scaling(lora_config(rank_stabilized=True)) == 4.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.targets=[q,key]"], ["lora.targets=[q,key]", "'key'", "q, k, v, c_attn", "mlp.c_proj"]),
        (["lora.targets=[h.7.attn.q]"], ["h.7.attn.q", "h.1.mlp.c_proj"]),
        (["lora.targets=[]"], ["lora.targets=[]", "empty", "q, k, v"]),
        (["lora.targets=[c_attn,v]"], ["h.0.attn.c_attn contains h.0.attn.v", "twice"]),
        (["lora.rank=0"], ["lora.rank=0", "at least 1"]),
        (["lora.alpha=null"], ["lora.alpha=null", "lora.alpha=16"]),
        (["lora.alpha=0"], ["lora.alpha=0", "above 0"]),
        (["lora.dropout=1"], ["lora.dropout=1", "below 1"]),
        (["load=null"], ["lora=r8", "load=DIR"]),
        (["adapters=[a,b]"], ["adapters=[a,b]", "one of them"]),
        (["lora=none", "adapters=[a]"], ["adapters=[a]", "--merge"]),
        (["parallel=pp2", "lora.targets=[h.0.attn.q]"], ["layers 1 to 1", "parallel.pipeline=2"]),
        (["lora=r9"], ["lora=r9", "r16, r64, r8"]),
    ],
)
def test_mistakes_are_answered(overrides, words):
    from gpt2x.config import TrainConfig
    from gpt2x.config.messages import message_of

    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra's own for an unknown option
        typed("train", "model.num_layers=2", "lora=r8", "load=somewhere", *overrides)
    text = str(caught.value) if isinstance(caught.value, UserError) else message_of(caught.value, TrainConfig)
    assert all(word in text for word in words), text


def test_an_adapter_is_chosen_among_given_ones():
    with pytest.raises(UserError, match=r"adapter=a chooses among adapters, but adapters=\[\]"):
        typed("predict", "load=somewhere", "prompts=[x]", "adapter=a")


@pytest.mark.parametrize("model", known_models().values(), ids=known_models())
def test_every_model_takes_every_target(model):
    from dataclasses import replace

    lora = lora_config(targets=["c_attn", "c_proj", "c_fc"])
    shapes = factor_shapes(lora, replace(model, vocab_size=50257))
    assert len(shapes) == 8 * model.num_layers
    assert shapes["h.0.mlp.c_proj.lora_A"] == (4 * model.hidden_size, 4)


def test_the_tensor_axis_shares_one_factor_and_copies_the_other():
    from gpt2x.config import ParallelConfig

    coordinates = Coordinates(ParallelConfig(name="tp2", tensor=2), 1)
    parts = factor_placements(lora_config(targets=["q", "c_proj", "c_fc"]), tiny_model(), coordinates)
    shapes = {name.removeprefix("h.1."): part.shape for name, part in parts.items() if name.startswith("h.1.")}
    assert shapes == {
        "attn.q.lora_A": (32, 4), "attn.q.lora_B": (4, 16),
        "attn.c_proj.lora_A": (16, 4), "attn.c_proj.lora_B": (4, 32),
        "mlp.c_fc.lora_A": (32, 4), "mlp.c_fc.lora_B": (4, 64),
        "mlp.c_proj.lora_A": (64, 4), "mlp.c_proj.lora_B": (4, 32),
    }  # fmt: skip
