"""Weights of MindFormers' GPT-2: its `.ckpt` files, YAML files, slices of distributed runs and LoRA."""

import itertools
import json
import logging
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2x.convert import load_source
from gpt2x.convert.mindformers_names import MINDFORMERS_NAMES, is_weight
from gpt2x.errors import UserError
from gpt2x.formats.base import Change
from gpt2x.formats.mindformers import export
from gpt2x.lora.adapter import check_base
from gpt2x.lora.merge import merged
from gpt2x.lora.open import open_adapter
from gpt2x.model.stats import tensor_shapes
from tests.support.mindformers import TINY, logical_of, parameters_of, save, write_strategy, write_yaml

WORDS = "backbone.embedding.word_embedding.embedding_table"
MAPPING = "backbone.blocks.0.output.mapping.weight"
FEW = settings(max_examples=max(1, settings().max_examples // 5))  # of those that take long
STATES = {
    "adam_m.backbone.layernorm.gamma": np.zeros(8, np.float32),
    "adam_v.backbone.blocks.0.attention.dense1.weight": np.zeros((8, 8), np.float32),
    "global_step": np.int32([3]),
    "scale_sense": np.float32(65536),
    "learning_rate": np.float32(1e-4),
    "beta1_power": np.float32(0.9),
}


def rejection(load) -> str:
    """Return the message with which `load=` is rejected."""
    with pytest.raises(UserError) as caught:
        load_source(load)
    message = str(caught.value)
    assert message.endswith(".") or "\n" in message
    return message


def loaded(load):
    """Return the weights and None, or None and the message with which they are rejected."""
    try:
        return load_source(load).weights(), None
    except UserError as error:
        return None, str(error)


def assert_equal(tensors, expected):
    """Check that lazy tensors have these names and values."""
    assert set(tensors) == set(expected)
    for name, values in expected.items():
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(tensors[name], values, err_msg=name)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of the tiny model and its YAML file."""
    save(tmp_path / "gpt2.ckpt", parameters_of(TINY))
    write_yaml(tmp_path / "gpt2.yaml", TINY)
    return tmp_path


# ---- names and values


@st.composite
def models(draw):
    """Draw the shape of a GPT-2 that MindFormers could have written."""
    heads = draw(st.integers(1, 3))
    hidden = heads * draw(st.integers(1, 4))
    return replace(
        TINY,
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        hidden_size=hidden,
        max_seq_len=draw(st.integers(1, 20)),
        vocab_size=draw(st.integers(1, 60)),
        ffn_size=draw(st.sampled_from([None, 1, 2, 5])),
        activation=draw(st.sampled_from(["gelu_new", "fast_gelu"])),
        dropout=draw(st.sampled_from([0.1, 0.0, 0.25])),
        labels=draw(st.sampled_from([None, ["LABEL_0", "LABEL_1"], ["LABEL_0"]])),
    )


def with_width(model):
    """Return the model with ffn_size in values, where None stands for four times the hidden size."""
    size = model.ffn_size and model.ffn_size * model.hidden_size
    return replace(model, ffn_size=None if model.ffn_size == 4 else size)


@pytest.mark.run
@given(models().map(with_width), st.sampled_from(["float32", "float16"]), st.data())
def test_generated_checkpoints_are_read_and_written_again(tmp_path_factory, model, dtype, data):
    tmp_path = tmp_path_factory.mktemp("generated")
    parameters = parameters_of(model, seed=data.draw(st.integers(0, 99)), dtype=dtype)
    old = data.draw(st.sampled_from([False, True]))
    extra = data.draw(st.sampled_from([{}, STATES]))
    stored = {old_name(name) if old else name: values for name, values in parameters.items()} | extra
    named = data.draw(st.permutations(list(stored))) if data.draw(st.booleans()) else list(stored)
    kind = data.draw(st.sampled_from(["ckpt", "safetensors"]))
    file = save(tmp_path / f"some.{kind}", {name: stored[name] for name in named}, format=kind)
    activation = {"gelu_new": "gelu", "fast_gelu": "fast_gelu"}[model.activation]
    write_yaml(tmp_path / "some.yaml", model, hidden_act=activation, hidden_dropout_rate=model.dropout,
               embedding_dropout_prob=model.dropout, attention_dropout_rate=model.dropout,
               num_labels=model.labels and len(model.labels))  # fmt: skip

    for load in (file, tmp_path):
        source = load_source(load)
        assert (source.kind, source.path) == ("mindformers", load)
        assert source.model == replace(model, name=source.model.name)
        assert list(source.weights()) == list(tensor_shapes(model))
        assert_equal(source.weights(), logical_of(parameters))
    export(tmp_path, tmp_path / "out", None)
    if named == list(parameters) and kind == "ckpt":
        assert (tmp_path / "out" / "mindspore_model.ckpt").read_bytes() == file.read_bytes()
    theirs = ms.load_checkpoint(str(tmp_path / "out" / "mindspore_model.ckpt"))
    assert_equal({name: value.asnumpy() for name, value in theirs.items()}, parameters)
    again = load_source(tmp_path / "out")
    assert again.model == source.model


def old_name(name):
    """Return the spelling of release 0.3 (gpt2/convert_weight.py there)."""
    for new, old in (("backbone.blocks.", "gpt2.backbone.transformer.encoder.blocks."),
                     ("backbone.layernorm.", "gpt2.backbone.layernorm.")):  # fmt: skip
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def test_boxes_of_joined_matrices(folder):
    weights = load_source(folder).weights()
    whole = weights["h.1.attn.c_attn.weight"]
    for first, count in itertools.product((0, 5, 7, 8, 15), (1, 2, 9)):
        box = weights.read("h.1.attn.c_attn.weight", (2, first), (3, count))
        np.testing.assert_array_equal(box, whole[2:5, first : first + count])
    np.testing.assert_array_equal(
        weights.read("h.1.attn.c_attn.bias", (6,), (12,)), weights["h.1.attn.c_attn.bias"][6:18]
    )


def test_the_reference_computes_the_same_attention(folder):
    """x W^T + b of dense1, dense2 and dense3 (modules/layers.py: Linear, transpose_b) are the columns of c_attn."""
    parameters, weights = parameters_of(TINY), load_source(folder).weights()
    x = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    joined = x @ weights["h.0.attn.c_attn.weight"] + weights["h.0.attn.c_attn.bias"]
    for third in range(3):
        linear = f"backbone.blocks.0.attention.dense{third + 1}"
        expected = x @ parameters[f"{linear}.weight"].T + parameters[f"{linear}.bias"]
        np.testing.assert_allclose(joined[:, third * 8 : third * 8 + 8], expected, rtol=1e-5)


def test_states_of_training_are_not_used_and_a_notice_says_so(tmp_path, caplog):
    save(
        tmp_path / "a.ckpt",
        parameters_of(TINY) | STATES,
        append_dict={"epoch_num": 1, "step_num": 9, "loss_scale": 2.0},
    )
    write_yaml(tmp_path / "a.yaml", TINY)
    assert_equal(load_source(tmp_path / "a.ckpt").weights(), logical_of(parameters_of(TINY)))
    assert f"{len(STATES) + 3} states of its optimizer and training are not used" in caplog.text


def test_caches_and_masks_are_ignored(tmp_path, caplog):
    extra = {
        "backbone.blocks.0.key_past": np.zeros((1, 2, 4, 16), np.float16),
        "backbone.blocks.0.value_past": np.zeros((1, 2, 16, 4), np.float16),
        "backbone.blocks.1.attention.beta": np.tril(np.ones((1, 1, 16, 16), np.float32)),
        "backbone.blocks.1.attention.masked_beta": np.float32(-1e4),
    }
    save(tmp_path / "a.ckpt", parameters_of(TINY) | extra)
    write_yaml(tmp_path / "a.yaml", TINY)
    assert_equal(load_source(tmp_path).weights(), logical_of(parameters_of(TINY)))
    assert not caplog.text


def changed(**changes):
    """Return the tiny model's parameters with some replaced or, if None, left out."""
    return {name: values for name, values in (parameters_of(TINY) | changes).items() if values is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.blocks.1.attention.dense2.weight": None}, "missing: backbone.blocks.1.attention.dense2.weight"),
        ({"backbone.blocks.0.layernorm1.gamma": None}, "missing: backbone.blocks.0.layernorm1.gamma"),
        ({WORDS: None}, f"incomplete: {WORDS} missing"),
        ({WORDS: np.zeros(8, np.float32)}, "has to be a matrix"),
        ({MAPPING: np.zeros((4, 32), np.float32)}, f"mis-shaped: {MAPPING} (4, 32) instead of (8, 32)"),
        ({"backbone.blocks.1.attention.dense1.weight": np.zeros((4, 8), np.float32)}, "give the folder of rank_0"),
        ({"backbone.blocks.0.output.ffn.mapping.weight": np.zeros((2, 8, 32), np.float32)}, "experts (MoE)"),
        ({"backbone.blocks.0.output.router.dense.weight": np.zeros((2, 8), np.float32)}, "experts (MoE)"),
        ({"backbone.something": np.zeros(8, np.float32)}, "unexpected: backbone.something"),
        ({"score.weight": np.zeros((0, 8), np.float32)}, "score.weight"),
        ({"gpt2.backbone.layernorm.gamma": np.zeros(8, np.float32)}, "occurs twice, in two spellings"),
        ({"backbone.blocks.999999.layernorm1.gamma": np.zeros(8, np.float32)}, "incomplete: most of 1000000 layers"),
        (
            {"backbone.blocks.9.layernorm1.gamma": np.zeros(8, np.float32)},
            "num_layers=2, but the tensors have 10 (blocks)",
        ),
    ],
)
def test_parameters_that_are_no_gpt2_are_rejected(tmp_path, changes, message):
    parameters = changed(**changes)
    if 0 in parameters.get("score.weight", np.ones(1)).shape:
        parameters["score.weight"] = np.zeros((1, 3), np.float32)
    save(tmp_path / "a.ckpt", parameters)
    write_yaml(tmp_path / "a.yaml", TINY)
    assert message in rejection(tmp_path / "a.ckpt")


def test_an_empty_checkpoint_is_rejected(tmp_path):
    """MindFormers' converter writes one for names with `transformer.`."""
    save(tmp_path / "a.ckpt", {"epoch_num": np.int32(1)})
    assert "it has none of them" in rejection(tmp_path / "a.ckpt")


@given(st.data())
def test_a_damaged_checkpoint_is_rejected_or_one_value_differs(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("damaged")
    parameters = parameters_of(replace(TINY, num_layers=1, hidden_size=2, num_heads=1, vocab_size=3, max_seq_len=2))
    file = save(tmp_path / "a.ckpt", parameters)
    write_yaml(tmp_path / "a.yaml", TINY, num_layers=1, hidden_size=2, num_heads=1, vocab_size=3, seq_length=2)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    file.write_bytes(content)
    weights, message = loaded(file)
    if weights is None:
        assert str(file) in message
        return
    expected = logical_of(parameters)  # a bit of a value; the file has no checksum
    differing = sum(int((weights[name].view(np.uint32) != expected[name].view(np.uint32)).sum()) for name in expected)
    assert differing == 1


# ---- the YAML file


def test_without_a_yaml_file_a_published_size_is_assumed_aloud(tmp_path, caplog, monkeypatch):
    option = replace(TINY, name="gpt2_small", num_heads=4)
    monkeypatch.setattr("gpt2x.convert.mindformers_config._options", lambda: {(2, 8): option})
    save(tmp_path / "gpt2.ckpt", parameters_of(TINY))
    source = load_source(tmp_path / "gpt2.ckpt")
    assert source.model == option
    assert "num_heads=4 and activation=gelu_new of model=gpt2_small are assumed" in caplog.text
    write_yaml(tmp_path / "gpt2.yaml", TINY, hidden_act="fast_gelu", num_heads=1)
    caplog.clear()
    source = load_source(tmp_path / "gpt2.ckpt")
    assert (source.model.num_heads, source.model.activation) == (1, "fast_gelu")
    assert (
        "hidden_act=fast_gelu, which is used. The published weights of this size were trained with gelu_new"
        in caplog.text
    )


def test_without_a_yaml_file_another_size_is_rejected_with_the_lines_to_write(tmp_path):
    save(tmp_path / "a.ckpt", parameters_of(TINY))
    message = rejection(tmp_path / "a.ckpt")
    assert "(2 layers of 8) do not say how many heads" in message
    lines = message.split("`")[1].replace("NUMBER", "4")
    (tmp_path / "a.yaml").write_text(lines)
    assert load_source(tmp_path / "a.ckpt").model.num_heads == 4


KEYS = {
    "num_heads": st.sampled_from([1, 2, 4, 8, 3, 0, -2, 2.0, "2", True, None]),
    "hidden_act": st.sampled_from(["gelu", "fast_gelu", "relu", "silu", 1, None]),
    "num_layers": st.sampled_from([2, 3, "2", None]),
    "hidden_size": st.sampled_from([8, 16, None]),
    "vocab_size": st.sampled_from([50, 51, None]),
    "seq_length": st.sampled_from([16, 8, 32, None]),
    "max_position_embeddings": st.sampled_from([16, 8, None]),
    "expand_ratio": st.sampled_from([4, 3, None]),
    "hidden_dropout_rate": st.sampled_from([0.0, 0.1, 1.0, -0.1, "x", True, None]),
    "attention_dropout_rate": st.sampled_from([0, 0.2, None]),
    "post_layernorm_residual": st.sampled_from([False, True, None]),
    "moe_config": st.sampled_from([{"expert_num": 1}, {"expert_num": 4}, None]),
    "use_past": st.booleans(),
    "top_k": st.integers(),
}


@given(st.fixed_dictionaries({}, optional=KEYS))
def test_generated_yaml_files_give_what_gpt2config_gives_or_are_rejected(tmp_path_factory, keys):
    """The right side is MindFormers' GPT2Config: its defaults, and the shapes with which its model would be built."""
    tmp_path = tmp_path_factory.mktemp("yaml")
    save(tmp_path / "a.ckpt", parameters_of(TINY))
    given_keys = {key: value for key, value in keys.items() if value is not None}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"model": {"model_config": {"type": "GPT2Config", **given_keys}}}))
    config = {"num_heads": 12, "hidden_act": "gelu", "hidden_dropout_rate": 0.1, "attention_dropout_rate": 0.1,
              "post_layernorm_residual": False} | given_keys  # fmt: skip
    positions = config.get("max_position_embeddings", config.get("seq_length", 16))
    sizes = [config.get(key, size) for key, size in (("num_layers", 2), ("hidden_size", 8), ("vocab_size", 50),
                                                     ("expand_ratio", 4))]  # fmt: skip
    heads, rates = config["num_heads"], [config["hidden_dropout_rate"], config["attention_dropout_rate"]]
    is_right = (
        type(heads) is int and heads > 0 and 8 % heads == 0
        and config["hidden_act"] in ("gelu", "fast_gelu")
        and all(type(rate) in (int, float) and 0 <= rate < 1 for rate in rates)
        and [positions, *sizes] == [16, 2, 8, 50, 4]
        and not config["post_layernorm_residual"] and config.get("moe_config", {}).get("expert_num", 1) == 1
    )  # fmt: skip
    if not is_right:
        message = rejection(tmp_path / "a.ckpt")
        assert "a.yaml" in message
        return
    model = load_source(tmp_path / "a.ckpt").model
    assert (model.num_heads, model.dropout) == (heads, rates[0])
    assert model.activation == {"gelu": "gelu_new", "fast_gelu": "fast_gelu"}[config["hidden_act"]]
    assert (rates[1] if model.attention_dropout is None else model.attention_dropout) == rates[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "a.yaml cannot be read"),
        ("!!python/object/apply:os.system ['true']", "a.yaml cannot be read"),
        ("[" * 5000, "a.yaml cannot be read"),
        ("\x00", "a.yaml cannot be read"),
    ],
)
def test_a_yaml_file_that_cannot_be_read(tmp_path, content, message):
    save(tmp_path / "a.ckpt", parameters_of(TINY))
    (tmp_path / "a.yaml").write_text(content)
    assert message in rejection(tmp_path / "a.ckpt")


