"""metrics.jsonl and samples.txt when a run is resumed: what is damaged, missing or doubled, and where it goes."""

import json

import pytest

from gpt2x.errors import UserError
from gpt2x.tracking import jsonl
from gpt2x.tracking.jsonl import cut_at
from gpt2x.train.records import METRICS, SAMPLES, Records, listed, ranges
from gpt2x.train.samples import SAMPLE_HEAD


def line(step, **more):
    return json.dumps({"step": step, "time": 1.0, "train/loss": 1 / (step + 1)} | more) + "\n"


def lines(*steps):
    return "".join(map(line, steps))


def sample(step, text="the cat"):
    return f"{SAMPLE_HEAD.format(step)}{text}\n\n"


@pytest.fixture
def run_dir(tmp_path):
    """Killed at step 8, with a checkpoint of step 6 whose marks are in `marks`."""
    records = Records(tmp_path)
    records.begin(0)
    for step in range(1, 9):
        records.metrics.append(step, {"train/loss": 1 / step})
        if step % 3 == 0:
            records.samples.append(sample(step).encode())
        if step == 6:
            marks = records.marks()
            records.sync()
    records.close()
    (tmp_path / "marks").write_text(json.dumps(marks))
    return tmp_path


def resumed(run_dir, step=6, with_marks=True):
    marks = json.loads((run_dir / "marks").read_text())
    records = Records(run_dir)
    records.begin(step, marks if with_marks else None)
    records.metrics.append(step + 1, {"train/loss": 0.0})
    return [row["step"] for row in jsonl.read(run_dir / METRICS)]


def change(path, *edits):
    content = path.read_bytes()
    for old, new in edits:
        assert old in content
        content = content.replace(old, new)
    path.write_bytes(content)


@pytest.mark.parametrize("with_marks", [True, False])
def test_a_sound_run_continues_without_a_word(run_dir, capsys, with_marks):
    assert resumed(run_dir, with_marks=with_marks) == [1, 2, 3, 4, 5, 6, 7]
    assert capsys.readouterr().out == ""
    assert [row["step"] for row in jsonl.read(run_dir / "metrics.1.jsonl")] == [7, 8]
    assert (run_dir / SAMPLES).read_text() == sample(3) + sample(6)


