"""What a training run takes from `load=` (the table of docs/finetuning.md), and wrong names."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import hydra
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt2x.commands.hydra_entry import register_schemas
from gpt2x.commands.loaded import FREE, with_loaded
from gpt2x.config import ModelConfig, ParallelConfig, TokenizerConfig
from gpt2x.config.options import CONF, known_models
from gpt2x.convert import load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.pretrained import open_pretrained
from gpt2x.train.start_panel import model_notes, origin_of_weights
from tests.commands import convert
from tests.support import in_process
from tests.support.bare_weights import bare_model, write_huggingface
from tests.support.configs import typed
from tests.support.decide import decide, refusal
from tests.support.hub import COMMIT, fill_cache, hub_at
from tests.support.small_runs import corpus

pytestmark = pytest.mark.run  # a composition takes half a second

NOWHERE = "http://127.0.0.1:9"
LABELS = ["glad", "sad", "angry"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """One directory of each kind."""
    root = tmp_path_factory.mktemp("sources")
    paths = {
        "huggingface": write_huggingface(root / "huggingface", bare_model()),
        "no_tokenizer": write_huggingface(root / "no_tokenizer", bare_model(), tokenizer=False),
        "an_option": write_huggingface(root / "an_option", as_option("gpt2_tiny")),
        "classifier": write_huggingface(root / "classifier", bare_model(labels=LABELS)),
        "unnamed": write_huggingface(root / "unnamed", bare_model(labels=["LABEL_0", "LABEL_1", "LABEL_2"])),
    }
    for kind in ("huggingface", "classifier"):
        paths[f"checkpoint_{kind}"] = root / f"checkpoint_{kind}"
        assert convert(["--to", "gpt2x", "--output", str(root / f"checkpoint_{kind}"), str(paths[kind])]) == 0
    return paths


def as_option(name: str) -> ModelConfig:
    return replace(known_models()[name], vocab_size=280, dropout=0.25)


@pytest.fixture
def text(tmp_path) -> list[str]:
    """Options of a run on running text, with all of its files below the folder of the test."""
    return [*places(tmp_path), "dataset=text", f"dataset.path={corpus(tmp_path)}", "trainer.sample_prompts=[]"]


def places(folder: Path) -> list[str]:
    return [f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache", "tracker=none"]


def labelled(folder: Path, names: list[str]) -> list[str]:
    file = folder / f"{'_'.join(names)}.csv"
    rows = [f"the cat sat on a mat {number},{names[number % len(names)]}" for number in range(60)]
    file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return [*places(folder), "dataset=labelled_text", f"dataset.path={file}"]


def is_unprepared(folder: Path) -> bool:
    return not (folder / "cache").exists() and not list((folder / "outputs").rglob("*"))


# ---- what is taken


@pytest.mark.parametrize("kind", ["huggingface", "checkpoint_huggingface", "an_option"])
def test_the_model_the_tokenizer_and_the_positions_are_taken(sources, kind, text, tmp_path):
    decision = decide("train", *text, f"load={sources[kind]}")
    expected = as_option("gpt2_tiny") if kind == "an_option" else bare_model()
    assert replace(decision.model, name="") == replace(expected, name="")
    assert decision.data.tokenizer.fingerprint == Tokenizer.load(sources["huggingface"]).fingerprint
    assert decision.config.trainer.seq_len == min(128, expected.max_seq_len)
    assert not (tmp_path / "cache" / "tokenizers").exists(), "tokenizer=bpe is the default, and trains none here"


def test_what_a_run_may_choose_and_what_agrees_is_used(sources, text):
    load = f"load={sources['huggingface']}"
    run = typed("train", *text, load, "model.dropout=0", "model.num_layers=2", "model.layer_norm_eps=1e-6",
                "model.vocab_size=null", "trainer.seq_len=32")  # fmt: skip
    assert replace(run.model, name="") == replace(bare_model(dropout=0.0), name="")
    assert run.trainer.seq_len == 32
    run = typed("train", *text, load, "model.attention_dropout=0.5")
    assert (run.model.dropout, run.model.attention_dropout) == (0.25, 0.5)


def test_a_dropout_that_is_typed_is_that_of_embeddings_and_attention_too(tmp_path, text):
    path = write_huggingface(tmp_path / "hf", bare_model(), embd_pdrop=0.5, attn_pdrop=0.125)
    taken = typed("train", *text, f"load={path}").model
    assert (taken.dropout, taken.embedding_dropout, taken.attention_dropout) == (0.25, 0.5, 0.125)
    taken = typed("train", *text, f"load={path}", "model.dropout=0").model
    assert (taken.dropout, taken.embedding_dropout, taken.attention_dropout) == (0.0, None, None)
    taken = typed("train", *text, f"load={path}", "model.dropout=0", "model.attention_dropout=0.5").model
    assert (taken.dropout, taken.embedding_dropout, taken.attention_dropout) == (0.0, None, 0.5)


def test_an_option_that_fits_may_be_typed_and_leaves_the_rest_to_the_weights(tmp_path, text):
    path = write_huggingface(tmp_path / "hf", replace(as_option("gpt2_tiny"), activation="gelu", layer_norm_eps=1e-6))
    run = typed("train", *text, f"load={path}", "model=gpt2_tiny")
    assert (run.model.activation, run.model.layer_norm_eps, run.model.vocab_size) == ("gelu", 1e-6, 280)
    assert run.model.dropout == 0.1, "as the option says"
    assert "model.activation=fast_gelu (loaded: gelu)" in refusal(
        "train", *text, f"load={path}", "model=gpt2_tiny", "model.activation=fast_gelu"
    )


def test_a_sequence_refers_to_the_loaded_positions(sources, text):
    run = typed("train", *text, f"load={sources['huggingface']}", "trainer.seq_len=${model.max_seq_len}")
    assert run.trainer.seq_len == 48


def test_a_plan_and_the_check_of_memory_are_of_the_loaded_model(sources, text, capsys):
    from gpt2x.commands.entry import show

    show(typed("train", *text, f"load={sources['huggingface']}", "plan=true"))
    assert "hf_huggingface, single (1 x 1 x 1)" in capsys.readouterr().out
    # a plan of a typed model needs no weights
    assert typed("train", *text, "load=/nowhere", "model=gpt2_xl", "plan=true").model.name == "gpt2_xl"


def test_the_directory_of_a_run_is_named_after_what_it_trains(sources, text):
    def folder(*overrides: str) -> str:
        register_schemas()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", overrides=[*text, *overrides], return_hydra_config=True)
            return str(Path(config.hydra.run.dir).parent.relative_to(Path(config.paths.outputs)))

    assert folder() == "pretrain/gpt2_tiny"
    assert folder("task=finetune", f"load={sources['huggingface']}") == "finetune/hf_huggingface"
    assert folder(f"load={sources['classifier']}") == "classification/hf_classifier"
    assert folder("load=/nowhere") == "pretrain/gpt2_tiny"


# ---- what is rejected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=gpt2_small", "different model than model=gpt2_small: model.num_layers=12 (loaded: 2)"),
        ("model=gpt2_small", "Drop model=gpt2_small: the model is taken from load=."),
        ("model=gpt2_tiny", "different model than model=gpt2_tiny"),
        ("experiment=finetune_small", "different model than model=gpt2_small"),
        ("model.num_heads=1", "typed one: model.num_heads=1 (loaded: 2). Drop model.num_heads:"),
        (
            "model.hidden_size=32 model.max_seq_len=64",
            "(loaded: 48). Drop model.hidden_size model.",
        ),
        ("model.vocab_size=281", "model.vocab_size=281 (loaded: 280)"),
        ("model.ffn_size=32", "model.ffn_size=32 (loaded: null)"),
        ("model.activation=gelu_new", "model.activation=gelu_new (loaded: gelu)"),
        ("model.layer_norm_eps=1e-5", "model.layer_norm_eps=1e-05 (loaded: 1e-06)"),
        ("model.tie_embeddings=false", "model.tie_embeddings=false (loaded: true)"),
        ("trainer.seq_len=64", "trainer.seq_len=64 exceeds model.max_seq_len=48"),
    ],
)
def test_a_different_model_is_rejected_before_anything_is_prepared(sources, overrides, message, text, tmp_path):
    assert message in refusal("train", *text, f"load={sources['huggingface']}", *overrides.split())
    assert is_unprepared(tmp_path)


def test_a_different_tokenizer_is_rejected_before_anything_is_prepared(sources, text, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((sources["huggingface"] / name).read_bytes())
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    load = f"load={sources['huggingface']}"
    assert "is not the tokenizer with which" in refusal("train", *text, load, f"tokenizer.path={other}")
    assert "holds no tokenizer" in refusal("train", *text, f"load={sources['no_tokenizer']}")
    small = write_huggingface(tmp_path / "small", bare_model(vocab_size=270), tokenizer=False)
    path = f"tokenizer.path={sources['huggingface']}"
    assert "the tokenizer has 280 tokens, but the embedding has only" in refusal("train", *text, f"load={small}", path)
    assert is_unprepared(tmp_path)
    assert decide("train", *text, f"load={sources['no_tokenizer']}", path).model.vocab_size == 280


def test_a_model_of_another_task(sources, text, tmp_path):
    for task in ("pretrain", "finetune"):
        message = refusal("train", *text, f"task={task}", f"load={sources['classifier']}")
        assert "holds a classifier (glad, sad, angry), not a language model" in message
    assert "dataset=text has no labels" in refusal("train", *text, f"load={sources['classifier']}")
    assert is_unprepared(tmp_path)


# ---- classes


@pytest.mark.parametrize(
    ("kind", "names"), [("classifier", ["angry", "glad", "sad"]), ("checkpoint_classifier", ["sad", "glad"])]
)
def test_the_task_the_classes_and_their_order_are_taken(sources, kind, names, tmp_path):
    decision = decide("train", *labelled(tmp_path, names), f"load={sources[kind]}")
    assert decision.config.task.name == decision.config.task.objective == "classification"
    assert decision.model.labels == list(decision.data.labels) == LABELS
    assert replace(decision.model, name="", labels=None) == replace(bare_model(), name="")


def test_other_classes_are_rejected_before_anything_is_prepared(sources, tmp_path):
    load = f"load={sources['classifier']}"
    message = refusal("train", *labelled(tmp_path, ["glad", "mad"]), load)
    assert "line 3 has the label 'mad', which is none of " in message
    assert "model.labels=[glad,sad,angry,mad] for a new head" in message
    message = refusal("train", *labelled(tmp_path, ["glad", "sad"]), f"load={sources['unnamed']}")
    assert "has 2 classes ('glad', 'sad'), but the loaded classifier has 3, without names" in message
    assert is_unprepared(tmp_path)


def test_a_new_head_by_name(sources, tmp_path):
    data = labelled(tmp_path, ["glad", "mad"])
    decision = decide("train", *data, f"load={sources['classifier']}", "model.labels=[mad,glad]")
    assert decision.model.labels == list(decision.data.labels) == ["mad", "glad"]


def test_a_head_without_names_takes_those_of_the_data(sources, tmp_path):
    from gpt2x.model.stats import keeps_head

    decision = decide("train", *labelled(tmp_path, ["c", "b", "a"]), f"load={sources['unnamed']}")
    assert decision.model.labels == ["a", "b", "c"]
    assert decision.source.weights is not None
    assert keeps_head(decision.model, decision.source.weights.model)


def test_a_language_model_gets_a_head_for_the_classes(sources, tmp_path):
    load = f"load={sources['huggingface']}"
    decision = decide("train", *labelled(tmp_path, ["b", "a"]), "task=classification", load)
    assert decision.model.labels == ["a", "b"]


# ---- names


def test_names_of_the_hub(sources, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_cache(tmp_path / "hub", "someone/small-gpt", sources["huggingface"])
    with hub_at(NOWHERE, tmp_path / "hub", offline=True):
        decision = decide("train", *text, "load=someone/small-gpt")
        assert replace(decision.model, name="") == replace(bare_model(), name="")
        assert decision.resolved.load == f"someone/small-gpt@{COMMIT}"
        assert decide("train", *text, f"load={decision.resolved.load}").resolved.load == decision.resolved.load
        (tmp_path / "someone").mkdir()
        write_huggingface(tmp_path / "someone" / "small-gpt", bare_model(num_layers=1))
        assert typed("train", *text, "load=someone/small-gpt").model.num_layers == 1, "a local directory goes first"


@pytest.mark.parametrize(
    ("entry", "name"), [("train", "gpt3"), ("train", "out/run1"), ("evaluate", "gpt2x/small"), ("predict", "gpt4")]
)
def test_wrong_names(entry, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [one for one in places(tmp_path) if entry != "predict" or "tracker" not in one]
    options += ["prompts=[a]"] if entry == "predict" else []
    with hub_at(NOWHERE, tmp_path / "hub", offline=True):
        message = refusal(entry, *options, f"load={name}")
    assert f"load={name} is no local directory, and as the name of a repository of the Hugging Face hub" in message
    assert f"not in the cache ({tmp_path / 'hub'}); HF_HUB_OFFLINE=1 forbids to download. Give the directory" in message
    assert is_unprepared(tmp_path)


@pytest.mark.parametrize("name", ["./gpt2", "a/b/c"])
def test_wrong_paths(name, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert "does not exist. Give the directory of a run" in refusal("train", *text, f"load={name}")
    assert is_unprepared(tmp_path)


def test_an_adapter_of_the_hub(sources, tmp_path, text):
    with hub_at(NOWHERE, tmp_path / "hub", offline=True):
        message = refusal("train", *text, f"load={sources['huggingface']}", "lora=r8", "adapters=[someone/adapter]")
    assert "adapters=someone/adapter is no local directory, and as the name of a repository" in message
    assert is_unprepared(tmp_path)


# ---- any combination

TYPED = {
    "num_layers": (2, 3), "num_heads": (2, 1), "hidden_size": (16, 32), "max_seq_len": (48, 64),
    "vocab_size": (280, 281, None), "ffn_size": (None, 64, 32), "activation": ("gelu", "gelu_new", "fast_gelu"),
    "layer_norm_eps": (1e-6, 1e-5), "tie_embeddings": (True, False),
    "dropout": (0.25, 0.0, 0.1), "embedding_dropout": (None, 0.5), "attention_dropout": (None, 0.0),
    "initializer_range": (0.02, 0.01), "scale_residual_init": (True, False), "pad_vocab_multiple": (1, 8),
    "name": ("mine",),
}  # fmt: skip
SAME = {"vocab_size": (280, None), "ffn_size": (None, 64)}  # values that mean what the loaded model has


@pytest.fixture(scope="module")
def composed():
    """The values of a run without load=, as Hydra composes them."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return {option: hydra.compose("train", overrides=[f"model={option}"] if option else [])
                for option in (None, "gpt2_tiny", "gpt2_small")}  # fmt: skip