def test_which_yaml_file_is_read(folder):
    (folder / "other.yaml").write_text("run_mode: train")  # describes no model
    assert load_source(folder).model.num_heads == 2
    write_yaml(folder / "other.yaml", TINY, num_heads=4)
    assert load_source(folder).model.num_heads == 2  # that of the same name
    (folder / "gpt2.yaml").rename(folder / "third.yaml")
    message = rejection(folder)
    assert "several YAML files beside it: other.yaml, third.yaml" in message
    assert "gpt2.yaml" in message


def test_keys_that_are_not_in_the_list_are_named(folder, caplog):
    write_yaml(folder / "gpt2.yaml", TINY, rotary_dim=4)
    load_source(folder)
    assert "keys that gpt2x does not know and ignores: rotary_dim" in caplog.text


def test_config_json_beside_mindspore_model(tmp_path):
    """What save_pretrained(save_json=True) writes (models/modeling_utils.py): config.json, shards and their index."""
    parameters = parameters_of(TINY)
    names = list(parameters)
    shards = {"mindspore_model-00001-of-00002.ckpt": names[:9], "mindspore_model-00002-of-00002.ckpt": names[9:]}
    for file, part in shards.items():
        save(tmp_path / file, {name: parameters[name] for name in part})
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "mindspore_model.ckpt.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4, "hidden_act": "fast_gelu", "model_type": "gpt2"}))
    source = load_source(tmp_path)
    assert (source.model.num_heads, source.model.activation) == (4, "fast_gelu")
    assert_equal(source.weights(), logical_of(parameters))
    (tmp_path / "mindspore_model-00002-of-00002.ckpt").unlink()
    assert "names mindspore_model-00002-of-00002.ckpt, which is not there" in rejection(tmp_path)


