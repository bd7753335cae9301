"""The operations whose every call is interrupted: what they begin with, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpt2x.checkpoint import CheckpointWriter, Content, Sliced, list_checkpoints, open_checkpoint, prune, save, writer
from gpt2x.config import DatasetConfig, ModelConfig, TokenizerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import MetricsLog, jsonl
from gpt2x.train.records import Records
from gpt2x.train.resume import Resumption, copy_history
from gpt2x.train.samples import SAMPLE_HEAD
from tests.support.configs import typed
from tests.support.small_runs import corpus

MODEL = ModelConfig(name="tiny", num_layers=1, num_heads=1, hidden_size=4, max_seq_len=8, vocab_size=16)


def tensors(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = {"wte.weight": rng.normal(size=(16, 4)).astype(np.float32), "half": np.ones((3,), np.float16)}
    return {"weights": weights, "optimizer": {"mean.wte.weight": rng.normal(size=(16, 4)).astype(np.float32)}}


def write_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")


def write(run_dir: Path, step: int, seed: int = 0, **changes: Any) -> None:
    settings = {
        "tensors": tensors(seed + step),
        "model": MODEL,
        "run_config": {"seed": seed},
        "loop_state": {"step": step, "seed": seed},
        "tokenizer_dir_writer": write_tokenizer,
    }
    save(run_dir / "checkpoints" / f"step_{step}", **(settings | changes))


def steps_of(run_dir: Path) -> list[int]:
    """Verify all checkpoints that a run lists, bit for bit -> their steps."""
    steps = []
    for path in list_checkpoints(run_dir):
        saved = open_checkpoint(path)
        saved.verify()
        step = int(path.name.removeprefix("step_"))
        assert saved.loop_state["step"] == step
        expected = tensors(saved.loop_state["seed"] + step)
        for group in saved.groups():
            for name in saved.names(group):
                np.testing.assert_array_equal(saved.tensor(group, name), expected[group][name])
        steps.append(step)
    return steps


def only(folder: Path, *names: str) -> None:
    """Fail if a folder holds anything but `names`."""
    assert sorted(os.listdir(folder)) == sorted(names), sorted(os.listdir(folder))


class Save:
    """A checkpoint, and then the deletion of older ones, as a run does it."""

    name, is_power_safe = "save", True

    def begin(self, folder: Path) -> None:
        write(folder, 1)
        write(folder, 2)

    def act(self, folder: Path) -> None:
        write(folder, 3)
        prune(folder, 2)

    def intact(self, folder: Path) -> None:
        assert steps_of(folder) in ([1, 2], [1, 2, 3], [2, 3]), steps_of(folder)

    def complete(self, folder: Path) -> None:
        assert steps_of(folder) == [2, 3]
        only(folder, "checkpoints")
        only(folder / "checkpoints", "step_2", "step_3")


class Replace(Save):
    """A checkpoint in place of the only one."""

    name = "replace"

    def begin(self, folder: Path) -> None:
        write(folder, 1)

    def act(self, folder: Path) -> None:
        write(folder, 1, seed=7)
        prune(folder, 1)

    def intact(self, folder: Path) -> None:
        assert steps_of(folder) == [1], "the only checkpoint is not listed"

    def complete(self, folder: Path) -> None:
        assert steps_of(folder) == [1]
        assert open_checkpoint(folder / "checkpoints" / "step_1").loop_state["seed"] == 7
        only(folder / "checkpoints", "step_1")


class Link:
    """An exchange of texts between two processes by a pair of pipes; the end of one is an error of the other."""

    def __init__(self, rank: int, read: int, write_to: int):
        self.rank, self.read, self.write_to = rank, read, write_to

    def exchange(self, text: str) -> list[str]:
        content = text.encode()
        os.write(self.write_to, len(content).to_bytes(4, "big") + content)
        other = self.receive(int.from_bytes(self.receive(4), "big")).decode()
        return [text, other] if self.rank == 0 else [other, text]

    def receive(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            part = os.read(self.read, count - len(content))
            if not part:
                raise RuntimeError("the other process has ended")
            content += part
        return content


class SaveInRanks(Save):
    """A checkpoint of two processes, of which the faulty one is the one that meets the call.

    The armed rank is a child of the other one, so that its death is no end of the test.
    """

    def __init__(self, rank: int):
        self.rank, self.name = rank, f"save as rank {rank} of 2"

    def act(self, folder: Path) -> None:
        from tests.faults.shim import disarm

        up, down, said = os.pipe(), os.pipe(), os.pipe()
        parent = os.getpid()
        pid = os.fork()
        rank = self.rank if pid == 0 else 1 - self.rank  # the child is armed, the parent is not
        if pid == 0:
            os.close(up[0])
            os.close(down[1])
            link = Link(rank, down[0], up[1])
        else:
            disarm()
            os.close(up[1])
            os.close(down[0])
            link = Link(rank, up[0], down[1])
        try:
            failed: BaseException | None = None
            self.save(folder, link)
        except BaseException as error:
            failed = error
        if os.getpid() != parent:
            if failed:
                os.write(said[1], (str(failed) if isinstance(failed, UserError) else repr(failed)).encode())
            os._exit(bool(failed))
        os.close(up[0])
        os.close(down[1])
        os.close(said[1])
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        theirs = os.read(said[0], 10_000).decode()
        if failed is not None and not isinstance(failed, UserError):
            raise failed
        if failed is not None or theirs:
            raise UserError(f"{theirs}\n{failed}")

    def save(self, folder: Path, link: Link) -> None:
        """Write step 3 as the rank of `link`, and delete older ones."""
        writer.LEAVE_S = 0.2
        saves = CheckpointWriter(rank=link.rank, world_size=2, exchange=link.exchange)
        content = Content(MODEL, {"seed": 0}, {"step": 3, "seed": 0}, write_tokenizer)
        try:
            path = folder / "checkpoints" / "step_3"
            saves.save(path, self.halves(3, link.rank), content, after=lambda: prune(folder, 2))
            outcome = saves.wait()
            assert outcome is not None
            if outcome.failure:
                raise UserError(outcome.failure)
        finally:
            saves.close()

    @staticmethod
    def halves(step: int, rank: int) -> dict[str, dict[str, Sliced]]:
        """Return the rows that a rank writes of each tensor; rank 0 has the small one."""
        result: dict[str, dict[str, Sliced]] = {}
        for group, entries in tensors(step).items():
            result[group] = {}
            for name, values in entries.items():
                rows = slice(8 * rank, 8 * rank + 8)
                if values.ndim == 2:
                    result[group][name] = Sliced(values.shape, [((8 * rank, 0), np.ascontiguousarray(values[rows]))])
                elif rank == 0:
                    result[group][name] = Sliced(values.shape, [((0,), values)])
        return result


class Prune(Save):
    """Deletion of all but the last two checkpoints and the best."""

    name, is_power_safe = "prune", True

    def begin(self, folder: Path) -> None:
        for step in range(1, 7):
            write(folder, step)

    def act(self, folder: Path) -> None:
        prune(folder, 2, best=2)

    def intact(self, folder: Path) -> None:
        assert {2, 5, 6} <= set(steps_of(folder)) <= set(range(1, 7))

    def complete(self, folder: Path) -> None:
        assert steps_of(folder) == [2, 5, 6]
        only(folder / "checkpoints", "step_2", "step_5", "step_6")


METRICS = {
    step: {"train/loss": 1 / 3 * step, "train/grad_norm": float("nan") if step == 2 else 0.1} for step in range(1, 8)
}


def write_metrics(run_dir: Path) -> None:
    log = MetricsLog(run_dir / "metrics.jsonl")
    for step, values in METRICS.items():
        log.append(step, values, time_s=float(step))
    log.close()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ti')  # torn


def write_samples(run_dir: Path) -> None:
    with (run_dir / "samples.txt").open("w") as file:
        for step in (2, 4, 6):
            file.write(f"{SAMPLE_HEAD.format(step)}the cat sat{step}\n\n")


def metrics_of(path: Path) -> list[int]:
    """Return the steps of a file of metrics, whose values are the right ones."""
    rows = jsonl.read(path)
    for row in rows:
        assert row["train/loss"] == METRICS[row["step"]]["train/loss"]
    return [row["step"] for row in rows]


class Rewind:
    """What a resumed run does to the metrics and samples after its checkpoint."""

    name, is_power_safe = "rewind", True

    def begin(self, folder: Path) -> None:
        write_metrics(folder)
        write_samples(folder)

    def act(self, folder: Path) -> None:
        records = Records(folder)
        records.begin(4)
        records.metrics.append(5, METRICS[5], time_s=5.0)
        records.sync()
        records.close()

    def intact(self, folder: Path) -> None:
        steps = metrics_of(folder / "metrics.jsonl")
        assert steps[:4] == [1, 2, 3, 4], steps
        aside = [json.loads(line)["step"] for path in folder.glob("metrics.*.jsonl")
                 for line in path.read_bytes().splitlines() if line.endswith(b"}")]  # fmt: skip
        assert set(steps) | set(aside) >= {1, 2, 3, 4, 5, 6, 7}, "lines are lost"
        text = (folder / "samples.txt").read_text()
        assert all(f"sat{step}\n" in text for step in (2, 4)), "samples are lost"
        text += "".join(path.read_text() for path in folder.glob("samples.*.txt"))
        assert "sat6\n" in text, "samples are lost"

    def complete(self, folder: Path) -> None:
        assert metrics_of(folder / "metrics.jsonl") == [1, 2, 3, 4, 5]
        text = (folder / "samples.txt").read_text()
        assert text == "".join(f"{SAMPLE_HEAD.format(step)}the cat sat{step}\n\n" for step in (2, 4))
        rest = set(os.listdir(folder)) - {"metrics.1.jsonl", "samples.txt", "samples.1.txt"}
        assert rest in ({"metrics.jsonl"}, {"metrics.jsonl", "metrics.2.jsonl"}), rest  # line 5 may have been written


class CopyHistory:
    """What a run that branches off takes over from the run of its checkpoint."""

    name, is_power_safe = "copy history", True

    def begin(self, folder: Path) -> None:
        (folder / "old").mkdir()
        write_metrics(folder / "old")
        write(folder / "old", 4)
        (folder / "new").mkdir()

    def act(self, folder: Path) -> None:
        saved = open_checkpoint(folder / "old" / "checkpoints" / "step_4")
        copy_history(Resumption(saved, folder / "new", []))

    def intact(self, folder: Path) -> None:
        assert metrics_of(folder / "old" / "metrics.jsonl") == [1, 2, 3, 4, 5, 6, 7]
        if (folder / "new" / "metrics.jsonl").exists():
            assert metrics_of(folder / "new" / "metrics.jsonl") in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7])

    def complete(self, folder: Path) -> None:
        assert metrics_of(folder / "new" / "metrics.jsonl") == [1, 2, 3, 4]
        only(folder / "new", "metrics.jsonl")


class OpenRunDir:
    """The directory of a run: its configuration, its command, its log."""

    name, is_power_safe = "open run directory", False

    def __init__(self) -> None:
        self.config = typed("train", "dataset=text")  # once, since Hydra takes a second

    def begin(self, folder: Path) -> None:
        (folder / "run").mkdir()

    def act(self, folder: Path) -> None:
        from gpt2x.commands import entry
        from gpt2x.commands.train import open_run_dir
        from gpt2x.runtime.run_log import run_log

        decision = SimpleNamespace(
            config=self.config, resolved=self.config, run_dir=folder / "run", source=SimpleNamespace(resumption=None)
        )
        assert callable(open_run_dir)
        entry.open_run_dir("train", decision)
        run_log.write("a line")
        run_log.close()

    def intact(self, folder: Path) -> None:
        from gpt2x.config.files import load_config

        if (folder / "run" / "config.yaml").exists():
            load_config("train", folder / "run" / "config.yaml")

    def complete(self, folder: Path) -> None:
        self.intact(folder)
        assert {"config.yaml", "command.txt", "run.log"} <= set(os.listdir(folder / "run"))
        rest = set(os.listdir(folder / "run")) - {"config.yaml", "command.txt", "run.log"}
        assert not rest, rest


class Prepare:
    """A data set: a tokenizer is trained, rows are cut and written as MindRecord."""

    name, is_power_safe = "prepare", True

    def begin(self, folder: Path) -> None:
        corpus(folder)

    def prepared(self, folder: Path) -> Any:
        from gpt2x.data.prepare import prepare
        from gpt2x.data.rows.registry import ROW_FORMS

        dataset = DatasetConfig(name="text", corpus="text", path=str(folder / "corpus.txt"))
        form = ROW_FORMS.load("blocks")(32)
        return prepare(dataset, TokenizerConfig(name="bpe", vocab_size=300), form, cache=folder / "cache")

    def act(self, folder: Path) -> None:
        self.prepared(folder)

    def intact(self, folder: Path) -> None:
        assert (folder / "corpus.txt").stat().st_size > 1000

    def complete(self, folder: Path) -> None:
        from gpt2x.data.sampling import batches

        data = self.prepared(folder)
        assert data.summary.tokens_per_s is None, "the rows are not in the cache"
        rows = list(batches(data.train, batch_size=8, seed=0, epoch=0, shuffle=False, drop_last=False))
        assert sum(len(row["input_ids"]) for row in rows) == data.train.num_blocks > 20
        hidden = [path for path in (folder / "cache").rglob("*") if ".tmp-" in path.name or ".old-" in path.name]
        assert not hidden, [str(path.relative_to(folder)) for path in hidden]


class Sync:
    """`gpt2x sync` of a run that was killed, into a store that exists."""

    name, is_power_safe = "sync", False  # sqlite writes in place, behind its own journal

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as name:  # MLflow imports most of itself when it is used
            self.begin(Path(name))
            self.act(Path(name))

    def begin(self, folder: Path) -> None:
        from gpt2x.tracking.mlflow_store import import_mlflow
        from gpt2x.tracking.sqlite_store import store_lock

        run_dir = folder / "run"
        run_dir.mkdir()
        write_metrics(run_dir)
        (run_dir / "config.yaml").write_text("seed: 1\n")
        import_mlflow()
        uri = f"sqlite:///{folder}/mlflow.db"
        with store_lock(uri):
            pass
        from gpt2x.tracking.mlflow_record import RunRecord

        RunRecord(
            uri, str(folder / "mlartifacts"), "pretrain", "tiny", params={"seed": "1"}, artifacts=["config.yaml"],
            tags={"run_dir": str(run_dir)}, start_time_s=1.0, end_time_s=9.0, status="FINISHED",
        ).save(run_dir)  # fmt: skip

    def act(self, folder: Path) -> None:
        from gpt2x.tracking.mlflow_sync import sync

        sync(folder / "run")

    def intact(self, folder: Path) -> None:
        assert metrics_of(folder / "run" / "metrics.jsonl") == list(METRICS)
        json.loads((folder / "run" / "mlflow_run.json").read_text())

    def complete(self, folder: Path) -> None:
        from mlflow.tracking.client import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert len(runs) == 1, f"{len(runs)} runs"
        assert runs[0].info.status == "FINISHED"
        history = client.get_metric_history(runs[0].info.run_id, "train/loss")
        assert sorted(m.step for m in history) == list(METRICS), [m.step for m in history]
        assert [file.path for file in client.list_artifacts(runs[0].info.run_id)] == ["config.yaml"]
        assert not list(folder.rglob("*.part")), list(folder.rglob("*.part"))


OPERATIONS: dict[str, Callable[[], Any]] = {
    "save": Save,
    "replace": Replace,
    "rank 0": lambda: SaveInRanks(0),
    "rank 1": lambda: SaveInRanks(1),
    "prune": Prune,
    "rewind": Rewind,
    "history": CopyHistory,
    "open": OpenRunDir,
    "prepare": Prepare,
    "sync": Sync,
}
