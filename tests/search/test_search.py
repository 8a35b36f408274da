"""Searches as a user runs them."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, TINY, run_command, until
from spaces import LR

pytest.importorskip("optuna", reason="needs resnests[tune]")

import optuna

from resnests.runs.directory import find_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONGER = ("trainer.epochs=10", "dataset.train_limit=1000")  # a few seconds, to be stopped in
WORDS = ("task=tune", "dataset.val_fraction=0.25", *TINY, *LONGER, LR)


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *WORDS, *overrides]
    with open(folder / "search.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder}/runs/study-tune/study.db"
    return optuna.load_study(study_name="tune", storage=storage).trials


def wait_for(condition, search: subprocess.Popen) -> None:
    """Wait until `condition` holds; fail where the search ends without it."""
    until(lambda: condition() or search.poll() is not None, 300)
    assert condition(), "it ended"


def histories(folder: Path) -> int:
    return sum(bool(run.history_rows()) for run in find_runs(folder, trials=True))


def test_two_processes_share_a_study_and_one_outlives_the_other(tmp_path):
    """One is killed while it has a trial; the other ends that one too, without a new start."""
    words = ("tune.trials=2", "devices.slots=1")
    doomed, other = start(tmp_path, *words), start(tmp_path, *words)
    wait_for(lambda: histories(tmp_path) and len(trials(tmp_path)) > 1, other)
    doomed.kill()
    doomed.wait()
    assert other.wait(500) == 0, (tmp_path / "search.log").read_text()
    ended = trials(tmp_path)
    assert [trial.number for trial in ended] == [0, 1]
    assert {trial.state.name for trial in ended} == {"COMPLETE"}
    runs = list(find_runs(tmp_path / "runs" / "study-tune"))
    assert len(runs) == 2
    assert {run.log_file.read_text().count("epoch 1/10:") for run in runs} == {1}


def test_an_interrupted_search_goes_on_and_says_what_trains_its_winner(tmp_path):
    search = start(tmp_path, "tune.trials=2")
    wait_for(lambda: histories(tmp_path), search)
    search.send_signal(signal.SIGINT)
    assert search.wait(200) == 130
    assert "no trial has ended yet" in (tmp_path / "search.log").read_text()
    assert "RUNNING" in {trial.state.name for trial in trials(tmp_path)}
    done = start(tmp_path, "tune.trials=2")
    assert done.wait(500) == 0
    ended = trials(tmp_path)
    assert [trial.state.name for trial in ended] == ["COMPLETE", "COMPLETE"]
    log = (tmp_path / "search.log").read_text()
    line = re.search(r"seven seeds: python \S*run.py (.*)", log).group(1)
    plan = run_command(*shlex.split(line), "sweep.dry_run=true", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "7 to run" in plan.stdout
    (trained,) = max(ended, key=lambda trial: trial.value).user_attrs["runs"]
    assert trained.replace("study-tune/", "") in plan.stdout, "the recipe of the best trial"


def test_a_pruned_training_writes_its_checkpoint_and_is_finished_by_name(tmp_path):
    pruner = "+tune.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 101}"
    longer = "trainer.epochs=40"  # or a fast machine is through before it is pruned
    words = (*WORDS, longer, "tune.trials=1", "tune.warmup=0", pruner)
    search = run_command("-m", *words, cwd=tmp_path)
    assert search.returncode == 0, search.stderr
    (trial,) = trials(tmp_path)
    (run,) = find_runs(tmp_path / "runs" / "study-tune")
    record = run.read_record()
    assert trial.state.name == "PRUNED"
    assert (record.status, record.epochs < 40) == ("interrupted", True)
    assert re.fullmatch(r"pruned in epoch \d+, trial 0 of study-tune", record.error)
    rate = f"optimizer.lr={trial.params['optimizer.lr']}"
    words = (*WORDS[1:-1], longer, rate, "runs_dir=runs/study-tune")
    again = run_command(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert run.status() == "complete"
    assert "resuming in epoch" in run.log_file.read_text()


def test_without_optuna_it_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'optuna' else find(name, *rest)\n"
    )
    done = run_command("-m", *WORDS, cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    said = "error: task=tune: Optuna is not installed: pip install 'resnests[tune]'"
    assert done.stderr.splitlines() == [said]


def test_a_single_run_searches_nothing(tmp_path):
    done = run_command(*WORDS[:-1], cwd=tmp_path)
    assert done.returncode == 2
    assert "error: task=tune: expected -m and what to search" in done.stderr