def huggingface_config(**keys):
    """Return Hugging Face's config.json of the tiny model."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 8, "n_positions": 16, "vocab_size": 50}
    others = {"model_type": "gpt2", "activation_function": "gelu", "layer_norm_epsilon": 1e-6}
    return json.dumps(sizes | others | keys)


def test_the_config_of_hugging_face_beside_converted_weights(tmp_path):
    save(tmp_path / "gpt2_13b.ckpt", parameters_of(TINY))
    (tmp_path / "config.json").write_text(huggingface_config())
    model = load_source(tmp_path).model
    assert (model.num_heads, model.activation, model.layer_norm_eps) == (4, "gelu", 1e-6)
    changes = [{"n_layer": 3}, {"vocab_size": 51}, {"n_inner": 9}, {"tie_word_embeddings": False}]
    changes += [{"scale_attn_by_inverse_layer_idx": True}, {"architectures": ["GPT2ForSequenceClassification"]}]
    for keys in changes:
        (tmp_path / "config.json").write_text(huggingface_config(**keys))
        assert "belongs to a different model than the tensors" in rejection(tmp_path)
    (tmp_path / "config.json").write_text(huggingface_config(n_head=3))
    assert "n_head=3" in rejection(tmp_path)
    save(tmp_path / "gpt2_13b.ckpt", parameters_of(replace(TINY, labels=["a", "b"])))
    (tmp_path / "config.json").write_text(
        huggingface_config(architectures=["GPT2ForSequenceClassification"], id2label={"0": "no", "1": "yes"})
    )
    assert load_source(tmp_path).model.labels == ["no", "yes"]


def test_a_yaml_file_without_model_config_says_nothing(tmp_path):
    save(tmp_path / "a.ckpt", parameters_of(TINY))
    (tmp_path / "a.yaml").write_text("model: {arch: {type: GPT2LMHeadModel}}")
    assert "no YAML file with model.model_config is beside it" in rejection(tmp_path)


# ---- files and folders


def test_several_files_are_listed(folder):
    save(folder / "b.ckpt", parameters_of(TINY, 1))
    message = rejection(folder)
    assert f"has 2 weight files. Give one of: {folder}/b.ckpt, {folder}/gpt2.ckpt." in message
    assert load_source(folder / "gpt2.ckpt").model.num_heads == 2


def test_a_missing_file_is_no_name_of_the_hub(tmp_path):
    assert f"load={tmp_path}/gpt2.ckpt does not exist" in rejection(tmp_path / "gpt2.ckpt")
    assert "load=gpt2.ckpt does not exist" in rejection("gpt2.ckpt")


def test_a_damaged_sum_is_reported(tmp_path):
    file = save(tmp_path / "a.ckpt", parameters_of(TINY), crc_check=True)
    write_yaml(tmp_path / "a.yaml", TINY)
    load_source(file)
    content = bytearray(file.read_bytes())
    content[-40] ^= 1  # of a value
    file.write_bytes(content)
    assert "CRC-32" in rejection(file)


def test_the_tokenizer_beside_it(folder):
    assert load_source(folder).tokenizer_dir is None
    (folder / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert load_source(folder).tokenizer_dir == folder
    export(folder, folder / "out", None)
    config = yaml.safe_load((folder / "out" / "mindspore_model.yaml").read_text())["model"]["model_config"]
    assert config["eos_token_id"] == 1
    assert load_source(folder / "out").tokenizer_dir == folder / "out"


# ---- slices of distributed runs


def layouts_of(parameters, tensor, data, optimizer):
    """Return the layouts of MindFormers' data x tensor parallel run, and whether each parameter is sliced.

    dense1 to 3 and output.mapping are divided by their outputs, both projections by their inputs, the embeddings not
    (a vocabulary that tensor parallelism does not divide); the parallel optimizer divides matrices that are left over.
    """
    layouts = {}
    for name, values in parameters.items():
        tensor_map = [-1] * values.ndim
        if ".dense" in name:
            tensor_map[0] = 0
        elif "output.mapping" in name:
            tensor_map[-1] = 0
        elif "projection.weight" in name:
            tensor_map[0] = 0
        shards = 0
        rows = values.shape[0] // (tensor if tensor_map[0] == 0 else 1)
        if optimizer and data > 1 and values.ndim == 2 and "embedding" not in name and rows % data == 0:
            shards = data
        tensor_map = tensor_map if tensor > 1 else [-1] * values.ndim
        if shards and max(tensor_map) == -1:  # all ranks have copies: MindSpore's step is 1
            layouts[name] = ([data, tensor], tensor_map, 1, shards)
        else:
            layouts[name] = ([data, tensor], tensor_map, tensor if shards else 0, shards)
    return layouts


def write_ranks(folder, stages, data, tensor, optimizer):
    """Let MindSpore divide the parameters of each stage among the ranks, and write the strategy files."""
    size = data * tensor
    for stage, parameters in enumerate(stages):
        layouts = layouts_of(parameters, tensor, data, optimizer)
        strategies = [folder / "strategy" / f"ckpt_strategy_rank_{stage * size + rank}.ckpt" for rank in range(size)]
        for file in strategies:
            write_strategy(file, layouts, stage)
        save(folder / f"whole{stage}" / "rank_0" / "a0.ckpt", parameters)
        parts = folder / f"parts{stage}"
        ms.transform_checkpoints(str(folder / f"whole{stage}"), str(parts), "a", None, str(strategies[0]))
        for rank in range(size):
            target = folder / "checkpoint" / f"rank_{stage * size + rank}"
            target.mkdir(parents=True)
            (parts / f"rank_{rank}" / f"a{rank}.ckpt").rename(target / f"net_rank_{stage * size + rank}-1_10.ckpt")
    write_yaml(folder / "checkpoint" / "gpt2.yaml", TINY)
    return folder / "checkpoint"


@pytest.mark.run
@FEW
@given(
    st.sampled_from([(1, 2), (2, 1), (2, 2), (4, 2), (2, 4), (1, 8), (4, 1)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_slices_that_mindspore_made_are_joined(tmp_path_factory, degrees, optimizer, by_file, pipeline):
    folder = tmp_path_factory.mktemp("sliced")
    data, tensor = degrees
    parameters = parameters_of(TINY, data)
    # as in MindFormers: embeddings in the first stage, the last norm and the tied embedding in the last
    last = {name: values for name, values in parameters.items() if "blocks.1" in name or "backbone.layernorm" in name}
    first = {name: values for name, values in parameters.items() if name not in last}
    stages = [first, last | {WORDS: parameters[WORDS]}] if pipeline else [parameters]
    checkpoint = write_ranks(folder, stages, data, tensor, optimizer)
    load = checkpoint / "rank_0" / "net_rank_0-1_10.ckpt" if by_file else checkpoint
    source = load_source(load)
    assert_equal(source.weights(), logical_of(parameters))
    assert load_source(folder).model == source.model  # MindFormers' output folder


def test_more_checkpoints_per_rank_are_listed_and_chosen_by_file(tmp_path):
    checkpoint = write_ranks(tmp_path, [parameters_of(TINY)], 1, 2, optimizer=False)
    for rank in range(2):
        file = next((checkpoint / f"rank_{rank}").iterdir())
        (file.parent / f"net_rank_{rank}-1_20.ckpt").write_bytes(file.read_bytes())
    message = rejection(checkpoint)
    assert "rank_0 has 2 weight files" in message
    assert_equal(load_source(checkpoint / "rank_0" / "net_rank_0-1_20.ckpt").weights(), logical_of(parameters_of(TINY)))
    assert_equal(load_source(checkpoint / "rank_1" / "net_rank_1-1_10.ckpt").weights(), logical_of(parameters_of(TINY)))


def test_what_is_missing_of_a_distributed_run_is_named(tmp_path):
    parameters = parameters_of(TINY)
    checkpoint = write_ranks(tmp_path, [parameters], 2, 2, optimizer=False)
    (checkpoint / "rank_0" / "net_rank_0-1_10.ckpt").unlink()
    assert_equal(load_source(checkpoint).weights(), logical_of(parameters))  # rank_2 has copies
    (checkpoint / "rank_2" / "net_rank_2-1_10.ckpt").unlink()
    assert "its slices of rank_0, rank_2 are missing" in rejection(checkpoint)
    for file in (tmp_path / "strategy").iterdir():
        file.unlink()
    assert "there is no strategy file (such as" in rejection(checkpoint)


def test_the_strategy_of_a_missing_stage_is_named(tmp_path):
    parameters = parameters_of(TINY)
    last = {name: values for name, values in parameters.items() if "blocks.1" in name}
    first = {name: values for name, values in parameters.items() if name not in last}
    checkpoint = write_ranks(tmp_path, [first, last], 1, 2, optimizer=False)
    for rank in (2, 3):
        (tmp_path / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").unlink()
    assert "rank_2 belongs to pipeline stage 1" in rejection(checkpoint)


def test_slices_of_different_steps_are_rejected(tmp_path):
    checkpoint = write_ranks(tmp_path, [parameters_of(TINY)], 1, 2, optimizer=False)
    save(checkpoint / "rank_1" / "net_rank_1-1_10.ckpt", parameters_of(replace(TINY, hidden_size=4)))
    assert "its slices are not of one checkpoint" in rejection(checkpoint)


def test_merged_and_json_strategies(tmp_path):
    parameters = parameters_of(TINY)
    checkpoint = write_ranks(tmp_path, [parameters], 1, 2, optimizer=False)
    ms.merge_pipeline_strategys(str(tmp_path / "strategy"), str(tmp_path / "merged_strategy.ckpt"))
    for file in (tmp_path / "strategy").iterdir():
        file.unlink()
    assert_equal(load_source(checkpoint).weights(), logical_of(parameters))
    (tmp_path / "merged_strategy.ckpt").unlink()
    items = {
        name: {"dev_matrix": layout[0], "tensor_map": layout[1], "opt_weight_shard_step": 0, "opt_weight_shard_size": 0}
        for name, layout in layouts_of(parameters, 2, 1, optimizer=False).items()
    }
    content = {"parallel_strategy_item": {"op": {"stage": 0, "parallel_strategy": []}}, "parallel_layout_item": items}
    (tmp_path / "strategy" / "strategy_0.json").write_text(json.dumps(content))
    assert_equal(load_source(checkpoint).weights(), logical_of(parameters))
    items[WORDS]["tensor_map"] = [7, -1]
    (tmp_path / "strategy" / "strategy_0.json").write_text(json.dumps(content))
    assert "does not fit the device matrix" in rejection(checkpoint)


@FEW
@given(st.data())
def test_a_damaged_strategy_is_rejected_or_gives_other_shapes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("strategy")
    parameters = parameters_of(replace(TINY, num_layers=1))
    checkpoint = write_ranks(folder, [parameters], 1, 2, optimizer=False)
    write_yaml(checkpoint / "gpt2.yaml", TINY, num_layers=1)
    (folder / "strategy" / "ckpt_strategy_rank_1.ckpt").unlink()
    file = folder / "strategy" / "ckpt_strategy_rank_0.ckpt"
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))])
    weights, message = loaded(checkpoint)
    if weights is None:
        assert str(checkpoint) in message or str(file) in message
        return
    assert weights.shapes == {name: values.shape for name, values in logical_of(parameters).items()}


def test_ranks_with_whole_copies_need_no_strategy(tmp_path):
    for rank in range(2):
        save(tmp_path / f"rank_{rank}" / f"net_rank_{rank}.ckpt", parameters_of(TINY))
    write_yaml(tmp_path / "gpt2.yaml", TINY)
    assert_equal(load_source(tmp_path).weights(), logical_of(parameters_of(TINY)))


# ---- LoRA


def factors_of(linears, rank=2, suffix="mindpet_delta_lora_", seed=5):
    """Return factors A (r, in) and B (out, r) beside linears, as mindpet stores them."""
    generator = np.random.default_rng(seed)
    parameters = parameters_of(TINY)
    stored = {}
    for linear in linears:
        sizes = parameters[f"{linear}.weight"].shape
        num_outputs, num_inputs = sizes if "dense" in linear else sizes[::-1]
        upper = suffix.endswith("L_")
        stored[f"{linear}.{suffix.lower()}{'A' if upper else 'a'}"] = generator.standard_normal(
            (rank, num_inputs)
        ).astype("f4")
        stored[f"{linear}.{suffix.lower()}{'B' if upper else 'b'}"] = generator.standard_normal(
            (num_outputs, rank)
        ).astype("f4")
    return stored


def merged_by_the_reference(parameters, factors, scale):
    """Return what MindFormers' transform_ckpt_lora.py makes: W + scale B A, transposed if the weight is (in, out)."""
    result = dict(parameters)
    for name, a in factors.items():
        if not name.lower().endswith("lora_a"):
            continue
        linear = name.rpartition(".")[0]
        product = factors[name[:-1] + ("b" if name[-1] == "a" else "B")] @ a * np.float32(scale)
        weight = parameters[f"{linear}.weight"]
        result[f"{linear}.weight"] = weight + (product if "dense" in linear else product.T)
    return result


