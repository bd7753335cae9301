"""An optimizer and a schedule of one file each: they train, are saved, resume bit for bit, and are planned."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from gpt2x.errors import UserError
from gpt2x.optim.registry import OPTIMIZERS, state_names
from gpt2x.optim.schedule import SCHEDULES
from tests.support.small_runs import SMALL, corpus

ROOT = Path(__file__).resolve().parents[2]
SGD = '''"""SGD with momentum, as torch.optim.SGD."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, ops

from gpt2x.extensions import settings
from gpt2x.optim.base import Optimizer

STATES = ("momentum",)
update = ops.MultitypeFuncGraph("sgd_update")


@dataclass
class Settings:
    mu: float = 0.9


@update.register("Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update(mu, factor, rates, parameter, momentum, gradient, group):
    step = mu * momentum + gradient * factor
    ops.assign(momentum, step)
    ops.assign(parameter, parameter - ops.gather(rates, group, 0) * step)
    return True


class SGD(Optimizer):
    state_names = STATES

    def scalars(self, learning_rate, update):
        return (Tensor((learning_rate * self.group_rate_factors).astype(np.float32)),)

    def construct(self, gradients, factor, finite, scalars):
        if finite:
            each = ops.partial(update, self.mu, factor, scalars[0])
            self.for_each(each, self.parameters, self.momentum, gradients, self.groups)
        return True

    def __init__(self, config, *rest):
        super().__init__(config, *rest)
        self.mu = settings(Settings, config.settings, "optimizer.settings").mu


OPTIMIZER = SGD
'''
SQUARE_ROOT = '''"""The square root of what remains."""


def decay(progress, config):
    return (1.0 - progress.fraction) ** 0.5
'''
RUNS = """
import json, sys
from pathlib import Path
from gpt2x.commands.entry import run_in_process
from gpt2x.commands.hydra_entry import compose_config
from gpt2x.planner.roofline import plan_run

folder, options = Path(sys.argv[1]), sys.argv[2:]
plans = [plan_run(compose_config("train", [*options, "plan=true", f"optimizer={name}"])) for name in ("sgd", "adamw")]
assert "mindspore" not in sys.modules
print("optimizer bytes", json.dumps([plan.fullest.memory.optimizer for plan in plans]))
options += ["optimizer=sgd", "schedule.name=square_root"]
for name, more in {
    "whole": [], "half": ["trainer.stop_after_steps=2"], "rest": [f"resume={folder}/half/checkpoints/step_2"],
}.items():
    (folder / name).mkdir()
    run_in_process("train", compose_config("train", [*options, *more]), folder / name)
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of gpt2x with one file and one option more, and a file for a schedule."""
    for name in ("gpt2x", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "gpt2x/optim/optimizers/sgd.py").write_text(SGD)
    (tmp_path / "conf/optimizer/sgd.yaml").write_text("name: sgd\nkind: sgd\nlearning_rate: 0.1\n")
    (tmp_path / "gpt2x/optim/schedules/square_root.py").write_text(SQUARE_ROOT)
    return tmp_path


def tensors(checkpoint: Path, group: str) -> dict:
    """Return the tensors of a checkpoint's group."""
    files = sorted(checkpoint.glob(f"{group}*.safetensors"))
    return {name: values for file in files for name, values in load_file(file).items()}


@pytest.mark.launch
def test_an_optimizer_of_one_file_trains_resumes_and_is_planned(copy):
    (copy / "corpus").mkdir()
    options = [*SMALL, "dataset=text", f"dataset.path={corpus(copy / 'corpus')}", "trainer.max_steps=4",
               "trainer.checkpoint_every_steps=2", "trainer.keep_last=9", f"paths.cache={copy / 'cache'}",
               f"paths.outputs={copy / 'outputs'}", "optimizer.layer_decay=0.8",
               "model.num_layers=1"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(copy), *options], cwd=copy, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(copy)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = json.loads(done.stdout.partition("optimizer bytes ")[2].partition("\n")[0])
    assert 2 * one == two > 0, "one state per value instead of two"
    whole, rest = (copy / name / "checkpoints/step_4" for name in ("whole", "rest"))
    for group in ("weights", "optimizer"):
        expected, resumed = (tensors(path, group) for path in (whole, rest))
        assert expected.keys() == resumed.keys() != set()
        assert all((value == resumed[key]).all() for key, value in expected.items()), group
    assert {key.partition(".")[0] for key in expected} == {"momentum"}
    rows = [json.loads(line) for line in (copy / "whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_what_an_optimizer_keeps_is_read_without_importing_it():
    assert state_names("adamw") == ("mean", "square")
    with pytest.raises(UserError, match=r"optimizer.kind=adam does not exist; did you mean adamw\?"):
        state_names("adam")


def test_settings_that_nobody_reads_are_rejected():
    with pytest.raises(UserError, match=r"optimizer\.settings\.mu does not exist; it has no settings"):
        OPTIMIZERS.settings("adamw", {"mu": 0.9})
    with pytest.raises(UserError, match=r"schedule\.settings\.gamma does not exist; it has no settings"):
        SCHEDULES.settings("cosine", {"gamma": 0.5})
    OPTIMIZERS.settings("adamw", {})
