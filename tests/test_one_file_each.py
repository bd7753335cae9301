"""An extension of each kind is one file, and one YAML file to choose it: added on a copy, one run uses all of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SOURCE = '''"""Numbers in words, counted up: documents that need no file."""

import hashlib
from dataclasses import dataclass

from gpt2x.data.reading.documents import document
from gpt2x.data.sources.base import Source

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class Settings:
    documents: int = 40


class Numbers(Source):
    Settings = Settings

    def has(self, split):
        return True

    def content_hash(self, split):
        return hashlib.sha256(" ".join(WORDS).encode()).hexdigest()

    def pieces(self, split):
        first = 0 if split == "train" else self.settings.documents
        for number in range(first, first + self.settings.documents):
            yield from document(" ".join(WORDS[(number + i) % 10] for i in range(50)))


SOURCE = Numbers
'''
TOKENIZER = '''"""Bytes: no merges."""

from gpt2x.data.tokenizers.byte_level_bpe import train


def train_bytes(texts, config):
    return train(texts, 257, config.eos_token)


TRAIN = train_bytes
'''
TASK = '''"""Only the last half of each block is learnt."""

from dataclasses import dataclass

from gpt2x.tasks.base import NoSettings, Task
from gpt2x.tasks.language_modeling import TASK as LANGUAGE_MODELING


class HalfValidation:
    def __init__(self, whole):
        self.whole = whole

    def run(self, before_round):
        values = self.whole.run(before_round)
        return {"val/half": values["val/loss"]}


class LastHalf(Task):
    unit = "token"
    rows = "blocks"
    metrics = {"val/half": "lower"}
    samples_text = False
    inference = LANGUAGE_MODELING.inference
    settings = NoSettings

    def check(self, config):
        LANGUAGE_MODELING.check(config)

    def row_form(self, config):
        return LANGUAGE_MODELING.row_form(config)

    def fit_model(self, model, data, loaded):
        return LANGUAGE_MODELING.fit_model(model, data, loaded)

    def loss(self, config, net):
        return LANGUAGE_MODELING.loss(config, net)

    def inputs(self, config, batch):
        inputs = LANGUAGE_MODELING.inputs(config, batch)
        inputs.counted[:, : inputs.counted.shape[1] // 2] = 0
        return inputs

    def global_units(self, config):
        return LANGUAGE_MODELING.global_units(config) // 2

    def validation(self, run, net, mesh):
        return HalfValidation(LANGUAGE_MODELING.validation(run, net, mesh))

    def describe(self, split):
        return LANGUAGE_MODELING.describe(split)

    def baseline(self, run):
        return None

    def summary(self, metric, best):
        return f"best half {best:.3f}"


TASK = LastHalf()
'''
OPTIMIZER = '''"""The sign of the gradient: no states."""

import numpy as np
from mindspore import Tensor, ops

from gpt2x.optim.base import Optimizer

STATES = ()
update = ops.MultitypeFuncGraph("sign_update")


@update.register("Tensor", "Tensor", "Tensor", "Tensor")
def _update(rates, parameter, gradient, group):
    ops.assign(parameter, parameter - ops.gather(rates, group, 0) * ops.sign(gradient))
    return True


class Sign(Optimizer):
    state_names = STATES

    def scalars(self, learning_rate, update):
        return (Tensor((learning_rate * self.group_rate_factors).astype(np.float32)),)

    def construct(self, gradients, factor, finite, scalars):
        if finite:
            self.for_each(ops.partial(update, scalars[0]), self.parameters, gradients, self.groups)
        return True


OPTIMIZER = Sign
'''
SCHEDULE = '''"""One over the root of the steps (Vaswani et al., arXiv:1706.03762, section 5.3)."""


def decay(progress, config):
    return (progress.warmup / progress.update) ** 0.5
'''
TRACKER = '''"""A line per step, as text."""

from gpt2x.extensions import settings
from dataclasses import dataclass


@dataclass
class Settings:
    file: str = "lines.txt"


class Lines:
    def __init__(self, path):
        self.path = path

    def start(self, run):
        self.path.write_text(f"start {run.run_name}\\n")

    def log_metrics(self, step, time_s, metrics):
        with self.path.open("a") as file:
            file.write(f"{step} {metrics['train/lr']}\\n")

    def log_artifact(self, path):
        pass

    def set_tags(self, tags):
        pass

    def finish(self, status):
        with self.path.open("a") as file:
            file.write(f"finish {status}\\n")


def create(config, outputs):
    return Lines(outputs / settings(Settings, config.settings, "tracker.settings").file)
'''
FORMAT = '''"""Names and shapes of the weights, as JSON."""

import json

from gpt2x.formats.base import describe, open_model


def export(source, output, change):
    model = open_model(source, change)
    shapes = {name: list(shape) for name, shape in model.weights().shapes.items()}
    output.mkdir(parents=True)
    (output / "shapes.json").write_text(json.dumps(shapes))
    return describe(model)
'''
# Kind -> the files that are added for it: at most one module, and at most one option.
ADDED = {
    "size": {
        "conf/model/gpt2_micro.yaml": "name: gpt2_micro\nnum_layers: 1\nnum_heads: 2\nhidden_size: 16\n"
        "max_seq_len: 32\nvocab_size: null\n",
    },
    "layout": {"conf/parallel/halves.yaml": "name: halves\nmicro_batches: 2\n"},
    "dataset": {"conf/dataset/counted.yaml": "name: counted\ncorpus: numbers\nsettings: {documents: 30}\n"},
    "corpus reader": {"gpt2x/data/sources/numbers.py": SOURCE},
    "tokenizer": {
        "gpt2x/data/tokenizers/plain_bytes.py": TOKENIZER,
        "conf/tokenizer/plain_bytes.yaml": "name: plain_bytes\nkind: plain_bytes\npath: null\nvocab_size: 257\n",
    },
    "task": {
        "gpt2x/tasks/last_half.py": TASK,
        "conf/task/last_half.yaml": "name: last_half\nrequires_load: false\nobjective: last_half\n",
    },
    "optimizer": {
        "gpt2x/optim/optimizers/sign.py": OPTIMIZER,
        "conf/optimizer/sign.yaml": "name: sign\nkind: sign\nlearning_rate: 0.01\n",
    },
    "schedule": {
        "gpt2x/optim/schedules/inverse_sqrt.py": SCHEDULE,
        "conf/schedule/inverse_sqrt.yaml": "name: inverse_sqrt\n",
    },
    "tracker": {
        "gpt2x/tracking/trackers/lines.py": TRACKER,
        "conf/tracker/lines.yaml": "name: lines\nsettings: {file: tracked.txt}\n",
    },
    "export format": {"gpt2x/formats/shapes.py": FORMAT},
}
OPTIONS = ["model=gpt2_micro", "parallel=halves", "dataset=counted", "tokenizer=plain_bytes", "task=last_half",
           "optimizer=sign", "schedule=inverse_sqrt", "schedule.final_ratio=0", "tracker=lines", "trainer.max_steps=4",
           "trainer.seq_len=32", "trainer.global_batch_size=4", "trainer.best_metric=val/half",
           "hardware.peak_tflops=0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the program with one extension of each kind, and a run that uses all of them."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("gpt2x", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copyfile(ROOT / "train.py", folder / "train.py")
    for files in ADDED.values():
        for name, content in files.items():
            assert not (folder / name).exists()
            (folder / name).write_text(content, encoding="utf-8")
    call(folder, "train.py", *OPTIONS, f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache")
    return folder


def call(folder: Path, *arguments: str) -> str:
    """Run Python in the copy; what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(folder)})  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def run_dir(copy):
    (metrics,) = copy.glob("outputs/**/metrics.jsonl")
    return metrics.parent


