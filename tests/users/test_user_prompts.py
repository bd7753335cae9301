"""Prompts that users bring, from the command line, files and requests: Unicode, or one message with the line."""

import json

import pandas as pd
import pytest
import yaml

from gpt2x.config import PredictConfig
from gpt2x.data.template import load_template
from gpt2x.errors import UserError
from gpt2x.generate.prompts import Prompt, read_prompts
from gpt2x.serve import requests
from tests.support.configs import typed


def prompts_of(path):
    config: PredictConfig = typed("predict", "load=x", f"prompts_file={path}")
    return read_prompts(config)


def test_half_of_a_pair_is_the_replacement_character_everywhere(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "a\ud83d"}, {"instruction": "\udc00", "input": "\ud83dx"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts_of(path) == [Prompt("a\ufffd"), Prompt("\ufffd", "\ufffdx", True)]
    config = typed("predict", "load=x", "prompts=[a]")
    config.prompts = ["caf\udce9"]  # a byte of the command line that is not UTF-8
    assert read_prompts(config) == [Prompt("caf\ufffd")]
    assert requests.read_prompts(pd.DataFrame({"prompt": ["a\ud83d"]})) == [Prompt("a\ufffd")]
    template = tmp_path / "t.yaml"
    pair = 'with_input: "\\ud83d{instruction}{input}"\nwithout_input: "{instruction}"\n'  # no character of YAML
    for text in (pair, yaml.safe_dump({"a": 1}) + "[" * 5000):
        template.write_text(text)
        with pytest.raises(UserError, match="cannot be read as YAML"):
            load_template(str(template), "template")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ' + "[" * 100_000, "line 2 is not JSON: lists or objects are nested too deeply"),
        ('{"prompt": "a", "prompt": "b"}', "line 2 has the key 'prompt' twice"),
        ('{"prompt": null}', "line 2 is not a JSON object with a text `prompt`"),
        ('{"prompt": ["a"]}', "line 2 is not a JSON object with a text `prompt`"),
        ('{"instruction": "a", "input": 3}', r"line 2: 'input' is a number \(3\), not text"),
        ('{"prompt": 1' + "1" * 5000 + "}", "line 2 is not JSON: a number has too many digits"),
    ],
)
def test_lines_that_are_no_prompt(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        prompts_of(path)


def test_null_input_is_no_input_and_marked_files_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"instruction": "é", "input": null}\r\n'.encode("utf-16"))
    assert prompts_of(path) == [Prompt("é", "", True)]
