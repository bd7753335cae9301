"""Every feature of Hydra gives what docs/hydra.md says, and every mistake one message; nothing ends in a traceback."""

import logging
import os
import random
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from gpt2x.commands import cli, entry
from gpt2x.commands.completion import candidates
from gpt2x.commands.configuration import save_config
from gpt2x.commands.hydra_entry import compose_config
from gpt2x.commands.hydra_flags import read_arguments
from gpt2x.commands.hydra_grammar import read_overrides
from gpt2x.config.files import SCHEMAS, load_config
from gpt2x.config.keys import all_keys, flatten, leaves, spell
from gpt2x.config.messages import message_of
from gpt2x.config.options import chosen_options
from gpt2x.config.similar import SYNONYMS
from gpt2x.errors import UserError
from gpt2x.runtime.exits import guarded
from tests.support.small_runs import ROOT

PAGE = ROOT / "docs" / "hydra.md"
MY = {  # options of one's own, as the page describes them
    "my/model/mine.yaml": "defaults: [gpt2_tiny, _self_]\nname: mine\nnum_layers: 3\n",
    "my/model/broken.yaml": "name: broken\n num_layers: 3\n",
    "my/model/wrong.yaml": "defaults: [gpt2_tiny, _self_]\nname: wrong\nnum_layers: many\n",
    "my/model/misspelt.yaml": "defaults: [gpt2_tiny, _self_]\nname: misspelt\nnum_layerz: 3\n",
    "my/mine.yaml": "defaults: [train, _self_]\nseed: 7\n",
}


# ---- the table of docs/hydra.md


def rows() -> list[tuple[str, str]]:
    """(command, what comes of it) for each row of the page that begins with a command."""
    pairs = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if line.startswith("| `") and re.match(r"`(gpt2x|python) ", cells[0]):
            pairs.append((cells[0].strip("`"), cells[1]))
    return pairs


ROWS = rows()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with options of one's own, in which nothing is run: configurations are kept instead."""
    for name, text in MY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    configs = []
    monkeypatch.setattr(entry, "start", lambda name, config, role, run_dir: configs.append((name, config)))
    return configs


