"""PEFT directories both ways: its logits are ours, for trained adapters and for ours; every wrong one is rejected."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2x.config.options import known_models
from gpt2x.errors import UserError
from gpt2x.lora.adapter import check_fits
from gpt2x.lora.merge import merged
from gpt2x.lora.open import adapters_by_name, open_adapter
from gpt2x.lora.peft_export import export_peft
from gpt2x.model.gpt2 import initial_weights
from tests.support.adapted import EVERYWHERE, adapter_of, lazy, lora_config, random_factors
from tests.support.models import build, random_ids, tiny_model
from tests.support.peft import TRAINED, logits_by_peft, torch_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's use


def merged_logits(model, weights, adapter, ids):
    from gpt2x.model.gpt2 import load_weights
    from tests.support.adapted import logits_of

    net = build(model)
    load_weights(net, dict(merged(lazy(weights), adapter)))
    return logits_of(net, ids)


@pytest.mark.parity
@pytest.mark.run
def test_a_trained_adapter_computes_what_peft_computes(shared_data):
    """Those of classifiers, with their heads: tests/lora/test_lora_heads.py."""
    torch = pytest.importorskip("torch")
    model = known_models()["gpt2_small"]
    weights, ids = dict(initial_weights(model, 0)), random_ids(model, (2, 48))
    adapter = open_adapter(shared_data / "adapters" / "wikitext2-causal-r8")
    ours = merged_logits(model, weights, adapter, ids)
    theirs = torch_model(model, weights)
    directory = shared_data / "adapters" / "wikitext2-causal-r8"
    with torch.no_grad():
        without = theirs(torch.tensor(ids.astype(np.int64))).logits.numpy()
    expected = logits_by_peft(theirs, directory, ids)
    print(abs(ours - expected).max(), abs(without - expected).max())
    assert abs(ours - expected).max() <= 1e-4
    assert abs(without - expected).max() > 1e-2


@pytest.mark.parametrize(("name", "num_labels"), TRAINED.items())
def test_trained_adapters_are_read_with_their_heads(shared_data, name, num_labels):
    adapter = open_adapter(shared_data / "adapters" / name)
    check_fits(adapter, SimpleNamespace(model=known_models()["gpt2_small"], query_factors=()), "x")
    assert adapter.name == name
    assert (adapter.head is None) == (num_labels is None)
    if num_labels:
        assert adapter.head.shape == (num_labels, 768)
        assert adapter.labels is None
    assert {product.scale for product in adapter.products.values()} == {4.0}
    assert len(adapter.products) == 12 * (3 if "allproj" in name else 1)
    with pytest.raises(UserError, match="adapter of a different model than load=x"):
        check_fits(adapter, SimpleNamespace(model=known_models()["gpt2_medium"], query_factors=()), "x")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("targets", "rank_stabilized"),
    [
        (["q", "v"], False),
        (EVERYWHERE, True),
        (["c_attn", "c_fc"], True),
        (["h.0.attn.k", "h.1.attn.q", "h.1.attn.k", "h.1.mlp.*"], False),
    ],
)
def test_peft_computes_what_an_exported_adapter_computes(tmp_path, targets, rank_stabilized):
    model = tiny_model()
    lora = lora_config(targets=targets, rank_stabilized=rank_stabilized)
    adapter = adapter_of(random_factors(lora, model), lora, model)
    export_peft(adapter, tmp_path / "peft")
    weights, ids = dict(initial_weights(model, 0)), random_ids(model, (2, 16))
    expected = logits_by_peft(torch_model(model, weights), tmp_path / "peft", ids)
    assert abs(merged_logits(model, weights, adapter, ids) - expected).max() <= 1e-5
    back = open_adapter(tmp_path / "peft")
    again = dict(merged(lazy(weights), back))
    assert all(abs(again[name] - value).max() <= 1e-6 for name, value in merged(lazy(weights), adapter).items())


@pytest.mark.parity
def test_pefts_own_files_are_read(tmp_path):
    """As PEFT writes them, with patterns of rank and alpha, and as old versions did, as .bin."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = tiny_model()
    weights, ids = dict(initial_weights(model, 0)), random_ids(model, (2, 16))
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["c_attn", "mlp.c_proj"], rank_pattern={"h.1.attn.c_attn": 8},
        alpha_pattern={r"h\.\d+\.mlp\.c_proj": 20}, fan_in_fan_out=True, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    adapted = peft.get_peft_model(torch_model(model, weights), config).eval()
    adapted.save_pretrained(tmp_path / "safetensors")
    adapted.save_pretrained(tmp_path / "bin", safe_serialization=False)
    with torch.no_grad():
        expected = adapted(torch.tensor(ids.astype(np.int64))).logits.numpy()
    for kind in ("safetensors", "bin"):
        ours = merged_logits(model, weights, open_adapter(tmp_path / kind), ids)
        assert abs(ours - expected).max() <= 1e-5


@pytest.fixture
def directory(tmp_path):
    """A sound PEFT directory."""
    lora, model = lora_config(targets=["q", "v"]), tiny_model()
    export_peft(adapter_of(random_factors(lora, model), lora, model), tmp_path / "sound")
    return tmp_path / "sound"


def test_the_configuration_of_joined_adapters(directory):
    config = json.loads((directory / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (8, 16, ["attn.c_attn"])
    assert config["fan_in_fan_out"] is True
    tensors = load_file(directory / "adapter_model.safetensors")
    b = tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    assert b.shape == (96, 8)
    assert not b[32:64].any()
    assert not b[:32, 4:].any()


def change(directory, **values):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3', but gpt2x reads only 'LORA'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"r": 4}, "r=4, but transformer.h.0.attn.c_attn has rank 8"),
        ({"lora_alpha": "x"}, "lora_alpha='x'"),
    ],
)
def test_configurations_that_gpt2x_does_not_support_are_rejected(directory, values, words):
    change(directory, **values)
    with pytest.raises(UserError) as caught:
        open_adapter(directory)
    assert words in str(caught.value)


def test_wrong_directories_are_rejected(directory, tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        open_adapter(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a gpt2x checkpoint"):
        open_adapter(tmp_path / "empty")
    shutil.copytree(directory, tmp_path / "b" / "sound")
    with pytest.raises(UserError, match="two are called sound"):
        adapters_by_name([str(directory), str(tmp_path / "b" / "sound")])
    tensors = load_file(directory / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_B" in name)
    save_file(
        {name: value for name, value in tensors.items() if name != first}, directory / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"incomplete: h\.0\.attn\.c_attn"):
        open_adapter(directory)
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        open_adapter(directory)
