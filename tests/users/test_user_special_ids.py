"""What starts, ends and pads a text is what transformers takes from config.json and generation_config.json."""

import json
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gpt2x.checkpoint.store import open_checkpoint
from gpt2x.config import GenerationConfig, ParallelConfig, TokenizerConfig
from gpt2x.convert import load_source
from gpt2x.convert.huggingface import export_huggingface
from gpt2x.convert.special_ids import (
    BOS,
    EOS,
    GENERATION,
    GENERATION_FILE,
    PAD,
    SpecialIds,
    special_ids_of_tokenizer,
)
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.formats.gpt2x import write_checkpoint
from gpt2x.generate.predict_text import differences
from gpt2x.model.gpt2 import initial_weights
from gpt2x.pretrained import open_pretrained
from tests.commands import checkpoint, convert
from tests.support.configs import typed
from tests.support.decide import decide
from tests.support.models import tiny_model

VOCAB = 24
MODEL = tiny_model(vocab_size=VOCAB, num_layers=1, hidden_size=16, num_heads=2, initializer_range=0.5)
BARE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": VOCAB}
NEW = 10

# ---- generated files: each id absent, null, a token, no token of the model, or of a wrong type

TOKEN = st.integers(0, VOCAB - 1)
WRONG = st.sampled_from([True, 1.5, "7", "</s>", {}, [[1]], [None], ["1"]])
ONE = st.one_of(st.none(), TOKEN, TOKEN, TOKEN, st.sampled_from([-1, VOCAB, 50256]))
SEVERAL = st.one_of(
    ONE, st.lists(TOKEN, min_size=1, max_size=4), st.lists(st.sampled_from([0, 3, -1, 999]), max_size=3)
)
IDS = st.fixed_dictionaries({}, optional={BOS: ONE, EOS: SEVERAL, PAD: ONE})
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([None, 0.7, 1.0]),
        "top_k": st.sampled_from([None, 0, 50]),
        "max_length": st.sampled_from([None, 5, 50]),
        "repetition_penalty": st.sampled_from([None, 1.0, 1.3]),
        "num_beams": st.just(1),
        "transformers_version": st.just("4.1.0"),
        "_from_model_config": st.booleans(),
        "of_the_author": st.just("x"),
    },
)
IDS_OR_WRONG = st.one_of(
    IDS, IDS, st.fixed_dictionaries({}, optional={BOS: ONE | WRONG, EOS: SEVERAL | WRONG, PAD: ONE | WRONG})
)
FILES = st.tuples(st.builds(dict.__or__, OPTIONS, IDS), st.none() | st.builds(dict.__or__, OPTIONS, IDS))
FILES_OR_WRONG = st.tuples(
    st.builds(dict.__or__, OPTIONS, IDS_OR_WRONG), st.none() | st.builds(dict.__or__, OPTIONS, IDS_OR_WRONG)
)