@given(
    kind=st.sampled_from(["huggingface", "checkpoint_huggingface", "classifier", "unnamed", "checkpoint_classifier"]),
    option=st.sampled_from([None, None, None, "gpt2_tiny", "gpt2_small"]),
    keys=st.dictionaries(st.sampled_from(sorted(TYPED)), st.integers(0, 2), max_size=5),
    seq_len=st.sampled_from([None, 32, 48, 49, 128]),
    task=st.sampled_from([None, "finetune", "classification"]),
    is_argument=st.booleans(),
)
def test_any_combination_is_taken_or_rejected_as_the_table_says(
    sources, composed, kind, option, keys, seq_len, task, is_argument
):
    values = composed[option].copy()
    chosen = {key: TYPED[key][number % len(TYPED[key])] for key, number in keys.items()}
    overrides = [f"model={option}"] if option else []
    if is_argument:  # else in the file of an experiment, where a value of the default cannot be seen
        overrides += [f"model.{key}={value}" for key, value in chosen.items()]
    values.load = str(sources[kind])
    values.model.update(chosen)
    usual = asdict(known_models()[option or "gpt2_tiny"])
    if not is_argument:
        chosen = {key: value for key, value in chosen.items() if value != usual[key]}
    if task:
        OmegaConf.update(values, "task", OmegaConf.load(CONF / "task" / f"{task}.yaml"))
        overrides += [f"task={task}"]
    if seq_len:
        values.trainer.seq_len = seq_len
        overrides += [f"trainer.seq_len={seq_len}"] * is_argument
    loaded = bare_model(labels={"unnamed": ["LABEL_0", "LABEL_1", "LABEL_2"]}.get(kind, LABELS))
    loaded = loaded if "class" in kind or kind == "unnamed" else bare_model()
    wrong = [key for key, value in chosen.items()
             if key not in FREE and value not in SAME.get(key, (getattr(loaded, key),))]  # fmt: skip
    if wrong or option:
        with pytest.raises(UserError) as error:
            with_loaded(values, overrides)
        named = [f"model.{key}=" for key in wrong] + ([f"Drop model={option}"] if option and not wrong else [])
        assert all(name in str(error.value) for name in named), str(error.value)
        return
    taken = with_loaded(values, overrides)
    free = {key: value for key, value in chosen.items() if key in FREE}
    if "dropout" in free:
        free = {"embedding_dropout": None, "attention_dropout": None} | free
    objective = "classification" if task == "classification" or (loaded.labels and not task) else "language_modeling"
    assert taken.task.objective == objective
    expected = replace(loaded, labels=loaded.labels if objective == "classification" else None, **free)
    assert OmegaConf.to_container(taken.model) == asdict(expected) | {"name": chosen.get("name", taken.model.name)}
    is_usual = seq_len is None or (seq_len == 128 and not is_argument)
    assert taken.trainer.seq_len == (48 if is_usual else seq_len)
    assert with_loaded(composed[None], []) is composed[None], "without load= nothing is taken"