LINEARS = [f"backbone.blocks.{layer}.{part}" for layer in (0, 1) for part in (
    "attention.dense1", "attention.dense2", "attention.dense3", "attention.projection", "output.mapping",
    "output.projection")]  # fmt: skip


@pytest.mark.run
@given(
    st.lists(st.sampled_from(LINEARS), min_size=1, unique=True),
    st.integers(1, 4),
    st.sampled_from([1, 16, 0.5]),
    st.sampled_from(["mindpet_delta_lora_", "tk_delta_lora_", "mindpet_delta_lorA_"]),
)
def test_lora_is_what_the_reference_computes(tmp_path_factory, linears, rank, alpha, suffix):
    folder = tmp_path_factory.mktemp("lora")
    parameters, factors = parameters_of(TINY), factors_of(linears, rank, suffix)
    pet = {"pet_type": "lora", "lora_rank": rank, "lora_alpha": alpha, "lora_dropout": 0.1}
    save(folder / "gpt2_lora.ckpt", parameters | factors)
    save(folder / "only.ckpt", factors)
    save(folder / "gpt2.ckpt", parameters)
    for name in ("gpt2_lora", "only", "gpt2"):
        write_yaml(folder / f"{name}.yaml", TINY, pet_config=pet)
    expected = logical_of(merged_by_the_reference(parameters, factors, alpha / rank))
    whole = load_source(folder / "gpt2_lora.ckpt").weights()
    base = load_source(folder / "gpt2.ckpt")
    for file in ("gpt2_lora.ckpt", "only.ckpt"):
        adapter = open_adapter(folder / file)
        check_base([adapter], base.weights(), str(folder / "gpt2.ckpt"))
        added = merged(base.weights(), adapter)
        assert (adapter.dropout, adapter.name) == (0.1, file)
        for name, values in expected.items():
            np.testing.assert_allclose(whole[name], values, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(added[name], values, rtol=1e-5, atol=1e-5)


def test_lora_without_alpha_is_rejected_with_the_lines_to_write(tmp_path):
    factors = factors_of(LINEARS[:1])
    save(tmp_path / "gpt2_lora.ckpt", parameters_of(TINY) | factors)
    write_yaml(tmp_path / "gpt2_lora.yaml", TINY)
    message = rejection(tmp_path / "gpt2_lora.ckpt")
    assert "LoRA's factors of rank 2, but not lora_alpha" in message
    with pytest.raises(UserError, match="but not lora_alpha"):
        open_adapter(tmp_path / "gpt2_lora.ckpt")
    (tmp_path / "gpt2_lora.yaml").write_text(message.split("`")[1].replace("NUMBER", "2"))
    assert load_source(tmp_path / "gpt2_lora.ckpt").model.num_heads == 2


@pytest.mark.parametrize(
    ("pet", "message"),
    [
        ({"lora_alpha": 4, "lora_rank": 8}, "lora_rank=8 in the YAML file, but the factors have rank 2"),
        ({"lora_alpha": "4"}, "lora_alpha='4' in the YAML file; it has to be a number"),
        ({"lora_alpha": True}, "it has to be a number"),
        ({"pet_type": "prefixtuning", "lora_alpha": 4}, "pet_type='prefixtuning'"),
        ({"lora_rank": 2}, "but not lora_alpha"),
    ],
)
def test_a_pet_config_that_does_not_fit(tmp_path, pet, message):
    save(tmp_path / "a.ckpt", parameters_of(TINY) | factors_of(LINEARS[:2]))
    write_yaml(tmp_path / "a.yaml", TINY, pet_config=pet)
    assert message in rejection(tmp_path / "a.ckpt")


def test_lora_that_is_not_whole(tmp_path):
    factors = factors_of(LINEARS[:2])
    write_yaml(tmp_path / "a.yaml", TINY, pet_config={"lora_alpha": 4})
    half = {name: values for name, values in factors.items() if not name.endswith("dense1.mindpet_delta_lora_b")}
    save(tmp_path / "a.ckpt", parameters_of(TINY) | half)
    assert "dense1 has only one of LoRA's two factors" in rejection(tmp_path / "a.ckpt")
    name = next(name for name in factors if name.endswith("lora_b"))
    save(tmp_path / "a.ckpt", parameters_of(TINY) | factors | {name: np.zeros((7, 2), np.float32)})
    assert "mis-shaped: LoRA's factors of" in rejection(tmp_path / "a.ckpt")
    save(tmp_path / "a.ckpt", factors | {"backbone.layernorm.gamma": np.ones(8, np.float32)})
    with pytest.raises(UserError, match="trained beside LoRA's factors"):
        open_adapter(tmp_path / "a.ckpt")
    save(tmp_path / "a.ckpt", factors)
    assert "holds LoRA's factors and no model. Give load=BASE" in rejection(tmp_path / "a.ckpt")
    save(tmp_path / "a.ckpt", parameters_of(TINY))
    with pytest.raises(UserError, match="holds a model without LoRA's factors"):
        open_adapter(tmp_path / "a.ckpt")


def test_lora_is_not_added_twice(tmp_path):
    save(tmp_path / "gpt2_lora.ckpt", parameters_of(TINY) | factors_of(LINEARS))
    write_yaml(tmp_path / "gpt2_lora.yaml", TINY, pet_config={"lora_alpha": 4})
    for load, adapters in itertools.product((tmp_path, tmp_path / "gpt2_lora.ckpt"), repeat=2):
        with pytest.raises(UserError, match="would add them twice"):
            check_base([open_adapter(adapters)], load_source(load).weights(), str(load))
    out = tmp_path / "base"
    export(tmp_path / "gpt2_lora.ckpt", out, Change(str(tmp_path / "gpt2_lora.ckpt"), -1))  # the base again
    for name, values in logical_of(parameters_of(TINY)).items():
        np.testing.assert_allclose(load_source(out).weights()[name], values, rtol=1e-4, atol=1e-4)


# ---- export


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_embeddings": False}, "model.tie_embeddings=False"),
        ({"layer_norm_eps": 1e-6}, "model.layer_norm_eps=1e-06"),
        ({"ffn_size": 20}, "model.ffn_size=20, no multiple of 8"),
    ],
)
def test_what_mindformers_cannot_compute_is_not_exported(folder, monkeypatch, change, message):
    source = load_source(folder)
    source.model = replace(source.model, **change)
    monkeypatch.setattr("gpt2x.formats.base.load_source", lambda _: source)
    with pytest.raises(UserError) as caught:
        export(folder, folder / "out", None)
    assert message in str(caught.value)
    assert not (folder / "out").exists()


def test_the_exact_gelu_is_exported_with_a_notice(folder, monkeypatch, caplog):
    source = load_source(folder)
    source.model = replace(source.model, activation="gelu")
    monkeypatch.setattr("gpt2x.formats.base.load_source", lambda _: source)
    with caplog.at_level(logging.WARNING):
        export(folder, folder / "out", None)
    assert "MindFormers has only its tanh form" in caplog.text


def test_the_list_has_every_weight_of_the_reference():
    names = {entry.name.replace(".N.", ".0.") for entry in MINDFORMERS_NAMES.entries}
    for name in parameters_of(replace(TINY, num_layers=1, labels=["a"])):
        assert name in names
        assert is_weight(name)