def write(folder, config, generation):
    """Put the two files beside the weights."""
    (folder / "config.json").write_text(json.dumps(BARE | config))
    (folder / GENERATION_FILE).unlink(missing_ok=True)
    if generation is not None:
        (folder / GENERATION_FILE).write_text(json.dumps(generation))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face directory with random weights and without a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    save_file({f"transformer.{name}": values for name, values in initial_weights(MODEL, 1).items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of 257 tokens; its end-of-text token has id 0."""
    return byte_level_bpe.train(["the crew counted the lamps"], 257)


@pytest.fixture(scope="module")
def transformers():
    """transformers and torch, or a skip by name."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def all_ids(model):
    """BOS, EOS and PAD of a model of transformers: of its config, and of its generation config."""
    return [[getattr(part, key) for key in (BOS, EOS, PAD)] for part in (model.config, model.generation_config)]


# ---- the defining tool


@pytest.mark.parity
@given(files=FILES_OR_WRONG)
def test_files_say_to_gpt2x_what_they_say_to_transformers(transformers, folder, tmp_path_factory, files):
    write(folder, *files)
    try:
        source = load_source(folder)
    except UserError as error:
        key, value = next((key, part[key]) for part in files if part for key in (BOS, EOS, PAD)
                          if key in part and f"{key}={json.dumps(part[key])}" in str(error))  # fmt: skip
        ids = value if isinstance(value, list) and key == EOS else [value]
        assert not all(type(token) is int for token in ids), "rejected for a reason of the list"
        return
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = source.special_ids
    eos = theirs.generation_config.eos_token_id
    assert ids.bos == theirs.generation_config.bos_token_id
    assert ids.eos == tuple([] if eos is None else eos if isinstance(eos, list) else [eos])
    assert ids.pad == theirs.config.pad_token_id
    there, back = tmp_path_factory.mktemp("there") / "x", tmp_path_factory.mktemp("back") / "x"
    write_checkpoint(source, None, there)
    export_huggingface(load_source(there), back)
    again = transformers.AutoModelForCausalLM.from_pretrained(back)
    assert all_ids(again) == all_ids(theirs)
    assert again.generation_config.to_diff_dict() | {"_from_model_config": None} == (
        theirs.generation_config.to_diff_dict() | {"_from_model_config": None}
    )


@pytest.fixture(scope="module")
def generator(folder, hardware, tokenizer):
    """A generator of the random weights, whose graphs all examples share."""
    from gpt2x.generate import Generator
    from gpt2x.model.gpt2 import GPT2, load_weights

    net = GPT2(MODEL, hardware)
    load_weights(net, initial_weights(MODEL, 1))
    return Generator(net, MODEL, hardware, tokenizer)


def with_ids(generator, ids):
    """The generator of the same model whose files state these ids."""
    from gpt2x.generate import Generator

    other = copy(generator)
    fresh = Generator(generator.net, MODEL, generator.slots.hardware, generator.tokenizer, special_ids=ids)
    other.start_id, other.end_ids = fresh.start_id, fresh.end_ids
    return other


@pytest.mark.parity
@given(files=FILES, prompt=st.lists(TOKEN, max_size=4), min_new_tokens=st.sampled_from([0, 0, 3]))
def test_greedy_decoding_starts_and_stops_where_generate_does(
    transformers, folder, generator, files, prompt, min_new_tokens
):
    import torch

    write(folder, *files)
    ids = load_source(folder).special_ids
    penalty = ids.generation.get("repetition_penalty") or 1.0  # which gpt2x says it does not use by itself
    config = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=min_new_tokens, repetition_penalty=penalty, batch_size=1
    )
    ours = with_ids(generator, ids)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    if not prompt and (ids.bos is None or not 0 <= ids.bos < VOCAB):  # an error of transformers
        with pytest.raises((ValueError, IndexError)):
            theirs.generate(max_new_tokens=NEW)
        if ids.bos is None:
            assert ours.encode([""]) == [[0]]
        else:
            with pytest.raises(UserError, match=f"prompt 1 is empty and would start from {BOS}={ids.bos}, which is"):
                ours.encode([""])
        return
    if ids.eos == () and ids.generation.get(EOS) == [] and ids.generation.get(PAD) is None:
        return  # generate fails: it looks for the first of no ids
    options = {"min_new_tokens": min_new_tokens} if min_new_tokens else {}
    inputs = torch.tensor([prompt]) if prompt else None
    if inputs is None and ids.generation.get(PAD) == ids.bos:
        inputs = torch.tensor([[ids.bos]])
    if inputs is not None:  # without a mask, generate takes tokens that equal PAD for padding
        options["attention_mask"] = torch.ones_like(inputs)
    with torch.no_grad():
        expected = theirs.generate(inputs, max_new_tokens=NEW, do_sample=False, **options)[0].tolist()
    start = prompt or ours.encode([""])[0]
    assert start + ours.generate_ids([start], config, seed=0)[0] == expected


@pytest.mark.parity
def test_the_list_of_options_is_that_of_transformers(transformers):
    names = {entry.name for entry in GENERATION.entries}
    assert set(transformers.GenerationConfig().to_dict()) <= names


@pytest.mark.parity
def test_a_training_aligns_ids_as_the_trainer_does(transformers):
    from transformers.trainer_utils import align_special_tokens

    class TheirTokenizer(transformers.PreTrainedTokenizerBase):
        def __init__(self, ids):
            self.ids = ids

        def __getattr__(self, name):
            return self.__dict__["ids"].get(name)

    @given(files=FILES, eos=TOKEN, bos=st.none() | TOKEN, pad=st.none() | TOKEN)
    def check(files, eos, bos, pad):
        config, generation = files[0], files[1] or {}
        theirs = transformers.GPT2Config(**({BOS: None, EOS: None} | config))
        model = type("Model", (), {})()
        model.config, model.generation_config = theirs, transformers.GenerationConfig(**generation)
        align_special_tokens(model, TheirTokenizer({EOS: eos, BOS: bos, PAD: pad}))
        ours = SpecialIds(config, generation).aligned(eos, bos, pad)
        for key in (BOS, EOS, PAD):
            assert ours.config.get(key) == getattr(theirs, key), key
            expected = getattr(model.generation_config, key)
            assert _listed(ours.generation.get(key)) == _listed(expected), key

    check()


def _listed(ids):
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


# ---- what is stored


def test_ids_survive_checkpoints_without_a_tokenizer(folder, tmp_path):
    generation = {EOS: [5, 6], PAD: 9, "repetition_penalty": 1.3, "of_the_author": {"a": [1]}}
    write(folder, {BOS: 3, EOS: 5}, generation)
    convert(["--to", "gpt2x", "--output", str(tmp_path / "ours"), str(folder)])
    convert(["--to", "hf", "--output", str(tmp_path / "back"), str(tmp_path / "ours")])
    assert json.loads((tmp_path / "back" / GENERATION_FILE).read_text()) == generation
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: config[key] for key in (BOS, EOS, PAD) if key in config} == {BOS: 3, EOS: 5}
    checkpoint(["merge", str(tmp_path / "ours"), str(tmp_path / "merged")])
    checkpoint(["reshard", str(tmp_path / "ours"), str(tmp_path / "resharded"), "--parallel", "dp2_zero3"])
    for name in ("merged", "resharded"):
        assert load_source(tmp_path / name).special_ids == SpecialIds({BOS: 3, EOS: 5}, generation)