@pytest.fixture(scope="module")
def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ADDED)
def test_one_module_and_one_option(kind):
    suffixes = sorted(Path(name).suffix for name in ADDED[kind])
    assert suffixes in ([".py"], [".yaml"], [".py", ".yaml"])


pytestmark = pytest.mark.launch


def test_the_size_and_the_layout_are_those_of_the_run(run_dir, rows):
    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    assert "name: gpt2_micro" in config
    assert "name: halves" in config
    assert "vocab_size: 257" in config
    assert len(rows) == 4


def test_the_source_with_its_settings_and_the_tokenizer_made_the_rows(copy):
    facts = [json.loads(path.read_text()) for path in copy.glob("cache/datasets/counted-train-*/meta.json")]
    assert [fact["facts"]["rows"]["num_documents"] for fact in facts] == [30]
    assert list(copy.glob("cache/tokenizers/plain_bytes-*"))


def test_the_task_validates_and_counts_in_its_own_way(rows):
    assert rows[-1]["val/half"] > 0
    assert "val/loss" not in rows[-1]
    assert rows[-1]["train/tokens"] == 4 * 4 * 16  # steps, sequences, half of 32 tokens


def test_the_optimizer_has_no_states_and_learns(run_dir, rows):
    assert not list(run_dir.glob("checkpoints/*/optimizer*.safetensors")) or "mean" not in str(
        json.loads((run_dir / "checkpoints/step_4/manifest.json").read_text())["groups"].get("optimizer", {})
    )
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_the_schedule_gives_the_rates_and_the_tracker_wrote_them(copy, rows):
    expected = [0.01 / update**0.5 for update in range(1, 5)]
    assert [row["train/lr"] for row in rows] == pytest.approx(expected)
    lines = (copy / "outputs" / "tracked.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("start gpt2_micro/counted parallel=halves ")
    assert [float(line.split()[1]) for line in lines[1:-1]] == pytest.approx(expected)
    assert lines[-1] == "finish FINISHED"


def test_the_format_is_offered_and_writes(copy, run_dir):
    call(copy, "-m", "gpt2x", "convert", "--to", "shapes", "--output", str(copy / "out"), str(run_dir))
    shapes = json.loads((copy / "out" / "shapes.json").read_text())
    assert shapes["wte.weight"] == [257, 16]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("schedule.name=inverse_sqr", "inverse_sqrt"),
        ("optimizer.kind=sing", "sign"),
        ("dataset.corpus=number", "numbers"),
        ("task.objective=last_hal", "last_half"),
        ("tokenizer.kind=plain_byte", "plain_bytes"),
        ("tracker.name=line", "lines"),
    ],
)
def test_a_name_close_to_the_new_one_is_answered_with_it(copy, typed, name):
    done = subprocess.run([sys.executable, "train.py", typed, f"paths.outputs={copy}/none"], cwd=copy,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(copy)})  # fmt: skip
    assert done.returncode == 2
    assert f"did you mean {name}?" in done.stderr