# ---- run, load, resume, convert


def test_a_run_is_loaded_resumed_and_exported_without_its_model(zoo, tmp_path):
    options = [*places(tmp_path), "dataset=text", f"dataset.path={corpus(tmp_path)}", "trainer.sample_prompts=[]",
               "trainer.global_batch_size=4", "trainer.max_steps=2", "hardware.peak_tflops=0.1",
               "trainer.compile_cache=false"]  # fmt: skip
    load = f"load={zoo.plain.run_dir}"
    first = in_process.run("train", *options, "task=finetune", load, "model.dropout=0", "trainer.stop_after_steps=1")
    base = typed("train", *options, load).model
    assert base.num_layers == 2
    decision = decide("train", *options, "task=finetune", load, "model.dropout=0")
    assert origin_of_weights(decision).endswith("with its model and tokenizer")
    notes = model_notes(decision)
    assert f"model.dropout=0.0, where the loaded model has {base.dropout}" in notes
    assert "trainer.seq_len=32, all positions of the loaded model" in notes
    tune = [*options, "task=finetune", "model.dropout=0"]
    again = in_process.run("train", *tune, load, "resume=auto")
    assert again.run_dir == first.run_dir
    branch = decide("train", *options, "model.dropout=0", f"resume={first.run_dir}/checkpoints/step_1")
    assert branch.config.task.name == "finetune"
    assert branch.model == replace(base, dropout=0.0)
    assert convert(["--to", "hf", "--output", f"{tmp_path}/hf", str(first.run_dir)]) == 0
    taken = typed("train", *options, f"load={tmp_path}/hf").model
    assert replace(taken, name="", initializer_range=0, scale_residual_init=True) == replace(
        base, name="", dropout=0.0, initializer_range=0, scale_residual_init=True
    )