def test_a_checkpoint_without_the_entry_has_the_ids_of_its_tokenizer(zoo, tmp_path):
    source = load_source(zoo.plain.run_dir)
    assert source.special_ids == special_ids_of_tokenizer(0, 0, is_classifier=False)
    source.special_ids = None
    write_checkpoint(source, source.tokenizer_dir, tmp_path / "old")
    assert open_checkpoint(tmp_path / "old").special_ids is None
    opened = open_pretrained(str(tmp_path / "old"), TokenizerConfig(name="checkpoint"), ParallelConfig(name="single"))
    assert opened.special_ids == special_ids_of_tokenizer(0, 0, is_classifier=False)
    export_huggingface(load_source(tmp_path / "old"), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / GENERATION_FILE).read_text()) == {BOS: 0, EOS: 0, PAD: 0}


@pytest.fixture
def published(tmp_path, tokenizer):
    """A model of 300 tokens with the tokenizer of 257."""
    model = tiny_model(vocab_size=300, num_layers=2, num_heads=2)
    save_file(initial_weights(model, 1), tmp_path / "model.safetensors")
    tokenizer.save(tmp_path)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", BOS: 0, EOS: [7, 9]} | sizes))
    return tmp_path


@pytest.mark.parametrize("task", ["finetune", "classification"])
def test_a_training_keeps_the_ids_and_adds_those_of_its_tokenizer(published, tmp_path, task):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"the crew {i}", "label": i % 2}) + "\n" for i in range(40)))
    dataset = "labelled_text" if task == "classification" else "text"
    (tmp_path / "text.txt").write_text("the crew counted the lamps " * 60)
    path = data if dataset == "labelled_text" else tmp_path / "text.txt"
    (published / GENERATION_FILE).write_text(json.dumps({BOS: 4, EOS: [7, 9], "top_k": 5}))
    decision = decide(
        "train", f"task={task}", f"load={published}", f"dataset={dataset}", f"dataset.train_path={path}",
        f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache", "tracker=none", "trainer.seq_len=16",
        "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=32",
        "model.vocab_size=300", "trainer.global_batch_size=2", "trainer.max_steps=1", "trainer.sample_prompts=[]",
        "tokenizer=checkpoint",
    )  # fmt: skip
    pad = {PAD: 0} if task == "classification" else {}
    expected = SpecialIds({BOS: 0, EOS: [0, 7, 9]} | pad, {BOS: 0, EOS: [0, 7, 9], "top_k": 5} | pad)
    assert decision.special_ids == expected


# ---- what is said


@pytest.mark.parametrize("file", ["config.json", GENERATION_FILE])
@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [(BOS, "<s>", "a whole number"), (BOS, [1], "a whole number"), (PAD, 1.0, "a whole number"),
     (EOS, True, "a whole number or a list of them"), (EOS, [1, None], "a whole number or a list of them")],
)  # fmt: skip
def test_an_id_of_a_wrong_type_is_rejected(folder, file, key, value, kind):
    write(folder, *([{key: value}, None] if file == "config.json" else [{}, {key: value}]))
    with pytest.raises(UserError) as caught:
        load_source(folder)
    expected = f"{folder / file} has {key}={json.dumps(value)}; it must be {kind}, or null. Correct the file."
    assert str(caught.value) == expected


def test_a_damaged_generation_config_is_rejected(folder):
    write(folder, {}, {})
    (folder / GENERATION_FILE).write_text("[1]")
    with pytest.raises(UserError, match=GENERATION_FILE):
        load_source(folder)


def test_options_that_change_what_generate_gives_are_named(tokenizer):
    config = typed("predict", "load=x", "prompts=[a]")
    plain = {EOS: 0, "temperature": 0.7, "top_k": 50, "repetition_penalty": 1.0, "do_sample": False, "min_length": 0}
    assert differences(SpecialIds({}, plain), tokenizer, config) == []
    for key, value in {"repetition_penalty": 1.2, "do_sample": True, "suppress_tokens": [1], "num_beams": 4,
                       "forced_eos_token_id": 0, "no_repeat_ngram_size": 2}.items():  # fmt: skip
        (note,) = differences(SpecialIds({}, plain | {key: value}), tokenizer, config)
        assert f"{key}={json.dumps(value)} ({GENERATION_FILE})" in note


def test_a_tokenizer_whose_eos_ends_nothing_is_named(tokenizer):
    config = typed("predict", "load=x", "prompts=[a]")
    (note,) = differences(SpecialIds({}, {EOS: [5, 6]}), tokenizer, config)
    assert f"{EOS} of load=x is 5, 6, as in transformers" in note
    assert "generation.eos_ids=[0]" in note
    (note,) = differences(SpecialIds({}, {}), tokenizer, config)
    assert f"{EOS} of load=x is nothing" in note
    assert (
        differences(SpecialIds({}, {}), tokenizer, typed("predict", "load=x", "prompts=[a]", "generation.eos_ids=[1]"))
        == []
    )
