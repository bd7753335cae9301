import math

from gpt2x.tracking import MetricsLog
from gpt2x.tracking.plots import plot_loss


def test_a_curve_with_gaps_and_repeated_steps_is_drawn(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in [*range(1, 40), *range(30, 60)]:
        log.append(step, {"train/loss": math.nan if step == 10 else 5 / step, "train/lr": 1e-3})
    log.append(59, {"val/loss": 1.0, "val/ppl": math.e})
    plot_loss(log.path, tmp_path / "plots" / "loss.png", "title", {"unigram": 6.0})
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["loss.png"]


def test_a_run_without_metrics_gives_an_empty_picture(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "title")
    assert (tmp_path / "loss.png").stat().st_size > 1000