def test_an_adapter_beside_a_model_is_not_passed_over_in_silence(tmp_path, caplog):
    directory = write_huggingface(tmp_path / "model", bare_model())
    load_source(directory)
    assert not caplog.messages
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    load_source(directory)
    assert [text for text in caplog.messages if f"Give 'adapters=[{directory}]' as well" in text]


def test_an_added_token_without_a_row_is_no_obstacle_until_a_text_has_it(tmp_path, caplog):
    """A [PAD] was added, and the embedding not resized: transformers loads and runs such a model."""
    directory = write_huggingface(tmp_path / "model", bare_model())
    plain = Tokenizer.load(directory)
    (directory / "added_tokens.json").write_text('{"[PAD]": 280}', encoding="utf-8")
    tokenizer = open_pretrained(str(directory), TokenizerConfig(), ParallelConfig(name="single")).tokenizer
    assert [text for text in caplog.messages if "has only 280 rows" in text]
    assert (tokenizer.vocab_size, len(tokenizer.token_bytes())) == (280, 280)
    assert tokenizer.encode("the sea") == plain.encode("the sea")
    assert tokenizer.fingerprint not in (plain.fingerprint, Tokenizer.load(directory).fingerprint)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(UserError, match=r"'\[PAD\]' with the id 280, for which the model has no row"):
            encode("the[PAD]sea")
    (directory / "added_tokens.json").write_text('{"[EOS]": 280}', encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_text('{"eos_token": "[EOS]"}', encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer has 281 tokens, but the embedding has only"):
        open_pretrained(str(directory), TokenizerConfig(), ParallelConfig(name="single"))


def test_rows_for_an_added_token_are_trained_by_extending(tmp_path):
    directory = write_huggingface(tmp_path / "model", bare_model())
    (directory / "added_tokens.json").write_text('{"[PAD]": 280}', encoding="utf-8")
    path = corpus(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("the", "the[PAD]"), encoding="utf-8")
    common = (f"load={directory}", "dataset=text", f"dataset.path={path}", "trainer.seq_len=16", "trainer.max_steps=2",
              f"paths.cache={tmp_path}/cache", "tracker=none")  # fmt: skip
    assert "for which the model has no row" in refusal("train", *common)
    assert decide("train", *common, "tokenizer.extend=true", f"tokenizer.path={directory}").model.vocab_size == 281
