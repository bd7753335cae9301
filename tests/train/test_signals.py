"""A signal ends a training without loss; what a process does with signals: tests/runtime/test_interrupt.py."""

import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from gpt2x.checkpoint import open_checkpoint
from gpt2x.evaluate.validation import Validation
from gpt2x.runtime import interrupt
from gpt2x.train import trainer as trainers
from gpt2x.train.hooks import CutShortError, DrawSamples, ShowStep
from gpt2x.train.trainer import Trainer
from tests.support.small_runs import curve, run_dirs

KEYS = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/tokens", "val/loss", "best/val/loss")


@pytest.fixture
def no_signal(monkeypatch):
    """Return what forgets a signal."""

    def forget():
        monkeypatch.setattr(interrupt, "_requests", interrupt._Requests())

    forget()
    return forget


def test_a_run_that_signals_end_again_and_again_is_the_undisturbed_one(zoo, tmp_path, monkeypatch, no_signal):
    """In a validation, while sampling, and after an update: each float and each sample, and no step is made twice."""
    plain = zoo.plain
    rounds, show, go_on = Validation.run, ShowStep.run, DrawSamples.go_on
    stops = iter(["validation", "sampling", 13, None])
    updates = []

    def run(self, before_round):
        def before():
            count.append(1)
            if stop == "validation" and len(count) == 2:
                interrupt.request(signal.SIGTERM)
            before_round()

        count: list[int] = []
        return rounds(self, before)

    def sample(self, index, text):
        if stop == "sampling":
            interrupt.request(signal.SIGHUP)
        go_on(self, index, text)

    def shown(self, trainer, metrics, progress):
        updates.append(trainer.state.step)
        if trainer.state.step == stop:
            interrupt.request(signal.SIGUSR1)
        show(self, trainer, metrics, progress)

    monkeypatch.setattr(Validation, "run", run)
    monkeypatch.setattr(DrawSamples, "go_on", sample)
    monkeypatch.setattr(ShowStep, "run", shown)
    ends = []
    resume: list[str] = []
    for stop in stops:
        no_signal()
        if stop is None:
            plain.again(tmp_path, *resume)
            break
        with pytest.raises(interrupt.Interrupted) as interrupted:
            plain.again(tmp_path, *resume)
        resume = ["resume=auto"]
        (run_dir,) = run_dirs(tmp_path)
        newest = max(run_dir.glob("checkpoints/step_*"), key=lambda path: int(path.name[5:]))
        state = open_checkpoint(newest).loop_state
        ends.append((interrupted.value.status, state["step"], state["open_hook"], max(curve(run_dir))))
    assert ends == [(143, 5, "Evaluate", 4), (129, 5, "Evaluate", 4), (138, 13, "", 13)]
    assert updates == list(range(1, 17))
    assert curve(run_dir, *KEYS) == curve(plain.run_dir, *KEYS)
    assert (run_dir / "samples.txt").read_bytes() == (plain.run_dir / "samples.txt").read_bytes()


@pytest.mark.parametrize("replica", [0, 1])
def test_a_sampling_that_is_broken_off_on_one_rank_is_on_all(replica):
    """Else the others would go on to a save, in which the ranks meet."""

    def draw(trainer):
        assert replica == 0, "only the first replica samples"
        raise CutShortError

    def agree(is_complete):
        votes.append(is_complete)
        return False  # as the first replica says

    votes: list[bool] = []
    hook = object.__new__(DrawSamples)
    hook.draw = draw
    mesh = SimpleNamespace(coordinates=SimpleNamespace(data=replica), agree=agree)
    with pytest.raises(CutShortError):
        hook.run(SimpleNamespace(mesh=mesh), {}, SimpleNamespace(busy=lambda doing: nullcontext()))
    assert votes == [replica == 1]


def test_a_checkpoint_is_due_after_minutes_of_the_main_process(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(trainers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    options = SimpleNamespace(checkpoint_every_minutes=0.5)
    one = SimpleNamespace(config=SimpleNamespace(trainer=options), mesh=SimpleNamespace(is_main=True), saved_at=100.0)
    for clock.now, expected in ((100.0, False), (129.9, False), (130.0, True), (1e6, True)):
        assert Trainer.is_late.fget(one) is expected
    assert not Trainer.is_late.fget(SimpleNamespace(**vars(one) | {"mesh": SimpleNamespace(is_main=False)}))
    options.checkpoint_every_minutes = None
    assert not Trainer.is_late.fget(one)
