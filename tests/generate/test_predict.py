"""`predict.py`: what it reads, what it writes and where, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from gpt2x import cli
from gpt2x.errors import UserError
from gpt2x.generate.run import json_line, printable, read_prompts, results_stream, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def saved(tmp_path_factory, net, tokenizer):
    """The tiny model as a gpt2x checkpoint."""
    from gpt2x.checkpoint.store import save
    from gpt2x.model.gpt2 import logical_weights
    from tests.generate.conftest import MODEL

    folder = tmp_path_factory.mktemp("predict") / "tiny"
    weights = {"weights": logical_weights(net, MODEL)}
    save(folder, tensors=weights, model=MODEL, run_config={}, loop_state={}, tokenizer_dir_writer=tokenizer.save)
    return folder


def predict_config(*overrides: str):
    cli.register_schemas()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return cli.to_typed("predict", compose("predict", overrides=list(overrides)))


def test_jsonl_file_in_the_order_of_the_prompts(saved, tmp_path, hardware, capfd):
    output = tmp_path / "new" / "out.jsonl"
    prompts = ["the cat", "the dog sat on the log", ""]
    run(predict_config(f"load={saved}", f"prompts={json.dumps(prompts)}", f"output={output}",
                       "generation.max_new_tokens=6", "generation.batch_size=2"))  # fmt: skip
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    for row in rows:
        assert set(row) == {"prompt", "completion", "num_tokens", "tokens_per_s"}
        assert 1 <= row["num_tokens"] <= 6
        assert row["tokens_per_s"] > 0
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]
    out, err = capfd.readouterr()
    assert out == ""
    assert f"3 completions -> {output}" in err
    assert "compiling graphs" in err


def test_text_where_no_output_is_given(saved, hardware, capsys):
    run(predict_config(f"load={saved}", "prompts=[the cat,the dog]", "generation.max_new_tokens=6"))
    out = capsys.readouterr().out
    assert out.index("[1] the cat") < out.index("[2] the dog")
    assert "tokens/s" in out


def test_streams_on_a_terminal(saved, hardware, monkeypatch):
    import io

    from gpt2x.generate import run as module
    from gpt2x.runtime.console import Console

    class Recorder(io.StringIO):
        writes: list[str] = []  # noqa: RUF012

        def write(self, text):
            self.writes.append(text)
            return super().write(text)

    stream = Recorder()
    monkeypatch.setattr(module, "console", Console(stream, interactive=True))
    run(predict_config(f"load={saved}", "prompts=[the cat]", "generation.max_new_tokens=6", "generation.eos_ids=[]"))
    assert len([text for text in stream.writes if text]) >= 4  # prompt, two pieces or more, how it went
    assert "the cat" in stream.getvalue()
    assert "6 tokens" in stream.getvalue()


def test_generation_seed_goes_before_the_seed_of_the_run(saved, tmp_path, hardware):
    def completion(*overrides):
        output = tmp_path / "out.jsonl"
        run(predict_config(f"load={saved}", "prompts=[the cat]", f"output={output}", "generation.temperature=1.5",
                           "generation.max_new_tokens=16", "generation.eos_ids=[]", *overrides))  # fmt: skip
        return json.loads(output.read_text(encoding="utf-8"))["completion"]

    assert completion("seed=2") == completion("seed=1", "generation.seed=2")


@pytest.mark.skipif(not (ROOT / "gpt2x" / "build.py").exists(), reason="no entry point yet")
def test_stdout_holds_json_lines_and_nothing_else(saved, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), f"load={saved}", 'prompts=["the cat","caf\u00e9"]', "output=-",
         "generation.max_new_tokens=4", f"paths.outputs={tmp_path}"],
        capture_output=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    rows = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "café"]
    assert b"tokens/s" in done.stderr


def test_prompts_files(tmp_path):
    text = tmp_path / "p.txt"
    text.write_text("\ufeffone\r\n\n two\n", encoding="utf-8")
    assert read_prompts(predict_config("load=x", f"prompts_file={text}")) == ["one", " two"]
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a\\nb", "id": 1}\n\n{"prompt": ""}\n', encoding="utf-8")
    assert read_prompts(predict_config("load=x", f"prompts_file={rows}")) == ["a\nb", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{bad\n', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', "p.jsonl, line 1 is no JSON object with a text `prompt`"),
        ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl, line 1 is no JSON object"),
        ("p.jsonl", b"[]\n", "p.jsonl, line 1 is no JSON object"),
        ("p.txt", b"", "prompts_file=.*p.txt is empty"),
        ("p.txt", b" \n\n", "p.txt has only blank lines"),
        ("p.txt", b"ok\ncaf\xe9\n", r"p.txt is not valid UTF-8.*line 2"),
        ("p.csv", b"a\n", "files ending in '.csv' cannot be read"),
        ("missing/p.txt", None, "does not exist"),
    ],
)
def test_wrong_prompts_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(predict_config("load=x", f"prompts_file={path}"))


def test_no_prompts():
    with pytest.raises(UserError, match=r"prompts=\[\] is empty"):
        read_prompts(predict_config("load=x", "prompts=[]"))


def test_an_output_that_cannot_be_written_is_refused_before_loading(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for output in (tmp_path, tmp_path / "file" / "below.jsonl"):
        with pytest.raises(UserError, match=f"output={output} cannot be written"):
            run(predict_config("load=/nowhere", "prompts=[a]", f"output={output}"))


def test_a_failed_run_leaves_the_old_output(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("old", encoding="utf-8")

    def fail():
        with results_stream(str(output)) as stream:
            stream.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert output.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [output]
    with results_stream(str(output)) as stream:
        stream.write("new")
    assert output.read_text(encoding="utf-8") == "new"


def test_a_device_is_written_to_and_not_replaced():
    with results_stream("/dev/null") as stream:
        stream.write("x")
    assert Path("/dev/null").is_char_device()


def test_lines_hold_newlines_and_unicode():
    from gpt2x.generate import Completion

    line = json_line(Completion("é", "a\nb\u2028", [1], 1, 2.0, "length"))
    assert json.loads(line)["completion"] == "a\nb\u2028"
    assert line.count("\n") == 1


def test_escape_sequences_of_a_model_do_not_reach_the_terminal():
    assert printable("a\x1b[31mb\n\tc\u00a0é") == "a\ufffd[31mb\n\tc\u00a0é"
