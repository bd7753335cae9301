"""Adapters as PEFT reads them: its merged weights, or a message for a reason of the list of keys and tensors."""

import json
import logging
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gpt2x.convert import load_source
from gpt2x.errors import UserError
from gpt2x.formats.peft import check_base_of_export
from gpt2x.lora.adapter import check_fits
from gpt2x.lora.merge import MergedWeights, merged
from gpt2x.lora.open import open_adapter
from gpt2x.lora.peft_config import BASE_CHANGING_INITS, CHANGING, FORMAT, PLAIN_INITS
from gpt2x.lora.peft_export import export_peft
from gpt2x.lora.peft_tensors import REJECTED
from tests.support.adapted import EVERYWHERE, adapter_of, lazy, lora_config, random_factors
from tests.support.models import tiny_model

MODEL = tiny_model(num_layers=3, num_heads=2, hidden_size=8, max_seq_len=8, vocab_size=16)
BASES = ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification")

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what is generated


def base_of(kind):
    """A model of transformers with fixed weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=MODEL.num_layers, n_head=MODEL.num_heads, n_embd=MODEL.hidden_size, n_positions=MODEL.max_seq_len,
        vocab_size=MODEL.vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    net = getattr(transformers, kind)(config)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)  # biases too
    return net


def values_of(net):
    """The weights of a model by logical name."""
    state = {name.removeprefix("transformer."): value.float().numpy() for name, value in net.state_dict().items()}
    state.pop("lm_head.weight", None)
    return state


def save_adapter(folder, kind, **options):
    """An adapter that PEFT has trained, as it saves it."""
    import peft
    import torch

    torch.manual_seed(1)
    net = peft.get_peft_model(base_of(kind), peft.LoraConfig(**options))
    for name, parameter in net.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    net.save_pretrained(folder)


def by_peft(folder, kind):
    """What PEFT merges."""
    import peft

    return values_of(peft.PeftModel.from_pretrained(base_of(kind), folder).merge_and_unload())


def by_gpt2x(folder, kind):
    """What gpt2x merges."""
    adapter = open_adapter(folder)
    check_fits(adapter, SimpleNamespace(model=MODEL, query_factors=()), "base")
    return dict(merged(lazy(values_of(base_of(kind))), adapter))


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(folder, name_of):
    """Rename tensors of the weight file; None removes one."""
    path = folder / "adapter_model.safetensors"
    tensors = {name_of(name): value for name, value in load_file(path).items()}
    save_file({name: value for name, value in tensors.items() if name}, path)


def store_as_bin(folder):
    import torch

    path = folder / "adapter_model.safetensors"
    torch.save({name: torch.tensor(value) for name, value in load_file(path).items()}, folder / "adapter_model.bin")
    path.unlink()


def store_as(folder, dtype):
    path = folder / "adapter_model.safetensors"
    save_file({name: value.astype(dtype) for name, value in load_file(path).items()}, path)


def require_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=5e-6, err_msg=name)


# ---- the public reports


@pytest.mark.parity
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4"])
def test_an_init_that_changes_the_base_is_rejected_by_name(tmp_path, init):
    pytest.importorskip("peft")
    save_adapter(tmp_path, "GPT2LMHeadModel", r=4, target_modules=["c_attn"], init_lora_weights=init)
    with pytest.raises(UserError, match=rf"init_lora_weights='{init}', with which .*merge_and_unload"):
        open_adapter(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("pattern", [r"^h\.0\.attn\.c_attn", r"^transformer\.h\.0\.attn\.c_attn", r"h\.[01]\..*c_attn"])
def test_patterns_match_the_names_of_the_model_that_was_adapted(tmp_path, kind, pattern):
    pytest.importorskip("peft")
    save_adapter(tmp_path, kind, r=4, lora_alpha=16, target_modules=["c_attn"], alpha_pattern={pattern: 64})
    require_equal(by_gpt2x(tmp_path, kind), by_peft(tmp_path, kind))


# ---- whole adapters

LINEARS = ("c_attn", "c_proj", "c_fc")
NAMES = st.sampled_from(
    [*LINEARS, "attn.c_proj", "mlp.c_proj", "h.1.attn.c_attn", "1.mlp.c_fc", "transformer.h.0.mlp.c_fc", "q_proj"]
)
EXPRESSIONS = st.sampled_from(
    [r".*c_attn", r"(transformer\.)?h\.\d\.mlp\.c_(fc|proj)", r".*\.[12]\..*c_proj", r"h\..*attn\.c_attn", "c_attn"]
)
PATTERNS = st.sampled_from([
    "c_attn", "c_proj", r"^h\.0\..*", r"^transformer\.h\.0\..*", r"^transformer\.h\.1\.attn\.c_proj", "nothing",
    "attn.c_attn", r"(attn|mlp)\.c_proj", r"mlp\.c_fc$", r"h\.2\.mlp\.c_fc", "fc", r".*fc", r"^c_attn",
    "transformer.h.1.mlp.c_fc",
])  # fmt: skip
ALPHAS = st.sampled_from([1, 2, 16, 0.5, 0, -4])
PLAIN = st.fixed_dictionaries(
    {
        "r": st.integers(1, 5),
        "lora_alpha": ALPHAS,
        "target_modules": st.lists(NAMES, min_size=1, max_size=3) | EXPRESSIONS | st.sampled_from(["all-linear", None]),
    },
    optional={
        "exclude_modules": st.lists(NAMES, max_size=2) | EXPRESSIONS,
        "use_rslora": st.booleans(),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "rank_pattern": st.dictionaries(PATTERNS, st.integers(1, 5), max_size=2),
        "alpha_pattern": st.dictionaries(PATTERNS, ALPHAS, max_size=3),
        "init_lora_weights": st.sampled_from([True, False, *PLAIN_INITS]),
        "fan_in_fan_out": st.booleans(),
        "task_type": st.sampled_from([None, "CAUSAL_LM", "FEATURE_EXTRACTION"]),
    },
)
LAYERS = st.fixed_dictionaries(
    {"layers_to_transform": st.integers(0, 2) | st.lists(st.integers(0, 3), max_size=2)},
    optional={"layers_pattern": st.sampled_from(["h", ["h"], [], None, r"transformer\.h", ["layers", "h"]])},
)
# what is done to the files of a sound adapter: every key with values that PEFT has, tensors, formats
INITS = ("pissa", "pissa_niter_2", "corda", "loftq", "olora", "OLoRA", "PiSSA", "Gaussian", "zero", 3, None)
CONFIG_CHANGES = st.sampled_from([
    *({"init_lora_weights": value} for value in INITS),
    {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"bias": "some"}, {"lora_bias": True},
    {"trainable_token_indices": [1]}, {"trainable_token_indices": {"wte": [1]}}, {"target_parameters": ["wte.weight"]},
    {"layer_replication": [[0, 2]]}, {"layer_replication": []}, {"alora_invocation_tokens": [1]},
    {"alora_invocation_tokens": []}, {"arrow_config": {}}, {"use_bdlora": {}}, {"kasa_config": {}},
    {"use_qalora": True}, {"monteclora_config": {}}, {"megatron_config": {"a": 1}}, {"megatron_config": {}},
    {"velora_config": {}}, {"ensure_weight_tying": True}, {"loftq_config": {"loftq_bits": 4}}, {"eva_config": {}},
    {"corda_config": {}}, {"lora_ga_config": {}}, {"qalora_group_size": 4}, {"megatron_core": "x"},
    {"runtime_config": {}}, {"new": True}, {"auto_mapping": {"base_model_class": "GPT2Model"}}, {"revision": "main"},
    {"peft_version": None}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["wte"]},
    {"modules_to_save": ["score"]}, {"modules_to_save": "score"}, {"modules_to_save": []},
    {"task_type": "TOKEN_CLS"}, {"task_type": "SEQ_CLS"}, {"task_type": "NONE"}, {"task_type": ["CAUSAL_LM"]},
    {"peft_type": "IA3"}, {"peft_type": "lora"}, {"peft_type": None}, {"lora_alpha": "16"}, {"lora_alpha": None},
    {"r": 7}, {"r": 2.0}, {"r": "2"}, {"rank_pattern": {"c_attn": 9}}, {"rank_pattern": {"(": 1}},
    {"alpha_pattern": {"(": 2}}, {"alpha_pattern": ["c_attn"]}, {"alpha_pattern": {".*": "2"}},
    {"target_modules": ["c_fc"]}, {"target_modules": []}, {"target_modules": "("}, {"target_modules": {"a": 1}},
    {"target_modules": "c_attn", "layers_to_transform": [1]}, {"layers_pattern": "h", "layers_to_transform": None},
    {"layers_pattern": "(", "layers_to_transform": 1, "target_modules": ["c_attn"]}, {"layers_to_transform": "1"},
    {"layers_to_transform": 1}, {"exclude_modules": ["c_attn"]}, {"exclude_modules": "("},
])  # fmt: skip
TENSOR_CHANGES = {
    "default": lambda name: re.sub(r"(lora_[AB])\.", r"\1.default.", name),
    "other": lambda name: re.sub(r"(lora_[AB])\.", r"\1.other.", name),
    "without the prefix": lambda name: name.removeprefix("base_model.model."),
    "without transformer": lambda name: name.replace("transformer.", ""),
    "without layer 1": lambda name: None if ".h.1." in name else name,
    "without one A": lambda name: None if "h.0." in name and "lora_A" in name else name,
    "without score": lambda name: None if "score" in name else name,
    "score of a whole state": lambda name: name.replace("score.", "score.modules_to_save.default."),
    "untrained score": lambda name: name.replace("score.", "score.original_module."),
    "embedding": lambda name: re.sub(r"h\.0\.\w+\.\w+\.lora_A", "wte.lora_embedding_A", name),
    "head": lambda name: re.sub(r"transformer\.h\.0\.\w+\.\w+\.", "lm_head.", name),
    "magnitudes": lambda name: re.sub(r"lora_B.weight", "lora_magnitude_vector", name) if "h.0." in name else name,
}
# words of the messages; each is a reason of the lists of keys, tensors and files
REASONS = (
    *(f" has {entry.name}=" for entry in FORMAT.entries),
    *(what for _, what in REJECTED.values()),
    "no tensor of LoRA",
    "has the expression",
    "incomplete: ",
    "is of a classifier",
    "bare GPT2Model and some",
    "occurs twice",
    "an adapter of a different model",
)


@st.composite
def adapters(draw):
    """The model that is adapted, options of PEFT, and what is done to the files."""
    kind = draw(st.sampled_from(BASES))
    options = draw(PLAIN)
    if not isinstance(options["target_modules"], str):
        options |= draw(st.just({}) | LAYERS)
    if kind == "GPT2ForSequenceClassification":
        options["task_type"] = "SEQ_CLS"
    if options.get("init_lora_weights") == "orthogonal":
        options |= {"r": 2 * options["r"], "rank_pattern": {}}
    change = draw(st.none() | CONFIG_CHANGES | st.sampled_from([*TENSOR_CHANGES, "bin", "float16", "float64"]))
    return kind, options, change


def apply(folder, change):
    if isinstance(change, dict):
        change_config(folder, **change)
    elif change == "bin":
        store_as_bin(folder)
    elif change in ("float16", "float64"):
        store_as(folder, change)
    elif change is not None:
        rename(folder, TENSOR_CHANGES[change])


def require_reason(message, change):
    """A sound adapter is read; every other one is rejected for a reason of the lists."""
    assert change is not None, message
    assert any(reason in message for reason in REASONS), message
    assert message.endswith(".")


@pytest.mark.parity
@given(adapters())
def test_merged_weights_are_those_of_peft_or_a_reason_is_named(drawn):
    pytest.importorskip("peft")
    kind, options, change = drawn
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        try:
            save_adapter(folder, kind, **options)
        except Exception as error:  # no module has these names: there is no adapter
            event(f"not an adapter: {type(error).__name__}")
            return
        apply(folder, change)
        if change == "without transformer":  # the names say that a bare model was adapted
            kind = "GPT2Model"
        try:
            ours = by_gpt2x(folder, kind)
        except UserError as error:
            event(f"rejected: {change}")
            require_reason(str(error), change)
            return
        event("equal")
        require_equal(ours, by_peft(folder, kind))


@pytest.mark.parametrize("values", [{key: value} for key in CHANGING for value in ("x", 1.5, {"a": 1})])
def test_every_key_that_changes_the_computation_is_rejected(sound, values):
    change_config(sound, **values)
    ((key, value),) = values.items()
    with pytest.raises(UserError, match=re.escape(f"has {key}={value!r}, which")):
        open_adapter(sound)


@pytest.mark.parametrize("init", [*BASE_CHANGING_INITS, "pissa_niter_16", "zeros", 7, ["pissa"]])
def test_inits_that_are_not_plain_are_rejected(sound, init):
    change_config(sound, init_lora_weights=init)
    with pytest.raises(UserError, match=re.escape(f"init_lora_weights={init!r}")):
        open_adapter(sound)


def test_a_key_of_a_later_version_is_named_and_ignored(sound, caplog):
    expected = open_adapter(sound).products
    change_config(sound, frobnicate=True)
    with caplog.at_level(logging.WARNING):
        assert open_adapter(sound).products.keys() == expected.keys()
    assert "keys that PEFT 0.21 does not know; they are ignored: frobnicate." in caplog.text


@pytest.mark.parity
def test_the_list_has_every_key_of_pefts_configuration():
    peft = pytest.importorskip("peft")
    keys = peft.LoraConfig(target_modules=["c_attn"]).to_dict().keys()
    assert keys <= {entry.name for entry in FORMAT.entries}


@pytest.fixture
def sound(tmp_path):
    """A sound PEFT directory."""
    lora = lora_config(targets=["c_attn"])
    export_peft(adapter_of(random_factors(lora, MODEL), lora, MODEL), tmp_path / "sound")
    return tmp_path / "sound"


def test_adapters_in_folders_below_are_named(sound, tmp_path):
    (tmp_path / "several").mkdir()
    shutil.move(sound, tmp_path / "several" / "poems")
    with pytest.raises(UserError, match=r"several adapters. Give one of: .*several/poems\."):
        open_adapter(tmp_path / "several")


# ---- the other way


@st.composite
def our_adapters(draw):
    """What `lora=` can train: targets, rank, alpha, scale."""
    modules = draw(
        st.lists(st.sampled_from([*EVERYWHERE, "h.0.attn.q", "h.2.mlp.*", "h.1.attn.v"]), min_size=1, unique=True)
    )
    if draw(st.booleans()):
        modules = [module for module in modules if module not in ("q", "k", "v") and "attn" not in module] + ["c_attn"]
    return lora_config(
        targets=modules, rank=draw(st.integers(1, 4)), alpha=draw(st.sampled_from([1.0, 8.0, 3.5])),
        rank_stabilized=draw(st.booleans()), dropout=draw(st.sampled_from([0.0, 0.1])),
    )  # fmt: skip


@pytest.mark.parity
@given(our_adapters(), st.sampled_from(BASES[1:]))
def test_peft_merges_our_adapters_as_we_do(lora, kind):
    pytest.importorskip("peft")
    head = {}
    if kind == BASES[2]:
        head = {"head": np.random.default_rng(0).normal(size=(3, MODEL.hidden_size)).astype(np.float32)}
    adapter = adapter_of(random_factors(lora, MODEL), lora, MODEL, **head)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_peft(adapter, Path(name) / "peft")
        expected = dict(merged(lazy(values_of(base_of(kind))), adapter))
        require_equal(by_peft(Path(name) / "peft", kind), expected)
        require_equal(by_gpt2x(Path(name) / "peft", kind), expected)


# ---- the tokenizer of merged weights


def test_merged_weights_have_the_tokenizer_and_the_template_of_the_training(tmp_path):
    base = SimpleNamespace(
        kind="huggingface", path=tmp_path / "base", model=MODEL, tokenizer_dir=tmp_path / "base", weights=dict,
        query_factors=(), special_ids=None,
    )  # fmt: skip
    lora = lora_config(targets=["c_attn"])
    factors = random_factors(lora, MODEL)
    trained = adapter_of(factors, lora, MODEL, path=tmp_path, tokenizer_dir=tmp_path / "tokenizer")
    assert MergedWeights(base, trained).tokenizer_dir == tmp_path / "tokenizer"
    assert MergedWeights(base, trained, sign=-1).tokenizer_dir == tmp_path / "base"
    assert MergedWeights(base, adapter_of(factors, lora, MODEL, path=tmp_path)).tokenizer_dir == tmp_path / "base"


# ---- bases whose queries are scaled


@pytest.fixture
def scaled_base(tmp_path):
    """A Hugging Face directory whose attention scores are divided by the number of the layer."""
    pytest.importorskip("transformers")
    base = base_of("GPT2LMHeadModel")
    base.config.scale_attn_by_inverse_layer_idx = True
    base.save_pretrained(tmp_path / "base")
    return load_source(tmp_path / "base")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("target", "is_scaled"),
    [("c_attn", True), ("h.2.attn.c_attn", True), ("h.0.attn.c_attn", False), ("mlp.c_fc", False)],
)
def test_pefts_adapters_of_scaled_queries_are_rejected(scaled_base, tmp_path, target, is_scaled):
    pytest.importorskip("peft")
    save_adapter(tmp_path / "adapter", "GPT2LMHeadModel", target_modules=[target])
    if not is_scaled:
        check_fits(open_adapter(tmp_path / "adapter"), scaled_base, "base")
        return
    with pytest.raises(UserError, match=r"queries of h\.\d.*scale_attn_by_inverse_layer_idx=true"):
        MergedWeights(scaled_base, open_adapter(tmp_path / "adapter"))


@pytest.mark.parity
@pytest.mark.parametrize(("target", "is_scaled"), [("q", True), ("c_attn", True), ("k", False), ("h.0.attn.q", False)])
def test_our_adapters_of_scaled_queries_are_merged_but_not_exported_for_peft(scaled_base, tmp_path, target, is_scaled):
    lora = lora_config(targets=[target])
    adapter = adapter_of(random_factors(lora, MODEL), lora, MODEL, path=tmp_path, base=str(scaled_base.path))
    check_fits(adapter, scaled_base, "base")
    if not is_scaled:
        check_base_of_export(adapter)
        return
    with pytest.raises(UserError, match=r"--to peft: .* queries of h\.1.*--to hf --merge"):
        check_base_of_export(adapter)
