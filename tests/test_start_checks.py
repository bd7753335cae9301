"""What is answered before data are prepared or processes started: too little memory, no device."""

import re
from dataclasses import replace

import pytest

from gpt2x.commands.inference_plan import show_inference_plan
from gpt2x.commands.start_checks import check_start, missing_device, require_memory
from gpt2x.errors import UserError
from gpt2x.planner.roofline import plan_run
from tests.support.configs import typed
from tests.support.processes import start

HUGE = ["model=gpt2_13b", "parallel=dp8"]


def shortage(*overrides):
    with pytest.raises(UserError) as caught:
        require_memory(typed("train", *overrides))
    return str(caught.value)


def test_a_model_that_exceeds_the_machine_is_answered_with_what_fits():
    message = shortage(*HUGE, "hardware.memory_gb=16")
    assert re.match(r"model=gpt2_13b parallel=dp8 does not fit this machine: it needs \d+\.\d GB, and ", message)
    for part in ("memory per device", "optimizer, GB", "does not fit: ", "plan=true", "launch.check_memory=false"):
        assert part in message
    (smaller,) = re.findall(r"  (model=\w+) fits\.", message)
    require_memory(typed("train", smaller, "parallel=dp8", "hardware.memory_gb=16"))


def test_a_device_that_is_too_small_is_answered_with_a_layout():
    common = ["model=gpt2_13b", "hardware=atlas_800t_a2", "parallel=dp8", "model.attention_dropout=0"]
    message = shortage(*common, "parallel.zero_stage=1")
    assert "does not fit hardware=atlas_800t_a2: it needs " in message
    (line,) = [line for line in message.splitlines() if line.startswith("  parallel.zero_stage=3:")]
    assert ", fits" in line
    require_memory(typed("train", *common, "parallel.zero_stage=3"))


def test_a_small_run_starts():
    check_start(typed("train"))


def test_the_check_can_be_left_out():
    check_start(typed("train", *HUGE, "hardware.memory_gb=16", "launch.check_memory=false"))


def test_a_missing_device_is_answered_with_the_plan():
    config = typed("train", *HUGE, "hardware=atlas_800t_a2")
    message = missing_device(config)
    assert message.startswith("hardware=atlas_800t_a2: this machine has no Ascend device")
    assert f"the plan fits: {plan_run(config).fullest.memory.total / 1e9:.1f} of 59.0 GB" in message
    assert "zero_stage 3 over 8 replicas" in message
    assert "plan=true" in message
    assert re.search(r"hardware=cpu needs \d+\.\d GB, and \d+\.\d GB are free", message)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_an_evaluation_or_prediction_that_cannot_fit_is_answered_before_weights_are_read(name, shared_data, capsys):
    folder = shared_data / "checkpoints" / "shakespeare-a"
    config = typed(name, f"load={folder}", *(["prompts=[To be]"] if name == "predict" else []))
    check_start(config)
    with pytest.raises(UserError, match=f"load={folder} does not fit this machine: ") as caught:
        check_start(replace(config, hardware=replace(config.hardware, memory_gb=0.7)))
    for part in ("weights, GB", "does not fit: ", "plan=true", "launch.check_memory=false"):
        assert part in str(caught.value)
    device = typed("train", "hardware=atlas_800t_a2").hardware
    assert missing_device(replace(config, hardware=device)).endswith("There, the plan fits; use hardware=cpu here.")
    show_inference_plan(config)
    assert "fits: " in capsys.readouterr().out


def test_a_wrong_load_is_left_to_the_command():
    config = typed("evaluate", "load=DIR")
    check_start(config)
    device = typed("train", "hardware=atlas_800t_a2").hardware
    assert missing_device(replace(config, hardware=device)).endswith("use hardware=cpu.")


def test_only_training_searches_for_layouts():
    with pytest.raises(UserError, match=r"predict\.py trains nothing; use plan=true"):
        typed("predict", "load=DIR", "prompts=[a]", "plan=search")


@pytest.mark.launch
def test_nothing_is_written_or_started(tmp_path):
    done = start("train.py", *HUGE, "hardware.memory_gb=16", f"paths.outputs={tmp_path}/outputs",
                 f"paths.cache={tmp_path}/cache", check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: model=gpt2_13b parallel=dp8 does not fit this machine")
    assert not list(tmp_path.rglob("*.*"))
