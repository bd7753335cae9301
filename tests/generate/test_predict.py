"""`predict.py`: what it reads, what it writes and where, what it refuses."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from gpt2x.commands.entry import run_in_process
from gpt2x.errors import UserError
from gpt2x.generate import Completion, predict_text
from gpt2x.generate import output as module
from gpt2x.generate.output import Lines, completion_values, printable, results
from gpt2x.generate.prompts import Prompt, read_prompts
from gpt2x.generate.streaming import InputOrder
from gpt2x.runtime.console import Console
from tests.support.configs import typed

run = partial(run_in_process, "predict", run_dir=Path("unused"))

ROOT = Path(__file__).resolve().parents[2]


def test_jsonl_file_in_the_order_of_the_prompts(saved, tmp_path, hardware, capfd):
    output = tmp_path / "new" / "out.jsonl"
    prompts = ["the cat", "the dog sat on the log", ""]
    run(typed("predict", f"load={saved}", f"prompts={json.dumps(prompts)}", f"output={output}",
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
    run(typed("predict", f"load={saved}", "prompts=[the cat,the dog]", "generation.max_new_tokens=6"))
    out = capsys.readouterr().out
    assert out.index("[1] the cat") < out.index("[2] the dog")
    assert "tokens/s" in out


class Recorder(io.StringIO):
    """A terminal that remembers single writes."""

    def __init__(self):
        super().__init__()
        self.writes: list[str] = []

    def write(self, text):
        self.writes.append(text)
        return super().write(text)


def test_streams_on_a_terminal(saved, hardware, monkeypatch):
    stream = Recorder()
    for part in (module, predict_text):
        monkeypatch.setattr(part, "console", Console(stream, interactive=True))
    prompts = ["the cat", "the dog sat on the log"]
    run(typed("predict", f"load={saved}", f"prompts={json.dumps(prompts)}", "generation.max_new_tokens=6",
                       "generation.eos_ids=[]"))  # fmt: skip
    shown = stream.getvalue()
    assert shown.index("[1]") < shown.index(prompts[0]) < shown.index("6 tokens") < shown.index("[2]")
    assert shown.count("6 tokens, ") == 2
    first = next(place for place, text in enumerate(stream.writes) if "6 tokens" in text)
    assert first >= 4  # number, prompt, two pieces or more


def test_elsewhere_a_completion_is_printed_when_it_is_done(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", Console(stream, interactive=False))
    shown = module.Shown(["a", "b"], streams=False)
    with shown, InputOrder(shown.text, shown.completion) as order:
        order.text(0, " x")
        order.text(1, " x")
        order.end(1, completed("b"))
        assert stream.getvalue() == ""
        order.end(0, completed("a"))
        end = "\n(1 tokens, 2.0 tokens/s, ended by generation.max_new_tokens)\n\n"
        assert stream.getvalue() == f"[1] a x{end}[2] b x{end}"


def test_an_interrupted_terminal_shows_what_is_done(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", Console(stream, interactive=False))
    shown = module.Shown(["a", "b", "c"], streams=True)

    def interrupted():
        with shown, InputOrder(shown.text, shown.completion) as order:
            order.text(0, " one")
            order.text(1, " two")
            order.text(2, " x")
            order.end(2, completed("c"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().startswith("[1] a one\n(not finished)\n\n[3] c x\n(1 tokens")


def test_generation_seed_goes_before_the_seed_of_the_run(saved, tmp_path, hardware):
    def completion(*overrides):
        output = tmp_path / "out.jsonl"
        run(typed("predict", f"load={saved}", "prompts=[the cat]", f"output={output}", "generation.temperature=1.5",
                           "generation.max_new_tokens=16", "generation.eos_ids=[]", *overrides))  # fmt: skip
        return json.loads(output.read_text(encoding="utf-8"))["completion"]

    assert completion("seed=2") == completion("seed=1", "generation.seed=2")


@pytest.mark.launch
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
    assert read_prompts(typed("predict", "load=x", f"prompts_file={text}")) == [Prompt("one"), Prompt(" two")]
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a\\nb", "id": 1}\n\n{"prompt": ""}\n', encoding="utf-8")
    assert read_prompts(typed("predict", "load=x", f"prompts_file={rows}")) == [Prompt("a\nb"), Prompt("")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{bad\n', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', "p.jsonl, line 1 is not a JSON object with a text `prompt`"),
        ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl, line 1 is not a JSON object"),
        ("p.jsonl", b"[]\n", "p.jsonl, line 1 is not a JSON object"),
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
        read_prompts(typed("predict", "load=x", f"prompts_file={path}"))


def test_no_prompts():
    with pytest.raises(UserError, match=r"prompts=\[\] is empty"):
        read_prompts(typed("predict", "load=x", "prompts=[]"))


def test_an_output_that_cannot_be_written_is_refused_before_loading(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for output in (tmp_path, tmp_path / "file" / "below.jsonl"):
        with pytest.raises(UserError, match=f"output={output} cannot be written"):
            run(typed("predict", "load=/nowhere", "prompts=[a]", f"output={output}"))


def completed(prompt):
    return Completion(prompt, " x", [1], 1, 2.0, "length")


def json_line(completion):
    """The line of `completion`, as `Lines` writes it."""
    stream = io.StringIO()
    Lines("-", stream).write(completion_values(completion))
    return stream.getvalue()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, UserError])
def test_a_failed_run_leaves_the_old_output_and_keeps_its_own_part(tmp_path, capsys, fault):
    output = tmp_path / "out.jsonl"
    output.write_text("old", encoding="utf-8")

    def fail(*prompts):
        with results(str(output), 3) as lines:
            for prompt in prompts:
                lines.write(completion_values(completed(prompt)))
                (partial,) = tmp_path.glob("out.jsonl.partial-*")
                assert partial.read_text(encoding="utf-8").endswith(json_line(completed(prompt)))  # at once
            raise fault

    with pytest.raises(fault):
        fail()
    assert list(tmp_path.iterdir()) == [output]  # nothing to keep
    assert capsys.readouterr().err == ""
    with pytest.raises(fault):
        fail("a", "b")
    partial = tmp_path / "out.jsonl.partial"
    assert output.read_text(encoding="utf-8") == "old"
    assert sorted(tmp_path.iterdir()) == [output, partial]
    assert [json.loads(line)["prompt"] for line in partial.read_text(encoding="utf-8").splitlines()] == ["a", "b"]
    assert f"2 of 3 lines are in {partial}" in capsys.readouterr().err
    with results(str(output), 1) as lines:
        lines.write(completion_values(completed("new")))
    assert output.read_text(encoding="utf-8") == json_line(completed("new"))


def test_an_interrupted_run_keeps_every_finished_completion(saved, tmp_path, hardware, monkeypatch, capsys):
    from gpt2x.generate import Generator

    def complete(self, prompts, config, seed, on_text, on_completion, replicas):
        for index in (0, 3, 2):
            on_completion(index, completed(prompts[index]))
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "complete", complete)
    with pytest.raises(KeyboardInterrupt):
        run(typed("predict", f"load={saved}", "prompts=[a,b,c,d]", f"output={tmp_path / 'out.jsonl'}"))
    (partial,) = tmp_path.iterdir()
    assert partial.read_text(encoding="utf-8") == "".join(json_line(completed(prompt)) for prompt in "acd")
    assert f"3 of 4 lines are in {partial}" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run(typed("predict", f"load={saved}", "prompts=[a,b,c,d]", "output=-"))
    out, err = capsys.readouterr()
    assert out == "".join(json_line(completed(prompt)) for prompt in "acd")
    assert "3 of 4 lines were written" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said():
    def write():
        with results("/dev/full", 1) as lines:
            lines.write(completion_values(completed("a")))

    with pytest.raises(UserError, match="output=/dev/full cannot be written: No space left"):
        write()


def test_a_device_is_written_to_and_not_replaced():
    with results("/dev/null", 1) as lines:
        lines.write(completion_values(completed("a")))
    assert Path("/dev/null").is_char_device()


def test_lines_hold_newlines_and_unicode():
    line = json_line(Completion("é", "a\nb\u2028", [1], 1, 2.0, "length"))
    assert json.loads(line)["completion"] == "a\nb\u2028"
    assert line.count("\n") == 1


def test_escape_sequences_of_a_model_do_not_reach_the_terminal():
    assert printable("a\x1b[31mb\n\tc\u00a0é") == "a\ufffd[31mb\n\tc\u00a0é"
