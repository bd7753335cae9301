import json
import math

import pytest

from gpt2x.tracking import jsonl
from gpt2x.tracking.jsonl import MetricsLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_values_read_back_exactly(path):
    values = {"train/loss": 0.1 + 0.2, "train/lr": 1e-7, "train/grad_norm": 5e-324, "one": 1}
    _, time_s, _ = MetricsLog(path).append(7, values)
    (row,) = jsonl.read(path)
    assert row == {"step": 7, "time": time_s, **values}


def test_non_finite_values_are_strings_in_valid_json(path):
    MetricsLog(path).append(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [line["a"], line["b"], line["c"]] == ["NaN", "Infinity", "-Infinity"]
    (row,) = jsonl.read(path)
    assert math.isnan(row["a"])
    assert row["b"] == math.inf
    assert row["c"] == -math.inf


def test_each_line_is_on_disk_at_once(path):
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append(step, {"a": 1.0})
        assert len(path.read_text().splitlines()) == step


def test_rewind_moves_later_lines_aside_and_keeps_the_others_byte_for_byte(path):
    log = MetricsLog(path)
    for step in range(1, 6):
        log.append(step, {"train/loss": 1 / step})
    before = path.read_bytes().splitlines(keepends=True)
    assert log.rewind(3).aside == path.with_name("metrics.1.jsonl")
    assert path.read_bytes() == b"".join(before[:3])
    assert path.with_name("metrics.1.jsonl").read_bytes() == b"".join(before[3:])
    log.append(4, {"train/loss": 0.5})
    assert [row["step"] for row in jsonl.read(path)] == [1, 2, 3, 4]
    log.rewind(2)
    assert [row["step"] for row in jsonl.read(path.with_name("metrics.2.jsonl"))] == [3, 4]


def test_rewind_to_the_last_step_changes_nothing(path):
    log = MetricsLog(path)
    assert log.rewind(2).kept == b""
    log.append(3, {"a": 1.0})
    assert log.rewind(3).moved == b""
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", [b'{"step": 3, "ti', b'{"step": 3, "time": 1.0}', b"\0\0\0\n"])
def test_a_torn_last_line_is_left_out_and_set_aside(path, torn):
    MetricsLog(path).append(2, {"a": 1.0})
    path.write_bytes(path.read_bytes() + torn)
    assert [row["step"] for row in jsonl.read(path)] == [2]
    MetricsLog(path).append(3, {"a": 2.0})
    assert [row["step"] for row in jsonl.read(path)] == [2, 3]
    assert path.with_name("metrics.1.jsonl").read_bytes() == torn


def test_damage_before_the_last_line_is_named(path):
    path.write_text('{"step": 1, "time": 1.0}\nnonsense\n{"step": 2, "time": 1.0}\n')
    with pytest.raises(ValueError, match="line 2"):
        jsonl.read(path)


def test_a_step_that_is_repeated_with_the_same_result_gets_its_line_back(path):
    """A tracker that has the line already then has what the file has, however often a run is killed."""
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append(step, {"train/loss": math.nan if step == 2 else 1 / step, "perf/step_time_s": 0.1}, time_s=step)
    before = jsonl.read_after(path, 0)[0]
    for _ in range(2):
        log = MetricsLog(path)
        log.rewind(1)
        repeated = log.append(2, {"train/loss": math.nan, "perf/step_time_s": 0.7, "perf/compile_time_s": 3.0})
    assert str(repeated) == str(before[1])
    assert log.append(3, {"train/loss": 0.25, "perf/step_time_s": 0.1}, time_s=9.0) == (
        3,
        9.0,
        {"train/loss": 0.25, "perf/step_time_s": 0.1},
    ), "another result is another line"
    assert log.append(4, {"train/loss": 0.2}, time_s=10.0)[1] == 10.0
    assert [row["step"] for row in jsonl.read(path)] == [1, 2, 3, 4]


def test_lines_are_read_on_from_where_the_last_reader_was(path):
    log = MetricsLog(path)
    log.append(1, {"a": math.inf}, time_s=1.0)
    lines, offset, damaged = jsonl.read_after(path, 0)
    assert (lines, offset, damaged) == ([(1, 1.0, {"a": math.inf})], path.stat().st_size, 0)
    with path.open("ab") as file:
        file.write(b'not a line\n{"step": 2, "time": 2.0, "a": 1.5}\n{"step": 3, "ti')
    lines, offset, damaged = jsonl.read_after(path, offset)
    assert (lines, damaged) == ([(2, 2.0, {"a": 1.5})], 1)
    assert jsonl.read_after(path, offset) == ([], offset, 0), "a torn line is not read"
    assert jsonl.read_after(path, 0, num_bytes=3)[0] == [(1, 1.0, {"a": math.inf})], "at least one line"
    assert jsonl.last_time(path) == 2.0
