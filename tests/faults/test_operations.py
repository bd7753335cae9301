"""Every call that changes the file system is killed, torn or fails; `python -m tests.faults.enumeration` asks more."""

import json
import subprocess
import sys

import pytest

from tests.faults.shim import preloaded

# (operations, each with the calls that it makes at least; what happens to each call in the short form)
SHORT = [
    ({"save": 30}, ["--errors", "none"]),
    ({"rank 0": 30, "rank 1": 10, "prune": 20, "replace": 30}, ["--errors", "none", "--ways", "kill"]),
    ({"rewind": 20, "history": 5, "open": 15}, ["--errors", "one"]),
]


@pytest.mark.launch
@pytest.mark.parametrize(("operations", "options"), SHORT, ids=lambda value: next(iter(value)))
def test_an_interrupted_operation_loses_nothing_and_can_be_repeated(shim, tmp_path, operations, options):
    file = tmp_path / "outcomes.json"
    command = [sys.executable, "-m", "tests.faults.enumeration", *operations, *options, "--output", str(file)]
    done = subprocess.run(command, env=preloaded(shim), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(file.read_text())
    assert len(outcomes) == len(operations)
    for outcome, least in zip(outcomes, operations.values(), strict=True):
        assert outcome["findings"] == [], outcome["operation"]
        assert outcome["num_calls"] >= least, outcome["operation"]
        assert outcome["runs"]["kill"] == outcome["num_calls"]
