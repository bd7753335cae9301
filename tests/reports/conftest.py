"""Run directories written by hand: a configuration and lines of metrics, no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.configs import typed

T0 = 1_700_000_000.0  # unix seconds of every run's first line

WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def composed() -> dict:
    """The configuration of a small run, as nested values."""
    config = typed("train", "model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=32",
                   "trainer.seq_len=32", "trainer.global_batch_size=8", "model.vocab_size=300")  # fmt: skip
    return OmegaConf.to_container(OmegaConf.structured(config))


@pytest.fixture
def write_run(tmp_path, composed) -> WriteRun:
    """Return a function that writes a run directory below the test's folder."""

    def write(
        name: str, losses: Sequence[float] = (5.0, 4.0, 3.0), *, val: dict[int, float] | None = None,
        is_finished: bool = True, samples: str = "", job: dict | None = None, **keys: object,
    ) -> Path:  # fmt: skip
        path = tmp_path / name
        path.mkdir(parents=True)
        config = OmegaConf.create(composed)
        for key, value in keys.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        (path / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        lines = [line(step, loss, (val or {}).get(step)) for step, loss in enumerate(losses, 1)]
        if lines:
            (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
        if is_finished:
            (path / "loss.png").write_bytes(b"\x89PNG")
        if samples:
            (path / "samples.txt").write_text(samples, encoding="utf-8")
        if job is not None:
            write_job(path, **job)
        return path

    return write


def line(step: int, loss: float, val: float | None = None) -> dict:
    """Return a line of metrics.jsonl: a step takes half a second of the two between lines."""
    values = {"step": step, "time": T0 + 2.0 * step, "train/loss": loss, "train/tokens": 256.0 * step,
              "perf/tokens_per_s": 512.0, "perf/step_time_s": 0.5, "perf/mfu": 0.25, "perf/memory_gb": 1.5}  # fmt: skip
    if step == 1:
        values |= {"perf/compile_time_s": 7.0, "perf/startup_time_s": 11.0}
    return values if val is None else values | {"val/loss": val, "val/ppl": 20.0}


def write_job(path: Path, number: int, varied: Sequence[str], **values: object) -> None:
    """Write a `job.json` as a multirun leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    job = {"number": number, "overrides": list(varied), "varied": list(varied), "sweep_dir": str(path.parent),
           "run_dir": str(path), "status": "finished", "objective": "val/loss", **values}  # fmt: skip
    (path / "job.json").write_text(json.dumps(job), encoding="utf-8")
