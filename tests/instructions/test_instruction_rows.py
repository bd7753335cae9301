"""Instructions from JSON, templates, rows of tokens: what a row holds, what is cut, and every message."""

import json

import numpy as np
import pytest
import yaml

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.instruction import IGNORED, InstructionRows, encode, inputs_of, pack
from gpt2x.data.sampling import batches
from gpt2x.data.sources.instructions import Instructions
from gpt2x.data.template import FOLDER, load_template, stored_template
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:"
)
ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
    {"instruction": "Add.", "input": "1 2", "output": "The sum of the two is 3, of course."},
    {"instruction": "Greet {me}.", "output": "Hello"},
    {"instruction": "Count.", "input": "to three", "output": "one two three " * 4},
]


def config(file, **changes) -> DatasetConfig:
    values = {"name": "instructions", "corpus": "instructions", "train_path": str(file)}
    return DatasetConfig(**(values | changes))


def written(tmp_path, rows, name="train.json"):
    path = tmp_path / name
    text = json.dumps(rows, indent=1) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [load_template("alpaca", "t").prompt(r["instruction"], r.get("input", "")) + r["output"] for r in ROWS]
    return byte_level_bpe.train(texts, 300, "<|endoftext|>")


def prepared(tmp_path, tokenizer, rows=ROWS, seq_len=200, **changes):
    dataset = config(written(tmp_path, rows), **changes)
    return prepare(
        dataset,
        TokenizerConfig(name="t"),
        InstructionRows(seq_len),
        cache=tmp_path / "cache",
        checkpoint_tokenizer=tokenizer,
    )


def rows_of(split):
    (batch,) = batches(split, batch_size=1000, seed=0, epoch=0, shuffle=False, drop_last=False)
    return batch


# ---- templates


def test_the_alpaca_template_is_stanfords():
    template = load_template("alpaca", "dataset.template")
    assert template.prompt("Add.", "1 {2}") == ALPACA_WITH_INPUT
    assert template.prompt("Add.") == ALPACA_WITHOUT_INPUT


def test_a_template_is_saved_and_found_again(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump({"with_input": "Q: {instruction} {input}\n{{A}}:é", "without_input": "{instruction}"})
    )
    template = load_template(str(path), "dataset.template")
    assert template.prompt("a", "b") == "Q: a b\n{A}:é"
    template.save(tmp_path)
    assert stored_template(tmp_path) == template
    assert stored_template(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"with_input": "{instruction}{input}"}, "must have two keys, with_input and without_input"),
        ("text", "must have two keys"),
        (
            {"with_input": "{instruction}{inpt}", "without_input": "{instruction}"},
            "with_input has the placeholder {inpt}",
        ),
        ({"with_input": "{instruction}", "without_input": "{instruction}"}, "with_input lacks the placeholder {input}"),
        (
            {"with_input": "{instruction}{input}", "without_input": "{instruction}{input}"},
            "without_input has the placeholder {input}, which is none of {instruction}",
        ),
        ({"with_input": "{instruction}{input}", "without_input": "{instruction!r}"}, "the placeholder {instruction!r}"),
        ({"with_input": "{instruction}{input} {", "without_input": "{instruction}"}, "a brace of the text itself"),
        ({"with_input": 3, "without_input": "{instruction}"}, "with_input is int, not text"),
    ],
)
def test_wrong_templates(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        load_template(str(path), "dataset.template")
    assert f"dataset.template={path}" in str(error.value)
    assert message in str(error.value)


def test_an_unknown_template_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"dataset.template=alpacca is not a file or template.*alpaca"):
        load_template("alpacca", "dataset.template")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_template(str(path), "dataset.template")
    assert FOLDER.is_dir()


# ---- files


