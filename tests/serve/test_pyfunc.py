"""MLflow models answer as predict.py does, and a caller's mistake is an error that MLflow's server gives status 400."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas
import pytest

from tests.commands import convert
from tests.support import in_process

SAMPLED = {"max_new_tokens": 6, "temperature": 0.9, "top_k": 40, "repetition_penalty": 1.2, "seed": 5}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def load(directory, source):
    """Convert `source`, and load the MLflow model from where it has been moved to."""
    from mlflow.pyfunc import load_model

    assert convert(["--to", "mlflow", "--output", str(directory / "written"), str(source)]) == 0
    search_path = [*sys.path]
    try:
        return load_model(str((directory / "written").rename(directory / "moved")))
    finally:
        sys.path[:] = search_path  # MLflow has put the model's code before it


@pytest.fixture(scope="module")
def text_model(zoo, tmp_path_factory):
    return load(tmp_path_factory.mktemp("text"), zoo.plain.checkpoint(16))


def predicted(directory, load, prompts, *overrides):
    """The JSON lines of predict.py."""
    output = directory / "out.jsonl"
    typed = [f"load={load}", f"output={output}", f"paths.outputs={directory}/outputs", *overrides]
    in_process.run("predict", *typed, *([f"prompts={json.dumps(prompts)}"] if prompts else []))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def answered(model, table, **params):
    return model.predict(pandas.DataFrame(table), params or None).to_dict("records")


@pytest.mark.parametrize("params", [{"max_new_tokens": 6}, SAMPLED], ids=["greedy", "sampled"])
def test_completions_are_those_of_predict(zoo, text_model, tmp_path, params):
    prompts = ["the cat", "", "some dogs ran over", "hill"]
    typed = [f"generation.{key}={value}" for key, value in params.items()]
    rows = answered(text_model, {"prompt": prompts}, **params)
    lines = predicted(tmp_path, zoo.plain.checkpoint(16), prompts, *typed)
    assert [row["completion"] for row in rows] == [line["completion"] for line in lines]
    assert [row["num_tokens"] for row in rows] == [line["num_tokens"] for line in lines]
    assert {row["finish_reason"] for row in rows} <= {"eos", "length"}


def test_requests_of_several_threads_do_not_disturb_each_other(text_model):
    requests = [
        ([f"the cat {index}"] * (1 + index % 3), {"max_new_tokens": 4 + index, "seed": index}) for index in range(6)
    ]
    requests = [(prompts, params | ({"top_p": 0.9} if "1" in prompts[0] else {})) for prompts, params in requests]
    alone = [answered(text_model, {"prompt": prompts}, **params) for prompts, params in requests]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda one: answered(text_model, {"prompt": one[0]}, **one[1]), requests))
    assert together == alone


@pytest.mark.parametrize(
    ("table", "params", "message"),
    [
        ({"prompt": pandas.Series([], dtype=object)}, {}, "the request has no prompt; send at least one"),
        ({"prompt": [None]}, {}, "prompt 1 is NoneType, not a text"),
        (
            {"prompt": ["a", "the cat " * 40]},
            {},
            r"prompt 2 \('the cat .*…'\) has \d+ tokens: with max_new_tokens=16 it",
        ),
        ({"prompt": ["a"]}, {"max_new_tokens": 0}, "^max_new_tokens=0 must be at least 1"),
        ({"prompt": ["a"]}, {"top_k": 3, "do_sample": False}, "^do_sample=false decodes greedily, so top_k would"),
        ({"prompt": ["a"]}, {"eos_ids": [999]}, "^eos_ids: 999 is not a token of the model"),
        ({"prompt": ["a"]}, {"temperature": "hot"}, "Invalid parameters found: .*temperature"),
        ({"text": ["a"]}, {}, "Model is missing inputs"),
    ],
)
def test_mistakes_of_the_caller_are_bad_requests(text_model, table, params, message):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as caught:
        answered(text_model, table, **params)
    assert caught.value.get_http_status_code() == 400


def test_an_adapter_is_merged_into_its_base(zoo, tmp_path):
    model = load(tmp_path, zoo.lora.run_dir)
    rows = answered(model, {"prompt": ["the cat"]}, max_new_tokens=6)
    lines = predicted(tmp_path, zoo.plain.checkpoint(16), ["the cat"], f"adapters=[{zoo.lora.run_dir}]",
                      "generation.max_new_tokens=6")  # fmt: skip
    assert [row["completion"] for row in rows] == [line["completion"] for line in lines]
    facts = model.metadata.metadata
    assert (facts["run"], facts["step"], facts["checkpoint"]) == (zoo.lora.run_dir.name, 6, "step_6")
    assert len(facts["checkpoint_sha256"]) == 64


def test_instructions_get_their_template(zoo, tmp_path):
    model = load(tmp_path, zoo.instructions.run_dir)
    assert [column.name for column in model.metadata.get_input_schema()] == ["prompt", "input"]
    rows = answered(model, {"prompt": ["cat", "red"], "input": ["la la", None]}, max_new_tokens=4)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"instruction": "cat", "input": "la la"}\n{"instruction": "red"}\n', encoding="utf-8")
    lines = predicted(
        tmp_path, zoo.instructions.run_dir, [], f"prompts_file={questions}", "generation.max_new_tokens=4"
    )
    assert [row["completion"] for row in rows] == [line["output"] for line in lines]
    assert answered(model, {"prompt": ["red"]}, max_new_tokens=4) == rows[1:]


def test_classes_are_those_of_predict(zoo, tmp_path):
    model = load(tmp_path, zoo.classifier.run_dir)
    prompts = ["the cat glad", " sat sad ", "", "mats " * 80, "green hill fine"]
    rows = answered(model, {"prompt": prompts})
    lines = predicted(tmp_path, zoo.classifier.run_dir, prompts)
    assert [row["label"] for row in rows] == [line["label"] for line in lines]
    for row, line in zip(rows, lines, strict=True):  # batches of 4 here, of 5 there
        assert row["probabilities"] == pytest.approx(line["probabilities"], abs=2e-6)
    assert [row["is_cut"] for row in rows] == [False, False, False, True, False]
    assert model.metadata.get_params_schema() is None
