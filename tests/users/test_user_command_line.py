"""What users type is what a run gets: texts, paths, lists and mappings, in quotes or without, and in variables."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpt2x.commands import cli, entry
from gpt2x.commands.arguments import path
from gpt2x.commands.configuration import save_config
from gpt2x.commands.hydra_entry import compose_config
from gpt2x.commands.hydra_grammar import read_overrides
from gpt2x.config import environment
from gpt2x.config.files import SCHEMAS, as_meant, escaped, load_config, schema_node
from gpt2x.config.keys import flatten, leaves
from gpt2x.config.mappings import is_mapping
from gpt2x.config.messages import quoted
from gpt2x.errors import UserError
from gpt2x.generate.output import json_line
from gpt2x.runtime.exits import guarded
from gpt2x.runtime.jobs import read_command, write_command

PARSER = OverridesParser.create()
# signs of Hydra's grammar, of shells and of YAML, letters of several scripts, digits and words with a meaning
SIGNS = st.sampled_from([*"~#&;'\"=()[]{}|<>!?*%@$:/.+-_^`,\\ \t\n01aZéß中ї🙂\u2028"])
WORDS = st.sampled_from(["null", "true", "1e3", "1_0", "1.10", "nan", "~/", "${", "}", "C:\\", "https://", "range("])
TEXTS = st.lists(SIGNS | WORDS | st.characters(exclude_categories=["Cs"]), max_size=8).map("".join)


def shell(*words: str) -> list[str]:
    """What a POSIX shell passes on if the words are typed in quotes."""
    return shlex.split(shlex.join(words))


def in_quotes(text: str) -> str:
    """A text in quotes, as docs/hydra.md says that any text can be typed."""
    return quoted("", escaped(text)).removeprefix("=")


def composed(*arguments: str, entry: str = "train") -> dict[str, Any]:
    config = compose_config(entry, shell(*arguments))
    return flatten(asdict(config), type(config))


def values_of(arguments: list[str], key: str, is_multirun: bool = False) -> Any:
    """The value of a key after overrides, or those of the jobs, read without the options: a hundred times as fast."""
    overrides = PARSER.parse_overrides(read_overrides("train", arguments, (), is_multirun))
    jobs = [list(one.sweep_string_iterator()) if one.is_sweep_override() else [None] for one in overrides]
    results = []
    for number in range(max(map(len, jobs))):
        config = OmegaConf.create({})
        for override, job in zip(overrides, jobs, strict=True):
            is_sweep = job != [None]  # then Hydra gives a text to each job
            one = PARSER.parse_override(f"{override.key_or_group}={job[number]}") if is_sweep else override
            OmegaConf.update(config, override.key_or_group, as_texts(one.value()), merge=True)
        resolved = flatten(OmegaConf.to_container(config, resolve=True), SCHEMAS["train"])
        results.append(as_meant(leaves(SCHEMAS["train"])[key], resolved[key]))
    return results if is_multirun else results[0]


def as_texts(value: Any) -> Any:
    """A value as OmegaConf puts it into a key for texts."""
    if isinstance(value, list):
        return [as_texts(one) for one in value]
    if isinstance(value, dict):
        return {key: as_texts(one) for key, one in value.items()}
    return value if value is None else str(value)


def message(read: Any) -> str:
    """The one line that answers a mistake."""
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- texts


@pytest.mark.parametrize("text", ["C:\\\n", "a\\\\\n", '"\n', "ends in \\"])
def test_a_backslash_before_the_last_newline_stays_one(text):
    assert values_of(shell(f"tracker.run_name={in_quotes(text)}"), "tracker.run_name") == text


@pytest.mark.parametrize(("argument", "value"), [("{0\\ ", "{0 "), ("a\\ \t", "a "), ("a\\\\ ", "a\\\\")])
def test_an_escaped_blank_at_the_end_stays(argument, value):
    assert values_of([f"tracker.run_name={argument}"], "tracker.run_name") == value


@pytest.mark.run  # over 2 s with many examples
@given(TEXTS)
def test_any_text_in_quotes(text):
    assert values_of(shell(f"tracker.run_name={in_quotes(text)}"), "tracker.run_name") == text


@pytest.mark.run  # over 2 s with many examples
@given(TEXTS)
def test_a_text_without_quotes_is_as_typed_or_answered(text):
    """What a message says can be typed, and then gives the text."""
    try:
        value = values_of(shell(f"tracker.run_name={text}"), "tracker.run_name")
    except UserError as error:
        suggestion = re.search(r"type ('.*')\.$", str(error))
        if suggestion and "…" not in suggestion[1] and text.isprintable() and '"' not in text and "'" not in text:
            assert values_of(shlex.split(suggestion[1]), "tracker.run_name") == text
        assert any(sign in text for sign in ("'", '"', ",", "${", "[", "{", "range(", "("))
        return
    except Exception as error:  # a reference such as ${a}, which only a whole configuration resolves
        assert "${" in text, error  # noqa: PT017
        return
    if value is None:
        assert text.strip(" \t").lower() == "null"
    elif not text.strip(" \t").startswith(("'", '"')) and "${" not in text and "," not in text:  # a,b is a sweep
        before = text.lstrip(" \t").rstrip(" \t")
        is_escaped = (len(before) - len(before.rstrip("\\"))) % 2 and before != text.lstrip(" \t")
        assert value == without_escapes(before + text.lstrip(" \t")[len(before)] if is_escaped else before)


def without_escapes(text: str) -> str:
    """A text without the backslashes that docs/hydra.md says are left out."""
    halves = text.split("\\\\")
    return "\\\\".join(re.sub(r"\\([()\[\]{}:=, \t])", r"\1", half) for half in halves)


@pytest.mark.run  # over 2 s with many examples
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_list_of_texts_in_quotes(texts):
    typed = f"trainer.sample_prompts=[{', '.join(map(in_quotes, texts))}]"
    assert values_of(shell(typed), "trainer.sample_prompts") == texts


@pytest.mark.run  # over 2 s with many examples
@given(st.lists(TEXTS, min_size=2, max_size=3))
def test_texts_of_a_sweep(texts):
    typed = f"tracker.run_name={','.join(map(in_quotes, texts))}"
    assert values_of(shell(typed), "tracker.run_name", is_multirun=True) == texts


PLAIN = st.text(st.sampled_from("~#&;=é中a1.-_/%?!|<>^`@*+:"), min_size=1, max_size=8)


@pytest.mark.run  # over 2 s with many examples
@given(st.lists(PLAIN, min_size=2, max_size=3))
def test_texts_of_a_sweep_without_quotes(texts):
    assert values_of(shell(f"tracker.run_name={','.join(texts)}"), "tracker.run_name", is_multirun=True) == texts
    assert values_of(shell(f"trainer.sample_prompts=[{','.join(texts)}]"), "trainer.sample_prompts") == texts
    assert "has" in message(lambda: read_overrides("train", [f"tracker.run_name=é{','.join(texts)}"]))


# ---- mappings

MAPPINGS = st.dictionaries(TEXTS | st.integers().map(str), TEXTS, min_size=1, max_size=4)


def mapping(values: dict[str, str]) -> str:
    return f"{{{', '.join(f'{in_quotes_of_a_key(key)}: {in_quotes(one)}' for key, one in values.items())}}}"


def in_quotes_of_a_key(key: str) -> str:
    return quoted("", key).removeprefix("=")  # a key has no references


@pytest.mark.run  # over 2 s with many examples
@given(MAPPINGS)
def test_any_mapping_in_quotes(values):
    assert values_of(shell(f"dataset.label_names={mapping(values)}"), "dataset.label_names") == values


@pytest.mark.run  # over 2 s with many examples
@given(st.lists(MAPPINGS, min_size=2, max_size=2))
def test_mappings_of_a_sweep(values):
    typed = f"dataset.label_names={','.join(map(mapping, values))}"
    assert values_of(shell(typed), "dataset.label_names", is_multirun=True) == values


@pytest.mark.run  # over 2 s with many examples
@given(st.dictionaries(PLAIN.filter(lambda text: ":" not in text), PLAIN, min_size=1, max_size=3))
def test_a_mapping_without_quotes(values):
    typed = ", ".join(f"{key}: {one}" for key, one in values.items())
    assert values_of(shell(f"dataset.label_names={{{typed}}}"), "dataset.label_names") == values


@pytest.mark.run  # over 2 s with many examples
@given(PLAIN.filter(lambda key: "=" not in key), TEXTS)
def test_one_key_of_a_mapping(key, value):
    typed = f"dataset.label_names.{key}={in_quotes(value)}"
    assert values_of(shell(typed), "dataset.label_names") == {key: value}


@pytest.mark.run  # composes
@settings(max_examples=10)
@given(TEXTS, MAPPINGS)
def test_a_whole_configuration_has_the_text_and_the_mapping(text, values):
    quoted, keys = in_quotes(text), ("dataset.label_names", "tracker.tags")
    typed = composed(
        f"tracker.run_name={quoted}",
        f"trainer.sample_prompts=[{quoted}]",
        *(f"{key}={mapping(values)}" for key in keys),
    )
    assert (typed["tracker.run_name"], typed["trainer.sample_prompts"]) == (text, [text])
    assert [typed[key] for key in keys] == [values, values]


@pytest.mark.parametrize("key", [key for key, leaf in leaves(SCHEMAS["train"]).items() if is_mapping(leaf)])
def test_every_mapping_takes_a_key(key):
    node = schema_node("train")
    for override in OverridesParser.create().parse_overrides(read_overrides("train", [f"{key}={{0: a}}"])):
        OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
    assert OmegaConf.to_container(OmegaConf.select(node, key)) == {"0": "a"}


def test_a_file_of_options_may_have_numbers_as_keys_but_no_words(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset:\n  label_names: {0: no, true: yes}\n")
    values = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))["dataset"]["label_names"]
    leaf = leaves(SCHEMAS["train"])["dataset.label_names"]
    assert as_meant(leaf, {0: "a"}) == {"0": "a"}
    assert "its key True is no text; put the key in quotes" in message(lambda: as_meant(leaf, values))


# ---- paths

PATHS = [(name, key) for name, root in SCHEMAS.items() for key, leaf in leaves(root).items() if leaf.facts.is_path]


def test_every_key_that_names_files_is_a_path():
    """Words of a meaning tell which key is one; `resume`, `template` and `adapter` are names or paths."""
    for root in SCHEMAS.values():
        for key, leaf in leaves(root).items():
            if re.search(r"\b(file|folder|directory|directories)\b", leaf.facts.meaning) and not is_mapping(leaf):
                assert leaf.facts.is_path or key == "dataset.archive_folder", key


@pytest.mark.parametrize(("name", "key"), PATHS, ids=[f"{name} {key}" for name, key in PATHS])
def test_a_home_directory_in_every_path(name, key, monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    leaf = leaves(SCHEMAS[name])[key]
    is_list = leaf.type.startswith("list")
    typed = f"{key}=[~/é,~]" if is_list else f"{key}=~/é"
    overrides = OverridesParser.create().parse_overrides(read_overrides(name, [typed]))
    assert as_meant(leaf, overrides[0].value()) == (["/me/é", "/me"] if is_list else "/me/é")
    assert message(lambda: as_meant(leaf, ["~nobody-here/x"] if is_list else "~nobody-here/x")).startswith(
        f"{key}=~nobody-here/x: "
    )
    assert "is an empty path" in message(lambda: as_meant(leaf, [" "] if is_list else ""))


def test_a_file_whose_name_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~my-backup").mkdir()
    assert path("~my-backup") == Path("~my-backup")
    assert path("~root").is_absolute()
    leaf = leaves(SCHEMAS["train"])["load"]
    assert as_meant(leaf, "~my-backup") == "./~my-backup"


@pytest.mark.parametrize("command", ["convert --to gpt2x --output o", "checkpoint verify", "sync", "compare"])
def test_commands_without_hydra_answer_an_unknown_user(command):
    assert "there is no user 'nobody-here'" in message(lambda: cli.gpt2x([*command.split(), "~nobody-here/x"]))


@pytest.mark.run  # composes, and starts Hydra
@pytest.mark.parametrize("typed", ["paths.outputs=~/r", "hydra.run.dir=~/r/é", "paths.outputs='~/a=b'"])
def test_the_run_directory_is_in_the_home_directory(typed, tmp_path, monkeypatch, capsys):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    run_dirs = []
    monkeypatch.setattr(entry, "start", lambda name, config, role, run_dir: run_dirs.append(run_dir))
    assert type_line(["train", typed], monkeypatch) == 0, capsys.readouterr()
    assert run_dirs[0].is_relative_to(home)
    assert not list(here.iterdir())


def type_line(words: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["gpt2x", *words])
    GlobalHydra.instance().clear()
    return guarded(lambda: cli.gpt2x(words))


# ---- environment variables


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_empty_variables_are_not_set(value, monkeypatch):
    for name in ("GPT2X_OUTPUTS", "GPT2X_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, value)
    values = composed()
    assert (values["paths.outputs"], values["tracker.uri"]) == ("outputs", None)
    assert values["paths.cache"].endswith("/.cache/gpt2x")


def test_variables_are_read_as_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("GPT2X_OUTPUTS", " ~/läufe ")
    monkeypatch.setenv("GPT2X_CACHE", "../cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/?a=b#c")
    values = composed()
    assert values["paths.outputs"] == "/me/läufe"
    assert values["paths.cache"] == "../cache"
    assert values["tracker.uri"] == "http://host:5000/?a=b#c"
    assert environment.variable("GPT2X_OUTPUTS") == "~/läufe"


# ---- what is printed and written down


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_errors_are_printed_in_any_encoding(encoding, tmp_path, monkeypatch):
    names = {"stdout": tmp_path / "out", "stderr": tmp_path / "err"}
    for name, file in names.items():
        monkeypatch.setattr(sys, name, file.open("w", encoding=encoding))
    assert type_line(["train", "load=中", "seed=é\udcff"], monkeypatch) == 2
    sys.stderr.flush()
    assert names["stderr"].read_text(encoding=encoding).startswith("error: seed=")


@pytest.mark.run  # starts Hydra
def test_a_configuration_is_printed_in_any_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", (tmp_path / "out").open("w", encoding="ascii"))
    assert type_line(["train", "load=中/é", "--cfg", "job"], monkeypatch) == 0
    sys.stdout.flush()
    assert "load: \\u4e2d/\\xe9" in (tmp_path / "out").read_text()


@pytest.mark.run  # over 2 s with many examples
@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=[]))))
def test_json_lines_are_utf8_whatever_a_prompt_has(values):
    line = json_line(values)
    assert json.loads(line.encode()) == json.loads(json.dumps(values))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_that_are_no_text_are_answered(encoding, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    answer = message(lambda: cli.check_text(["seed=1", "load=\udcff"]))
    assert answer.startswith(f"the argument load=\\udcff is no text in {encoding}")
    assert answer.endswith("rename the file." if encoding == "utf-8" else "set PYTHONUTF8=1.")


def test_a_directory_that_is_gone_is_answered(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert "no longer exists" in message(lambda: cli.check_text([]))


@pytest.mark.run  # over 2 s with many examples
@given(st.lists(st.lists(TEXTS.filter(lambda text: "\0" not in text), min_size=1), min_size=1, max_size=3))
def test_the_newest_command_can_be_typed_again(tmp_path_factory, commands):
    run_dir = tmp_path_factory.mktemp("run")
    for words in commands:
        write_command(run_dir, shlex.join(["gpt2x", *words]))
    assert shlex.split(read_command(run_dir) or "") == ["gpt2x", *commands[-1]]


@pytest.mark.parametrize("folder", ["a b", "%20", "q?x=1#y", "it's", "é中", "-x", "n\nl", "${x}", "[1]{2}", '"', "~"])
def test_a_configuration_is_read_again_in_any_directory(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    config = compose_config(
        "train", [f"load={in_quotes(str(Path.cwd()))}", f"paths.outputs={in_quotes(f'./{folder}')}"]
    )
    save_config(config, Path("run") / "config.yaml")
    assert config.load == str(Path.cwd())
    assert load_config("train", Path("run") / "config.yaml") == config
