"""Weights that are NaN, infinite, or so large that the outputs are: said by name, and never a result that is none."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2x.convert.fit import is_finite
from gpt2x.errors import UserError
from tests.commands import convert
from tests.support import in_process
from tests.support.bare_weights import bare_model, write_huggingface

pytestmark = pytest.mark.run


def spoilt(folder, name, value):
    """A Hugging Face directory with one value of a tensor, or all of its values, replaced."""
    path = write_huggingface(folder, bare_model())
    weights = load_file(path / "model.safetensors")
    weights[name][...] = np.where(np.arange(weights[name].size).reshape(weights[name].shape) >= 7, value, weights[name])
    save_file(weights, path / "model.safetensors")
    return path


def evaluate(path, folder):
    text = folder / "text.txt"
    text.write_text("the cat sat on a mat and some dogs ran over the hill\n" * 20)
    outputs = [f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache", "tracker=none"]
    in_process.run("evaluate", f"load={path}", "dataset=text", f"dataset.val_path={text}", *outputs)


def strict(text):
    """The value of a JSON text, in which NaN and Infinity are no values."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_with_such_weights_is_neither_evaluated_nor_asked(tmp_path, value):
    path = spoilt(tmp_path / "model", "h.1.mlp.c_fc.weight", value)
    message = rf"load={path}: values of h\.1\.mlp\.c_fc\.weight are NaN or infinite.*from before the loss became NaN"
    with pytest.raises(UserError, match=message):
        evaluate(path, tmp_path)
    with pytest.raises(UserError, match=message):
        in_process.run("predict", f"load={path}", "prompts=[the cat]", f"paths.outputs={tmp_path}/outputs")


def test_a_conversion_copies_them_and_says_so(tmp_path, caplog):
    path = spoilt(tmp_path / "model", "h.0.ln_1.bias", float("nan"))
    with caplog.at_level(logging.WARNING):
        assert convert(["--to", "gpt2x", "--output", str(tmp_path / "out"), str(path)]) == 0
    assert "values of h.0.ln_1.bias are NaN or infinite; they were copied as they are" in caplog.text
    copied = load_file(tmp_path / "out" / "weights.safetensors")["h.0.ln_1.bias"]
    assert copied.tobytes() == load_file(path / "model.safetensors")["h.0.ln_1.bias"].tobytes()


def test_results_that_are_not_finite_are_valid_json_and_no_success(tmp_path):
    path = spoilt(tmp_path / "model", "ln_f.weight", 3e38)
    with pytest.raises(UserError, match=rf"load={path}: .*loss.* not finite: the model's outputs overflow or are NaN"):
        evaluate(path, tmp_path)
    (results,) = (tmp_path / "outputs").rglob("results.json")
    content = strict(results.read_text(encoding="utf-8"))
    assert content["results"]["strided"]["loss"] in ("NaN", "Infinity")
    (metrics,) = (tmp_path / "outputs").rglob("metrics.jsonl")
    assert strict(metrics.read_text(encoding="utf-8"))["eval/strided/loss"] == content["results"]["strided"]["loss"]


def test_both_extremes_tell_what_all_values_are():
    for dtype in (np.float16, np.float32, np.float64):
        assert is_finite(np.array([np.finfo(dtype).max, np.finfo(dtype).min], dtype))
        for value in (np.nan, np.inf, -np.inf):
            assert not is_finite(np.array([[1, value], [2, 3]], dtype))
    assert is_finite(np.zeros((0, 4), np.float32))
