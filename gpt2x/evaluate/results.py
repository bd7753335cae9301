"""The files that an evaluation writes, and the metrics of all its adapters and protocols by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt2x.convert import CheckpointWeights
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import Intervals, flat, intervals
from gpt2x.evaluate.measurement import Measured
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.files import replaced
from gpt2x.runtime.json_text import encoded

RESULTS, SCORES = "results.json", "scores.npz"


def all_intervals(measured: Mapping[str, Measured], resamples: int | None, seed: int) -> dict[str, Intervals]:
    """Return the 95 % intervals of each metric, by name; none if `resamples` is null or 0."""
    return {name: intervals(each.scores, resamples, seed) if resamples else {} for name, each in measured.items()}


def by_key(by_adapter: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten {adapter: {name: value}} to {`ADAPTER/NAME`: value}; an empty adapter or name is left out."""
    return {
        "/".join(part for part in (adapter, name) if part): value
        for adapter, by_name in by_adapter.items()
        for name, value in by_name.items()
    }


def metrics_of(
    measured: Mapping[str, Mapping[str, Measured]], limits: Mapping[str, Mapping[str, Intervals]]
) -> dict[str, float]:
    """Return `eval/[ADAPTER/][PROTOCOL/]METRIC` with `METRIC_low` and `METRIC_high`, the ends of its interval."""
    limits_by_key = by_key(limits)
    return {
        "/".join(part for part in ("eval", key, metric) if part): value
        for key, each in by_key(measured).items()
        for metric, value in flat(each.metrics, limits_by_key[key]).items()
    }


def trained_steps(pretrained: Pretrained) -> int | None:
    """Return the step of a gpt2x checkpoint; a converted checkpoint has none."""
    source = pretrained.source
    return source.checkpoint.loop_state.get("step") if isinstance(source, CheckpointWeights) else None


def check_target(target: Path) -> None:
    """Reject a results file that could not be written at the end.

    Raises:
        UserError: the file is a directory, or its directory cannot be written.
    """
    if target.is_dir():
        raise UserError(f"output={target} is a directory; give a file, such as output={target / 'results.json'}.")
    probe = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output={target} cannot be written ({error.strerror}); give another file.") from error


def write_json(target: Path, content: object, default: Callable[[Any], object] | None = None) -> None:
    """Replace `target` atomically; `default` converts values for which JSON has no form.

    A number that is not finite becomes a string, as in metrics.jsonl.
    """
    text = json.dumps(encoded(content), indent=2, ensure_ascii=False, default=default, allow_nan=False) + "\n"
    with replaced(target) as part:
        part.write_text(text, encoding="utf-8")