def run(line: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Type a command line; return status, standard output and standard error."""
    words = shlex.split(line)
    words = [Path(words[1]).stem, *words[2:]] if words[0] == "python" else words[1:]
    monkeypatch.setattr(sys, "argv", ["gpt2x", *words])
    GlobalHydra.instance().clear()
    for handler in list(logging.getLogger().handlers):
        if type(handler) is logging.StreamHandler:  # Hydra's, to the stream of an earlier test
            logging.getLogger().removeHandler(handler)
    try:
        status = guarded(lambda: cli.gpt2x(words))
    except SystemExit as end:  # Hydra's own, after --info and such
        status = end.code or 0
    return status, *capsys.readouterr()


def test_the_table_is_read():
    assert len(ROWS) > 100
    assert len(set(ROWS)) == len(ROWS)
    assert sum("error: " in outcome for _, outcome in ROWS) > 50


@pytest.mark.run  # some take over 2 s
@pytest.mark.parametrize(("command", "outcome"), ROWS, ids=[command for command, _ in ROWS])
def test_a_row_of_the_page(command, outcome, place, monkeypatch, capsys):
    snippets = re.findall(r"`([^`]+)`", outcome)
    is_sweep = bool(re.search(r" (-m|--multirun)( |$)", command)) and not outcome.startswith("`error: ")
    status, out, err = run(f"{command} plan=true" if is_sweep else command, monkeypatch, capsys)
    assert "Traceback" not in out + err
    if outcome.startswith("`error: "):
        assert (status, out) == (2, "")
        message, is_cut = snippets[0].removesuffix("…"), snippets[0].endswith("…")
        assert err.startswith(message) if is_cut else err == f"{message}\n"
        assert err.count("\n") == 1
        assert not place
    elif re.search(r" (--cfg|-c|--info|--help|-h|--hydra-help|--version|-sc|--shell-completion)( |$)", command):
        assert status == 0
        assert snippets
        for snippet in snippets:
            assert snippet in out
        assert not place
    else:
        assert status == 0
        assert snippets
        configs = [flatten(asdict(config), SCHEMAS[name]) for name, config in place]
        if is_sweep:
            assert len(configs) == len(snippets)
        for config, snippet in zip(configs if is_sweep else configs * len(snippets), snippets, strict=True):
            for pair in re.split(r" (?=[a-z_.]+=)", snippet):
                key, _, value = pair.partition("=")
                assert spell(config[key]) == value


@pytest.mark.run  # composes five times
def test_references_belong_to_each_job(place, monkeypatch, capsys):
    """What is written down about a sweep does not resolve them, and a job resolves its own."""
    words = "'tracker.run_name=${model.name}-${seed}' 'hydra.sweep.subdir=job_${hydra.job.num}' hydra.sweep.dir=s"
    status, _, err = run(f"gpt2x train -m seed=1,2 {words}", monkeypatch, capsys)
    assert (status, err) == (0, "")
    assert [config.tracker.run_name for _, config in place] == ["gpt2_tiny-1", "gpt2_tiny-2"]
    assert (Path("s") / "job_1").is_dir()


# ---- no traceback, whatever is typed

ALPHABET = [
    *"=,:()[]{}'\"\\$~+@/.-_ *%#;&|!?<>^`\t\n01aZé€\x00\x1b", "${", "}", "${seed}", "${oc.env:HOME}", "null", "true",
    "1e-4", "choice(", "range(", "glob(", "int(", "a b", "model", "trainer.", "seed", "dataset.path", "[1,2]", "{a:1}",
]  # fmt: skip
HEADS = [
    "", "", "seed=", "model=", "dataset.path=", "trainer.sample_prompts=", "trainer.max_steps=", "tracker.settings=",
    "optimizer.learning_rate=", "dataset.label_names=", "trainer=", "+", "++", "~", "hydra.run.dir=", "hydra/launcher=",
    "hydra.", "experiment=", "trainer.frozen.", "model@", "plan=", "resume=",
]  # fmt: skip
STRINGS, COMPOSED = 3000, 40  # to be read, and of the readable ones to be composed, which takes 0.1 s each


@pytest.mark.run  # over 2 s
def test_random_arguments_are_composed_or_rejected_in_one_line():
    generator = random.Random(13)
    texts = [
        generator.choice(HEADS) + "".join(generator.choices(ALPHABET, k=generator.randrange(1, 7)))
        for _ in range(STRINGS)
    ]
    readable = [text for text in texts if rejection(lambda text=text: read_overrides("train", [text])) is None]
    assert len(readable) > 5 * COMPOSED
    rejected = [rejection(lambda text=text: compose_config("train", [text])) for text in readable[:COMPOSED]]
    assert 0 < len([message for message in rejected if message]) < COMPOSED


def rejection(read) -> str | None:
    """The one line that answers a mistake; None if there is none."""
    try:
        read()
    except UserError as error:
        message = str(error)
    else:
        return None
    assert one_line(message), message
    return message


def one_line(message: str) -> bool:
    return message.endswith((".", "?")) and "\n" not in message and "\x1b" not in message and len(message) < 900


@pytest.mark.run  # the parser takes seconds for some
@pytest.mark.parametrize(
    "argument",
    [
        "seed=" + "é" * 100_000,
        "seed=" + "[" * 5_000,
        "seed=" + "9" * 5_000,
        "a." * 3_000 + "b=1",
        "dataset.path='" + "\\" * 999,
        "=" * 300,
        "seed=${" + "a." * 500 + "b}",
    ],
    ids=lambda text: text[:20],
)
def test_long_arguments_are_shortened_in_messages(argument):
    assert rejection(lambda: compose_config("train", [argument]))


@pytest.mark.parametrize(
    "text",
    [
        "a=b",
        "it's",
        'say "hi"',
        "a, b",
        "[x]",
        "é",
        "a#b",
        "C:\\Users\\me\\",
        "tab\there",
        "50 %",
        "(a) & {b}",
        "x;y",
        "\\",
    ],
)
def test_what_a_message_says_can_be_typed(text):
    """The suggestion, taken from the message and read by a shell, gives the text that was meant."""
    message = rejection(lambda: compose_config("train", [f"tracker.run_name={text}"]))
    suggestion = re.search(r"type ('.*')\.$", message or "")
    words = shlex.split(suggestion[1]) if suggestion else [f"tracker.run_name={text}"]
    assert compose_config("train", words).tracker.run_name == text


@pytest.mark.parametrize("text", ["1.10", "1e3", "007", "1_000", "+5", "true", "FALSE", "nan", "-inf", "0x10"])
def test_a_text_that_looks_like_a_number_stays_as_typed(text):
    assert compose_config("train", [f"tracker.run_name={text}"]).tracker.run_name == text


@pytest.mark.parametrize("text", ["${x}", "\\${x}", "a ${oc.env:HOME} b", "\\"])
def test_a_text_with_a_dollar_survives_a_file(text, tmp_path):
    """The configuration that workers read from config.yaml is the one that was typed."""
    config = replace(compose_config("train"), load=text)
    save_config(config, tmp_path / "config.yaml")
    assert load_config("train", tmp_path / "config.yaml") == config


def test_null_and_empty_texts():
    assert compose_config("train", ["tracker.run_name=null"]).tracker.run_name is None
    assert compose_config("train", ['tracker.run_name="null"']).tracker.run_name == "null"
    assert compose_config("train", ["tracker.run_name="]).tracker.run_name == ""


# ---- flags and names


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["-m", "seed=1", "--config-dir", ".", "load=b"], ["-m", "--config-dir", ".", "seed=1", "load=b"]),
        (["seed=1", "--info", "load=b"], ["--info=all", "seed=1", "load=b"]),
        (["--info", "plugins", "seed=1"], ["--info=plugins", "seed=1"]),
        (["seed=1", "-c", "job", "--", "load=b"], ["-c", "job", "seed=1", "load=b"]),
        (["--cfg=job", "seed=1"], ["--cfg=job", "seed=1"]),
    ],
)
def test_overrides_and_flags_may_be_typed_in_any_order(typed, read):
    """Overrides come last, since Hydra reads only those that are side by side, and more may be appended."""
    assert read_arguments("train", typed) == read


def test_words_of_other_programs_lead_to_keys():
    keys = {*all_keys(SCHEMAS["train"]), *all_keys(SCHEMAS["predict"]), *chosen_options("train")}
    assert set(SYNONYMS.values()) <= keys
    assert not set(SYNONYMS) & keys


@pytest.mark.parametrize(
    ("choice", "parts"),
    [
        ("hydra/launcher/joblib", ["is not installed", "pip install 'gpt2x[sweep]'", "Installed: basic."]),
        ("hydra/sweeper/optuna", ["is not installed", "pip install 'gpt2x[sweep]'"]),
        ("hydra/launcher/ray", ["is not installed", "hydra-ray-launcher", "does not test"]),
        ("hydra/job_logging/colorlog", ["is not installed", "hydra-colorlog"]),
        ("hydra/launcher/basik", ["is not an option; did you mean basic?"]),
    ],
)
def test_plugins_that_are_not_installed(choice, parts):
    """As on a machine without them, which this one may not be."""
    group = choice.rpartition("/")[0]
    error = HydraException(
        f"Could not find '{choice}'\n\nAvailable options in '{group}':\n\tbasic\nConfig search path:"
    )
    message = message_of(error, SCHEMAS["train"])
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", leaves(SCHEMAS["train"]))
def test_each_key_says_what_it_must_be(key):
    """A mapping fits no key but mappings; the message names the key, and never a class of Python."""
    if leaves(SCHEMAS["train"])[key].type.startswith("dict"):
        return
    with pytest.raises(UserError) as caught:
        compose_config("train", [key + "={a:{b:c}}"])
    message = str(caught.value)
    assert message.startswith(f"{key}={{a:{{b:c}}}} must be ")
    assert not re.search(r"\b(str|int|dict|Config|Integer|NoneType)\b", message)


# ---- completion


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gpt2x tra", {"train"}),
        ("gpt2x train model=gpt2_s", {"model=gpt2_small"}),
        ("gpt2x plan model=gpt2_s", {"model=gpt2_small"}),
        ("gpt2x train hardware.precision=b", {"hardware.precision=bf16"}),
        ("gpt2x train -m seed=1,2 trainer.max_st", {"trainer.max_steps="}),
        ("gpt2x train --config-d", {"--config-dir"}),
        ("gpt2x train experiment=lora_s", {"experiment=lora_small"}),
        ("python evaluate.py evaluation.pro", {"evaluation.protocols."}),
        ("gpt2x convert x", set()),
        ("gpt2x nonsense x", set()),
        ("gpt2x train seed=( mod", set()),
    ],
)
def test_what_can_follow(line, words):
    GlobalHydra.instance().clear()
    assert set(candidates(line, list(cli.COMMANDS))) == words


@pytest.mark.launch
def test_bash_completes_both_ways_of_typing(tmp_path):
    """Hydra's script, as a user's shell evaluates it, asks train.py and gpt2x."""
    (tmp_path / "gpt2x").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c '{CONSOLE_SCRIPT}' \"$@\"\n", encoding="utf-8"
    )
    (tmp_path / "gpt2x").chmod(0o755)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    script = """
        complete_line() {
            COMP_LINE=$1; COMP_POINT=${#1}; local words=($1); COMP_CWORD=$((${#words[@]} - 1))
            hydra_bash_completion; echo "${COMPREPLY[@]}"
        }
        eval "$(python train.py -sc install=bash)"
        complete_line "python train.py model=gpt2_s"
        eval "$(gpt2x -sc install=bash)"
        complete_line "gpt2x train schedule=cosine_r"
        complete -p python gpt2x
    """
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    first, second, *rules = done.stdout.splitlines()
    assert (first, second) == ("model=gpt2_small", "schedule=cosine_restarts"), done.stderr
    assert all("hydra_bash_completion" in rule for rule in rules)
    assert len(rules) == 2


CONSOLE_SCRIPT = 'import sys; sys.argv[0] = "gpt2x"; from gpt2x.commands.cli import main; main()'


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "predict.py"])
def test_fish_finds_the_word_that_it_looks_for(script):
    assert "@hydra.main" in (ROOT / script).read_text(encoding="utf-8")
