"""A checkpoint of MindFormers in, evaluated and trained from, and out again bit for bit."""

import hashlib
import json

import pytest

from tests.commands import convert
from tests.support import in_process


@pytest.mark.run
def test_in_evaluated_and_out_again(zoo, tmp_path):
    run = zoo.plain
    step = run.checkpoint(16)
    assert convert(["--to", "mindformers", "--output", str(tmp_path / "in"), str(step)]) == 0
    evaluated = {}
    for name, load in (("gpt2x", step), ("mindformers", tmp_path / "in" / "mindspore_model.ckpt")):
        options = [f"load={load}", "dataset=text", f"dataset.val_path={run.folder}/corpus.txt", "tracker=none",
                   "evaluation.protocols=[strided]", f"paths.outputs={tmp_path}/{name}",
                   f"paths.cache={tmp_path}/cache"]  # fmt: skip
        finished = in_process.run("evaluate", *options)
        written = json.loads((finished.run_dir / "results.json").read_text())
        assert written["load"]["kind"] == name
        evaluated[name] = written["results"]["strided"]["loss"]
    assert evaluated["gpt2x"] == evaluated["mindformers"]
    assert convert(["--to", "mindformers", "--output", str(tmp_path / "out"), str(tmp_path / "in")]) == 0
    files = {name: {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / name).iterdir()}
             for name in ("in", "out")}  # fmt: skip
    assert files["in"] == files["out"]
    assert {"mindspore_model.ckpt", "mindspore_model.yaml", "tokenizer.json"} <= set(files["in"])
