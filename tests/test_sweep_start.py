"""What is settled before the first job of a sweep: its directory, its objective, and what it goes on with."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from gpt2x.commands import cli, entry
from gpt2x.commands.sweep_end import again, best_job, closed, ranking, write_csv
from gpt2x.commands.sweep_jobs import ATTEMPTS, prepare_directory, same_overrides
from gpt2x.commands.sweep_start import count_jobs, newest_sweep, require_once, require_same_sweep
from gpt2x.errors import UserError
from gpt2x.runtime.exits import guarded
from gpt2x.runtime.files import create_new
from gpt2x.runtime.jobs import Job, Sweep, read_job, read_jobs, read_sweep, typed_command, write_job, write_sweep
from tests.support.owners import forked, own_for_ever

SWEEP = Sweep("python train.py -m seed=1,2", ["seed=1,2"], ["seed"], 2, 1, "val/loss", "lower")


def job(folder, number=0, **values):
    overrides = [f"seed={number}"]
    return Job(number, overrides, overrides, str(folder), str(folder / str(number)), objective="val/loss", **values)


def test_sweeps_that_start_in_one_instant_have_directories_of_their_own(tmp_path):
    wanted = tmp_path / "sweep_2026-01-01_00-00-00"
    found = [create_new(wanted) for _ in range(3)]
    assert len(set(found)) == 3
    assert all(path.is_dir() and not any(path.iterdir()) for path in found)


def test_a_directory_with_other_files_is_refused(tmp_path):
    require_same_sweep(tmp_path / "new", SWEEP)
    require_same_sweep(tmp_path, SWEEP)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has files, but no sweep\.json"):
        require_same_sweep(tmp_path, SWEEP)


def test_a_directory_of_a_sweep_over_other_keys_is_rejected_with_the_difference(tmp_path, capsys):
    write_sweep(tmp_path, SWEEP)
    require_same_sweep(tmp_path, replace(SWEEP, command="python train.py -m hydra/launcher=joblib seed=1,2"))
    assert not capsys.readouterr().out
    require_same_sweep(tmp_path, replace(SWEEP, overrides=["seed=1,3"]))
    assert "continues with a corrected command (seed=1,2; seed=1,3)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds a different sweep \(model=a,b; seed=1,2\)"):
        require_same_sweep(tmp_path, replace(SWEEP, overrides=["model=a,b"]))


def test_a_sweep_that_was_moved_is_read_where_it_is(tmp_path):
    write_job(job(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    (moved,) = read_jobs(tmp_path / "new")
    assert (moved.path, moved.sweep_dir) == (tmp_path / "new" / "0", str(tmp_path / "new"))


def test_the_newest_sweep_with_the_same_overrides_is_found(tmp_path):
    assert newest_sweep(tmp_path, SWEEP) is None
    for number, name in enumerate(("b", "a", "c")):
        write_sweep(tmp_path / name, SWEEP if name != "c" else replace(SWEEP, overrides=["seed=3"]))
        os.utime(tmp_path / name / "sweep.json", (number, number))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "sweep.json").write_text("{damaged")
    assert newest_sweep(tmp_path, SWEEP) == tmp_path / "a"


@pytest.mark.parametrize(
    ("words", "varied", "count"),
    [
        (["seed=1,2", "model.num_layers=2"], ["seed"], 2),
        (["seed=1,2", "model=gpt2_tiny,gpt2_small", "+x=range(3)"], ["seed", "model", "x"], 12),
        (["seed=1", "resume=auto"], [], 1),
    ],
)
def test_what_varies_and_how_many_jobs_there_are(words, varied, count):
    overrides = [each for each in parse(words) if each.get_key_element() != "resume"]
    require_once(overrides)
    assert [each.get_key_element().lstrip("+") for each in overrides if each.is_sweep_override()] == varied
    assert count_jobs(overrides) == count


@pytest.mark.parametrize("words", [["seed=1,2", "seed=3"], ["seed=3", "seed=choice(1,2)"], ["seed=1,2", "seed=1,3"]])
def test_a_key_with_several_values_is_given_once(words):
    with pytest.raises(UserError, match="seed is given 2 times"):
        require_once(parse(words))


def parse(words):
    return OverridesParser.create().parse_overrides(words)


def test_records_read_back_and_damaged_ones_are_none(tmp_path):
    write_job(job(tmp_path, 1, value=2.5, step=3))
    write_job(job(tmp_path, 0))
    assert [each.number for each in read_jobs(tmp_path)] == [0, 1]
    assert read_job(tmp_path / "1") == job(tmp_path, 1, value=2.5, step=3)
    deep = replace(job(tmp_path, 2), run_dir=str(tmp_path / "seed=2" / "lr=0.1"))
    write_job(deep)
    write_job(replace(deep, number=3, run_dir=f"{deep.run_dir}/{ATTEMPTS}/1"))
    assert [each.number for each in read_jobs(tmp_path)] == [0, 1, 2]
    (tmp_path / "1" / "job.json").write_text("[1]")
    assert read_job(tmp_path / "1") is None
    assert read_sweep(tmp_path) is None


def test_a_job_without_a_checkpoint_begins_anew_and_keeps_what_it_left(tmp_path):
    one = job(tmp_path)
    write_job(one)
    (one.path / "metrics.jsonl").write_text("x")
    assert not prepare_directory(one, one)
    assert [path.name for path in one.path.iterdir()] == [ATTEMPTS]
    assert (one.path / ATTEMPTS / "1" / "metrics.jsonl").read_text() == "x"
    (one.path / "metrics.jsonl").write_text("y")
    prepare_directory(one, one)
    assert (one.path / ATTEMPTS / "2" / "metrics.jsonl").read_text() == "y"
    assert not prepare_directory(one, one)
    assert not (one.path / ATTEMPTS / "3").exists()


def test_how_a_job_resumes_is_no_part_of_it(tmp_path):
    one, other = job(tmp_path), job(tmp_path)
    assert same_overrides(one, replace(other, overrides=["seed=0", "resume=auto"]))
    assert not same_overrides(one, replace(other, overrides=["seed=1"]))


def test_a_job_that_runs_is_not_run_twice(tmp_path):
    one = job(tmp_path)
    write_job(one)
    with forked(own_for_ever(one.path)):
        assert closed(one).status == "running"
    assert closed(one).status == "killed"


def test_jobs_are_ranked_by_the_direction_of_the_objective(tmp_path):
    jobs = [job(tmp_path, 0, value=2.0), job(tmp_path, 1), job(tmp_path, 2, value=1.0), job(tmp_path, 3, value=2.0)]
    assert [each.number for each in ranking(jobs, SWEEP)] == [2, 0, 3, 1]
    assert [each.number for each in ranking(jobs, replace(SWEEP, direction="higher"))] == [0, 3, 2, 1]
    assert best_job(ranking(jobs, SWEEP)) is None
    ended = [replace(each, status="failed" if each.number == 2 else "finished") for each in jobs]
    assert best_job(ranking(ended, SWEEP)).number == 0


def test_a_job_that_ended_without_a_word_was_killed(tmp_path):
    write_job(job(tmp_path))
    assert closed(read_job(tmp_path / "0")).status == "killed"
    assert read_job(tmp_path / "0").status == "killed"


def test_the_table_has_whole_numbers(tmp_path):
    write_csv(tmp_path / "sweep.csv", SWEEP, [job(tmp_path, 0, value=1 / 3, step=7, status="finished")], ["seed"])
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines == [
        "job,seed,val/loss,step,seconds,status,message,run_dir",
        f"0,0,{1 / 3!r},7,0.0,finished,,{tmp_path}/0",
    ]


def test_the_command_is_quoted_as_a_shell_needs_it(monkeypatch):
    monkeypatch.delenv("GPT2X_COMMAND", raising=False)
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", "train.py", "-m", "x=interval(1, 2)"])
    assert typed_command() == "python3 train.py -m 'x=interval(1, 2)'"
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", "/env/bin/gpt2x", "train", "seed=1"])
    assert typed_command() == "gpt2x train seed=1"
    assert again(replace(SWEEP, command="x -m hydra.sweep.dir=a"), Path("b")) == "x -m hydra.sweep.dir=b"
    line = again(SWEEP, Path("/o ut/it's"))
    (override,) = parse([shlex.split(line)[-1]])
    assert str(override.value()) == "/o ut/it's"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.direction=up"], "sweep.direction=up does not exist"),
        (["sweep.direction=higher"], "sweep.direction=higher, but the better value of val/loss is the lower one"),
        (["sweep.parallel_jobs=0"], "sweep.parallel_jobs=0 must be at least 1"),
        (["sweep.pruner=median", "trainer.eval_every_steps=null"], "sweep.pruner=median compares jobs at their eval"),
        (["sweep.pruner=threshold"], "Optuna's ThresholdPruner says"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 starts no job"),
        (["hparams_search=learning_rate", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 must be at least 1"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna has nothing to search"),
        (["hparams_search=learning_rate", "hydra.sweeper.direction=maximize"], "give hydra.sweeper.direction=minimize"),
        (["sweep.objective=val/los"], "sweep.objective=val/los: gpt2x does not know whether"),
    ],
)
def test_what_all_jobs_would_fail_with_is_said_before_the_first(words, message, tmp_path, monkeypatch, capsys):
    varied = [] if "hydra/sweeper=optuna" in words else ["seed=1,2"]
    monkeypatch.setattr("sys.argv", ["gpt2x", "train", "-m", *words, *varied, f"paths.outputs={tmp_path}/outputs"])
    monkeypatch.setattr(entry, "start", lambda *arguments: pytest.fail("a job was started"))
    GlobalHydra.instance().clear()
    assert guarded(lambda: cli.gpt2x(sys.argv[1:])) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("word", ["hparams_search=learning_rate", "sweep.pruner=median"])
def test_a_single_run_does_not_ignore_what_only_a_sweep_has(word, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpt2x", "train", word, f"paths.outputs={tmp_path}/outputs"])
    monkeypatch.setattr(entry, "start", lambda *arguments: pytest.fail("the run was started"))
    GlobalHydra.instance().clear()
    assert guarded(lambda: cli.gpt2x(sys.argv[1:])) == 2
    assert f"{word} is for a sweep, which -m starts; add -m" in capsys.readouterr().err
