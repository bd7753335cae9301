"""The position in a checkpoint: every field is checked before a run continues from it."""

import inspect
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest

from gpt2x.checkpoint import open_checkpoint
from gpt2x.errors import UserError
from gpt2x.train import hooks, stored
from gpt2x.train.records import KEY as RECORDS
from gpt2x.train.records import METRICS, SAMPLES
from gpt2x.train.state import LoopState
from gpt2x.train.stored import POSITION, check_training
from tests.faults import seeds
from tests.support.configs import typed

CONFIG = asdict(typed("train"))
HASH = "0" * 64
NAN, INF = float("nan"), float("inf")
STATE = asdict(
    LoopState(
        step=9, num_updates=8, recent=[(2.5, 1.0)], epoch=1, batch=3, units_seen=900, best_step=8, best_value=2.5,
        bests={"val/loss": (2.5, 8)}, evaluations_without_gain=1, data_sha256=HASH, base_path="base",
        base_fingerprint=HASH, open_hook="Evaluate", open_metrics={"train/loss": 2.5, "train/grad_norm": NAN},
    )
) | {RECORDS: {METRICS: {"bytes": 70, "sha256": HASH}, SAMPLES: {"bytes": 0, "sha256": HASH}}}  # fmt: skip
SCALE = STATE["loss_scale"]
# what may be in any field of a manifest
VALUES = (
    None, True, 0, 1, 9, 10, -1, 1 << 62, 10**400, 0.0, 1.5, -1.5, NAN, INF, "", "x", "NaN", [], ["x"], [1], [[1]],
    [[1.5, 2]], [["x", 2]], {}, {"x": 1}, {"x": "x"}, {"x": [1, 2]}, {"x": {"bytes": 1, "sha256": "x"}},
)  # fmt: skip
STEPS = [0, 1, 9]
COUNTS = [0, 1, 9, 10]
ACCEPTED = {
    "step": [9, 10],
    "num_updates": STEPS,
    "skipped_in_a_row": STEPS,
    "exploded_in_a_row": STEPS,
    "recent": [[], [[1.5, 2]]],
    "epoch": COUNTS,
    "batch": COUNTS,
    "units_seen": COUNTS,
    "loss_scale": [],
    "best_step": [1, 9],
    "best_value": [0, 1, 9, 10, -1, 1 << 62, 0.0, 1.5, -1.5],
    "bests": [{}, {"x": [1, 2]}],
    "evaluations_without_gain": STEPS,
    "data_sha256": ["", "x", "NaN"],
    "base_path": [None, "", "x", "NaN"],
    "base_fingerprint": ["", "x", "NaN"],
    "open_hook": [],
    "open_metrics": [{"x": 1}],
    RECORDS: [{}, {"x": {"bytes": 1, "sha256": "x"}}],
}


def check(**changes):
    check_training(SimpleNamespace(path="runs/a/checkpoints/step_9", run_config=CONFIG, loop_state=STATE | changes))


def rejection(**changes):
    """Return the message, or "" if the position is possible."""
    try:
        check(**changes)
    except UserError as error:
        return str(error)
    return ""


def test_every_field_has_a_check():
    assert set(POSITION) == set(ACCEPTED) == {entry.name for entry in fields(LoopState)} | {RECORDS}
    assert next(iter(POSITION)) == "step"  # others are compared with it


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_value_of_a_different_type_or_range_is_rejected_by_name(name):
    """A value that makes another field impossible may be rejected under that one's name."""
    messages = {index: rejection(**{name: value}) for index, value in enumerate(VALUES)}
    accepted = [VALUES[index] for index, text in messages.items() if not text]
    assert list(map(repr, accepted)) == list(map(repr, ACCEPTED[name]))
    for index, text in messages.items():
        if text:
            assert text.startswith("checkpoint runs/a/checkpoints/step_9 has an impossible position: ")
            assert text.endswith("start a new one with load=, or use a different checkpoint.")
            is_named = f": {name}={str(VALUES[index])[:60]}. " in text
            assert is_named or (name, VALUES[index]) in [
                ("step", 0), ("step", 1), ("best_step", None), ("open_hook", "")
            ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("loss_scale", SCALE | {key: value}) for key in SCALE for value in (NAN, INF, -1, "1", None, True, [1])),
        *(("loss_scale", SCALE | {key: 0}) for key in ("scale", "factor", "window")),
        ("loss_scale", SCALE | {"window": 1.5}),
        ("loss_scale", SCALE | {"more": 1}),
        ("bests", {"val/loss": [NAN, 1]}),
        ("bests", {"val/loss": [2.5, 0]}),
        ("bests", {"val/loss": [2.5, 10]}),
        ("recent", [[2.5, INF]]),
        ("recent", [[2.5, 1.0, 1.0]]),
        ("open_hook", "SaveCheckpoint"),
        ("open_metrics", {"train/loss": True}),
        ("open_metrics", {"train/loss": 10**400}),
        (RECORDS, {METRICS: {"bytes": -1, "sha256": HASH}}),
        (RECORDS, {METRICS: {"bytes": 1}}),
    ],
)
def test_an_impossible_part_of_a_field_is_rejected(name, value):
    assert f"position: {name}=" in rejection(**{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"best_step": None, "best_value": None, "bests": {}},
        {"open_hook": "", "open_metrics": {}},
        {"open_hook": "DrawSamples"},
        {"step": 0, "num_updates": 0, "best_step": None, "best_value": None, "bests": {}, "open_hook": "",
         "open_metrics": {}, "evaluations_without_gain": 0},
        {"loss_scale": {"scale": 65536.0, "factor": 2.0, "window": 1000, "num_finite": 12}},
        {"of_a_later_version": object()},
    ],
)  # fmt: skip
def test_possible_positions(changes):
    check(**changes)


def test_a_hook_is_open_after_an_update_only():
    start = {"step": 0, "num_updates": 0, "best_step": None, "best_value": None, "bests": {}}
    assert "open_hook=Evaluate" in rejection(**start, evaluations_without_gain=0)


@pytest.mark.parametrize("name", POSITION)
def test_older_versions_lack_fields(name):
    related = {"best_step": "best_value", "open_hook": "open_metrics"}
    state = {key: value for key, value in STATE.items() if key not in (name, related.get(name))}
    saved = SimpleNamespace(path="step_9", run_config=CONFIG, loop_state=state)
    if name in stored.REQUIRED:
        with pytest.raises(UserError, match=rf"impossible position: {name}=None"):
            check_training(saved)
    else:
        check_training(saved)


def test_a_position_passes_through_a_file(tmp_path):
    saved = open_checkpoint(seeds.checkpoint(tmp_path / "step_1"))
    check_training(saved)
    assert repr(LoopState.from_dict(saved.loop_state).open_metrics) == "{'train/loss': nan}"


def test_the_hooks_that_a_signal_may_break_off():
    raising = {
        name
        for name, one in vars(hooks).items()
        if inspect.isclass(one) and one.__module__ == hooks.__name__ and "raise CutShortError" in inspect.getsource(one)
    }
    assert raising == set(stored.BREAKABLE)