DAMAGE = {
    "a flipped bit": ((b'"step": 3', b'"step"; 3'), "damaged line 3; moved to metrics.1.jsonl", [1, 2, 4, 5, 6, 7]),
    "a flipped bit in a step": ((b'"step": 3', b'"step": 2'), "damaged line 2; ", [1, 2, 4, 5, 6, 7]),
    "a step far away": ((b'"step": 3', b'"step": 5000'), "lacks step 3 of the 6", [1, 2, 4, 5, 6, 7]),
    "zeros": ((b'{"step": 2', b"\0" * 4096 + b'{"step": 2'), "lacks step 2 of the 6", [1, 3, 4, 5, 6, 7]),
    "no line feed": ((b"}\n{" + b'"step": 4', b'} {"step": 4'), "lacks steps 3-4 of the 6", [1, 2, 5, 6, 7]),
    "a value": ((b"0.25", b"0.75"), "not what it was at the checkpoint", [1, 2, 3, 4, 5, 6, 7]),
    "no number": ((b"0.25", b"null"), "damaged line 4; ", [1, 2, 3, 5, 6, 7]),
    "no text": ((b"0.25", b"\xff\xfe"), "damaged line 4; ", [1, 2, 3, 5, 6, 7]),
    "deep": ((b"0.25", b"[" * 100_000), "damaged line 4; ", [1, 2, 3, 5, 6, 7]),
    "long": ((b'"step": 3', b'"step": ' + b"3" * 5000), "damaged line 3; ", [1, 2, 4, 5, 6, 7]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_lines_are_named_and_kept_aside(run_dir, capsys, name):
    edit, message, steps = DAMAGE[name]
    change(run_dir / METRICS, edit)
    before = (run_dir / METRICS).read_bytes().split(b"\n")
    assert resumed(run_dir) == steps
    assert message in capsys.readouterr().out
    after = (run_dir / METRICS).read_bytes() + (run_dir / "metrics.1.jsonl").read_bytes()
    assert set(before) <= set(after.split(b"\n"))  # nothing is lost


def test_a_lost_tail_is_said(run_dir, capsys):
    content, marks = (run_dir / METRICS).read_bytes(), json.loads((run_dir / "marks").read_text())
    for size in range(0, marks[METRICS]["bytes"], 11):
        (run_dir / METRICS).write_bytes(content[:size])
        steps = resumed(run_dir)
        assert steps == [*range(1, len(steps)), 7]
        lost = "6" if len(steps) == 6 else f"s {len(steps)}-6"
        assert f"lacks step{lost} of the 6 before the checkpoint" in capsys.readouterr().out.replace("step 6", "step6")


def test_doubled_steps_of_an_older_version_count_once_the_later_ones():
    cut = cut_at((lines(1, 2, 3) + line(2, new=1) + line(3, new=1) + lines(4)).encode(), 4, None)
    rows = [json.loads(row) for row in cut.kept.splitlines()]
    assert [(row["step"], row.get("new")) for row in rows] == [(1, None), (2, 1), (3, 1), (4, None)]
    assert cut.damaged == (2, 3)


def test_no_step_follows_itself(run_dir):
    records = Records(run_dir)
    records.begin(6)
    records.metrics.append(7, {})
    with pytest.raises(ValueError, match="step 7 cannot follow"):
        records.metrics.append(7, {})


def test_a_run_that_begins_again_keeps_what_was_there_aside(run_dir, capsys):
    Records(run_dir).begin(0)
    assert "lines of an earlier start were moved to metrics.1.jsonl" in capsys.readouterr().out
    assert jsonl.read(run_dir / METRICS) == []
    assert (run_dir / "samples.1.txt").read_text() == sample(3) + sample(6)


SAMPLE_DAMAGE = {
    "a torn sample after the checkpoint": (sample(9)[:-5], ""),
    "a sample after the checkpoint": (sample(9), ""),
    "a text that looks like a head": (sample(9, "=== step 1 ===\n=== step 99 ==="), ""),
}


@pytest.mark.parametrize("name", SAMPLE_DAMAGE)
def test_samples_after_the_checkpoint_are_drawn_again(run_dir, capsys, name):
    more, message = SAMPLE_DAMAGE[name]
    with (run_dir / SAMPLES).open("a") as file:
        file.write(more)
    resumed(run_dir)
    assert (run_dir / SAMPLES).read_text() == sample(3) + sample(6)
    assert (run_dir / "samples.1.txt").read_text() == more
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["lost", "short", "zeros", "no text"])
def test_samples_that_are_not_what_they_were_are_said(run_dir, capsys, damage):
    path = run_dir / SAMPLES
    content = path.read_bytes()
    changed = {"lost": b"", "short": content[:-4], "zeros": content + b"\0" * 10, "no text": b"\xff" + content[1:]}
    path.write_bytes(changed[damage])
    resumed(run_dir)
    assert ("samples.txt is not what it was" in capsys.readouterr().out) == (damage != "zeros")
    assert path.read_bytes() == (content if damage == "zeros" else changed[damage])


@pytest.mark.parametrize("name", [METRICS, SAMPLES])
def test_a_file_that_cannot_be_read_is_one_message(run_dir, name):
    (run_dir / name).unlink()
    (run_dir / name).mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read or written .*move it away"):
        Records(run_dir).begin(6)


def test_lists_are_short():
    assert listed(ranges((3,))) == " 3"
    assert listed(ranges((3, 4, 5))) == "s 3-5"
    assert listed(ranges((1, 3, 4, 7, 9, 11, 13, 15))) == "s 1, 3-4, 7, 9, 11 and 2 more ranges"