def test_json_and_jsonl_give_the_same(tmp_path):
    found = [
        Instructions(config(written(tmp_path, ROWS, n)), tmp_path).examples("train") for n in ("a.json", "a.jsonl")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert "### Input:" in found[0][1].prompt
    assert "Greet {me}." in found[0][2].prompt


def changed(**changes):
    return [ROWS[0], {k: v for k, v in (ROWS[1] | changes).items() if v is not None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", changed(output=None), "a.json, line 7 has no 'output'; it has 'instruction', 'input'"),
        ("a.jsonl", changed(instruction=None), "a.jsonl, line 2 has no 'instruction'"),
        ("a.json", changed(output=" \n"), "a.json, line 7 has an empty 'output'.*dataset.skip_empty=true"),
        ("a.json", changed(instruction=""), "a.json, line 7 has an empty 'instruction'"),
        ("a.json", changed(input=3), "a.json, line 7: 'input' is a number \\(3\\), not text"),
        ("a.json", [ROWS[0], "text"], "a.json, line 7 begins str, not a JSON object"),
        ("a.json", {"rows": ROWS}, "a.json is an object with the keys 'rows', not a list of objects"),
        ("a.json", "[{},", "a.json is not JSON"),
        ("a.json", "{}\n{}\n", "is not JSON: Extra data.*rename the file"),
        ("a.json", [], "has no example"),
        ("a.jsonl", "[]\n", "a.jsonl, line 1 is not a JSON object"),
        ("a.txt", "text", "instructions are read from .jsonl, .json"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    else:
        written(tmp_path, content, name)
    with pytest.raises(UserError, match=message):
        Instructions(config(path), tmp_path)


def test_no_path_at_all(tmp_path):
    with pytest.raises(UserError, match=r"dataset.path=null.*\.jsonl, \.json"):
        Instructions(DatasetConfig(name="alpaca", corpus="instructions"), tmp_path)


def test_empty_outputs_are_left_out_on_request_and_counted(tmp_path):
    corpus = Instructions(config(written(tmp_path, changed(output="")), skip_empty=True), tmp_path)
    assert len(corpus.examples("train")) == 1
    assert corpus.notes == ["1 rows of train.json with an empty output are left out (dataset.skip_empty)"]


def test_a_file_is_divided_by_the_seed(tmp_path):
    path = written(tmp_path, ROWS, "all.json")
    corpus = Instructions(config(path, train_path=None, path=str(path), val_fraction=0.25), tmp_path)
    parts = corpus.examples("train"), corpus.examples("val")
    assert [len(part) for part in parts] == [3, 1]
    assert len(set(parts[0]) | set(parts[1])) == 4


def test_as_plain_text_a_document_is_a_prompt_with_its_response(tmp_path):
    corpus = Instructions(config(written(tmp_path, ROWS)), tmp_path)
    first = next(corpus.pieces("train"))
    assert first.text.endswith("Name a colour.\n\n### Response:Red")
    assert first.ends_document


# ---- rows


def test_rows_hold_prompt_response_and_eos_and_learn_the_last_two(tmp_path, tokenizer):
    data = prepared(tmp_path, tokenizer, packing=False)
    rows = rows_of(data.train)
    assert rows["input_ids"].shape == (4, 201)
    for index, row in enumerate(ROWS):
        prompt = tokenizer.encode(data.template.prompt(row["instruction"], row.get("input", "")))
        response = [*tokenizer.encode(row["output"]), tokenizer.eos_id]
        size = len(prompt) + len(response)
        assert rows["input_ids"][index, :size].tolist() == prompt + response
        assert rows["labels"][index].tolist() == [IGNORED] * len(prompt) + response + [IGNORED] * (201 - size)
        assert rows["attention_mask"][index].tolist() == [1] * size + [0] * (201 - size)


def test_packed_rows_hold_every_example_whole_and_once(tmp_path, tokenizer):
    data = prepared(tmp_path, tokenizer, seq_len=400)
    rows = rows_of(data.train)
    assert len(rows["input_ids"]) < 4
    found = []
    for ids, numbers, labels in zip(*(rows[k] for k in ("input_ids", "attention_mask", "labels")), strict=True):
        for number in range(1, numbers.max() + 1):
            here = numbers == number
            learnt = labels[here] != IGNORED
            assert (np.diff(np.flatnonzero(here)) == 1).all()
            assert (labels[here][learnt] == ids[here][learnt]).all()
            found.append((tokenizer.decode(ids[here][~learnt].tolist()), tokenizer.decode(ids[here][learnt].tolist())))
    wanted = [(data.template.prompt(r["instruction"], r.get("input", "")), r["output"] + "<|endoftext|>") for r in ROWS]
    assert sorted(found) == sorted(wanted)


def test_starts_begin_anew_with_each_example_and_with_the_rest():
    numbers = np.array([[1, 1, 2, 2, 2, 3, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    ids = np.arange(18, dtype=np.int32).reshape(2, 9)
    labels = np.where(np.array([[0, 1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1]]), ids, IGNORED)
    found = inputs_of({"input_ids": ids, "attention_mask": numbers, "labels": labels}, width=8)
    assert found.starts.tolist() == [[0, 0, 2, 2, 2, 5, 6, 6], [0] * 8]
    assert found.counted.tolist() == [[1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]
    assert found.ids.tolist() == ids.tolist()


@pytest.mark.parametrize(("longest", "width"), [(20, 32), (33, 32), (34, 64), (65, 64), (66, 100), (101, 100)])
def test_a_batch_is_cut_to_the_bucket_of_its_longest_row(longest, width):
    numbers = (np.arange(101) < np.array([[5], [longest]])).astype(np.int32)
    found = inputs_of({"input_ids": numbers, "attention_mask": numbers, "labels": numbers})
    assert found.ids.shape == (2, width + 1)
    assert found.counted.shape == found.starts.shape == (2, width)


def test_responses_are_cut_and_long_prompts_left_out_and_both_are_said(tmp_path, tokenizer):
    examples = Instructions(config(written(tmp_path, ROWS)), tmp_path).examples("train")
    sizes = [(example.num_prompt, len(example.ids)) for example in encode(examples, tokenizer)]
    seq_len = max(prompt for prompt, _ in sizes) - 1  # the longest prompt fills a row of seq_len + 1
    data = prepared(tmp_path, tokenizer, seq_len=seq_len)
    cut = [total - seq_len - 1 for prompt, total in sizes if prompt <= seq_len and total > seq_len + 1]
    left_out = sum(prompt > seq_len for prompt, _ in sizes)
    assert left_out == 1
    assert data.train.num_documents == 3
    notes = " ".join(data.summary.notes)
    assert f"{left_out} train examples are left out: prompts beyond seq_len={seq_len}" in notes
    if cut:
        assert f"{len(cut)} train responses are cut" in notes
    rows = rows_of(data.train)
    ends = [row[row != IGNORED][-1] == tokenizer.eos_id for row in rows["labels"]]
    assert not all(ends) or not cut
    with pytest.raises(UserError, match=r"trainer.seq_len=5: no train prompt.*the shortest has \d+ tokens"):
        prepared(tmp_path, tokenizer, seq_len=5)


def test_pack_is_best_fit_and_deterministic():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    lengths = np.random.default_rng(0).integers(1, 100, 2000).tolist()
    rows = pack(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(2000))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 128
    assert len(rows) <= 1.01 * sum(lengths) / 128 + 1
    assert rows == pack(lengths, 128)
    assert pack([1] * 130, 128) == [list(range(60)), list(range(60, 120)), list(range(120, 130))]


def test_the_cache_tells_templates_and_packing_apart(tmp_path, tokenizer):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"with_input": "{instruction} {input}", "without_input": "{instruction}"}))
    found = {prepared(tmp_path, tokenizer, **changes).fingerprint
             for changes in ({}, {"packing": False}, {"template": str(own)}, {})}  # fmt: skip
    assert len(found) == 3
