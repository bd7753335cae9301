"""Any text as a value: what `config.yaml` says is what its readers get (workers, resumed runs, reports)."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt2x.config import DatasetConfig, PathsConfig, PrepareConfig, TokenizerConfig
from gpt2x.config.files import load_config, to_typed, to_yaml
from tests.support.configs import typed

SPECIAL = [
    "???", "\\???", "\\\\???", "${x}", "\\${x}", "${oc.env:HOME}", "$", "null", "~", "1e3", "1_0", ".5", "-1", "0x1f",
    "01", "1:30", "NaN", ".nan", ".inf", "yes", "off", "2020-01-01", " a ", "", "\n", "a\r\nb\n", "a\nb", "\x85",
    "\u2028", "\x00", "\x1b[31m", "\udc80", "\ufeff", "😀", "- a", "{a}", "[b", "'", '"', "#x", "a: b", "a #b", "!t",
    "&a", "*a", "%", "@", "`", "=", "<<", "|", ">", "\t",
]  # fmt: skip
TEXTS = st.sampled_from(SPECIAL) | st.text(st.characters(codec=None), max_size=6)


def with_texts(one: str, columns: list[str], names: dict[str, str]) -> PrepareConfig:
    dataset = DatasetConfig(
        name="x", corpus="text", line_break=one, text_column=one, columns=columns, label_names=names or None,
        settings={"a": [one, {"b": one}], "c": columns},
    )  # fmt: skip
    return PrepareConfig(dataset, TokenizerConfig(name="bpe", vocab_size=300), PathsConfig("o", "c"), 16, None)


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(TEXTS, st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=3))
@example("x", SPECIAL, {text: text for text in SPECIAL})
@example("???", [], {})
@example("1e3", [], {})
def test_a_written_configuration_reads_as_it_was(tmp_path_factory, one, columns, names):
    config = with_texts(one, columns, names)
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_bytes(to_yaml(config).encode())
    assert load_config("prepare", path) == config
    assert to_typed("prepare", asdict(config)) == config  # as rank 0 passes it to the others
    assert yaml.safe_load(yaml.safe_dump(asdict(config), sort_keys=False)) == asdict(config)  # as checkpoints hold it


def test_a_name_of_question_marks_in_a_list_is_no_missing_value():
    assert typed("prepare", "dataset=text", "dataset.columns=['???',b]").dataset.columns == ["???", "b"]


def test_a_key_without_a_value_is_still_missing():
    with pytest.raises(ValueError, match=r"dataset.name has no value|dataset.name"):
        typed("prepare", "dataset=text", "dataset.name=???")


def test_what_earlier_versions_wrote_is_read(tmp_path):
    config = with_texts("x", ["???", "b"], {"0": "???"})
    values = asdict(config)
    path: Path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert load_config("prepare", path) == config
