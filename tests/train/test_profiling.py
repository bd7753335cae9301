"""The window of profiled updates by itself; tests/train/test_runs.py has a run with one."""

import numpy as np
import pytest
from mindspore import Tensor, ops

from gpt2x.runtime.console import Progress
from gpt2x.train.profiling import ProfileWindow


@pytest.mark.run
def test_a_run_that_ends_within_the_window_writes_what_was_recorded(hardware, tmp_path, capsys):
    window, x = ProfileWindow([2, 4], tmp_path / "profile", rank=3, is_cpu=True), Tensor(np.ones((8, 8), np.float32))
    with Progress(9) as progress:
        for step in (1, 2):
            with window.update(step, progress):
                ops.matmul(x, x).asnumpy()
    assert not list(tmp_path.rglob("trace_view.json"))
    window.close()
    (trace,) = tmp_path.glob("profile/rank_3_*_ascend_ms/ASCEND_PROFILER_OUTPUT/trace_view.json")
    assert "MatMul" in trace.read_text(encoding="utf-8")
    window.close()
    assert capsys.readouterr().out.count(f"profile of steps 2 to 2: {tmp_path}/profile") == 1


def test_on_ascend_the_device_is_recorded_too(hardware, tmp_path):
    options = ProfileWindow([2, 4], tmp_path, 0, is_cpu=False).create()._prof_context.original_params
    assert set(options["activities"]) == {"CPU", "NPU"}
    assert (options["profiler_level"], options["schedule"]["active"]) == ("Level1", 3)


def test_no_window_covers_no_update(tmp_path):
    window = ProfileWindow(None, tmp_path / "profile", 0, is_cpu=True)
    assert not any(window.covers(step) for step in range(1, 9))
    window.close()
    assert not list(tmp_path.iterdir())
