"""Searches as a user runs them."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY, TINY, run_command
from spaces import LR

pytest.importorskip("optuna", reason="needs resnests[tune]")

import optuna

from resnests.runs.directory import find_runs

pytestmark = pytest.mark.slow

WORDS = ("task=tune", "dataset.val_fraction=0.25", *TINY, LR)


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *WORDS, *overrides]
    with open(folder / "search.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder}/runs/study-tune/study.db"
    return optuna.load_study(study_name="tune", storage=storage).trials


def wait_for(condition, search: subprocess.Popen) -> None:
    while not condition():
        assert search.poll() is None, "it ended"
        time.sleep(0.05)


def histories(folder: Path) -> int:
    return sum(bool(run.history_rows()) for run in find_runs(folder, trials=True))


def test_two_processes_share_a_study_and_one_outlives_the_other(tmp_path):
    """The first is killed in mid-training; the second does all, also what the first began."""
    words = ("tune.trials=3", "trainer.epochs=40", "devices.slots=1")
    doomed = start(tmp_path, *words)
    wait_for(lambda: histories(tmp_path), doomed)
    other = start(tmp_path, *words)
    wait_for(lambda: len(trials(tmp_path)) > 1, other)
    doomed.send_signal(signal.SIGKILL)
    assert doomed.wait() == -signal.SIGKILL
    assert other.wait(240) == 0, (tmp_path / "search.log").read_text()
    ended = trials(tmp_path)
    assert [trial.number for trial in ended] == [0, 1, 2]
    assert not {trial.state.name for trial in ended} - {"COMPLETE", "PRUNED"}
    runs = list(find_runs(tmp_path / "runs" / "study-tune"))
    assert len(runs) == 3
    assert sum("resuming in epoch" in run.log_file.read_text() for run in runs) == 1
    again = run_command("-m", *WORDS, *words, cwd=tmp_path)
    assert again.returncode == 0
    assert "start " not in again.stdout
    assert len(trials(tmp_path)) == 3


def test_an_interrupted_search_goes_on_and_its_winner_is_trained_by_the_line_that_it_prints(
    tmp_path,
):
    words = ("tune.trials=2", "trainer.epochs=20")
    search = start(tmp_path, *words)
    wait_for(lambda: histories(tmp_path), search)
    search.send_signal(signal.SIGINT)
    assert search.wait(60) == 130
    assert "RUNNING" in {trial.state.name for trial in trials(tmp_path)}
    done = run_command("-m", *WORDS, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {trial.state.name for trial in trials(tmp_path)} == {"COMPLETE"}
    assert run_command(cwd=tmp_path, script="aggregate.py").returncode == 2
    line = re.search(r"seven seeds: python run.py (.*)", done.stdout).group(1)
    trained = [word.replace("range(7)", "0") for word in shlex.split(line)]
    winner = run_command(*trained, cwd=tmp_path)
    assert winner.returncode == 0, winner.stderr
    (result,) = find_runs(tmp_path)
    best = max(trials(tmp_path), key=lambda trial: trial.value)
    assert result.read_record().config["optimizer"]["lr"] == best.params["optimizer.lr"]
    (same,) = best.user_attrs["runs"]
    assert Path(same).parts[-5:] == result.path.parts[-5:]
    table = run_command(cwd=tmp_path, script="aggregate.py")
    assert "one seed per cell" in table.stdout
    assert "optimizer.lr=" in run_command("--trials", cwd=tmp_path, script="aggregate.py").stdout


def test_a_pruned_training_writes_its_checkpoint_and_is_finished_by_name(tmp_path):
    pruner = "+tune.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 101}"
    search = run_command("-m", *WORDS, "tune.trials=1", "trainer.epochs=60", pruner, cwd=tmp_path)
    assert search.returncode == 0, search.stderr
    (trial,) = trials(tmp_path)
    (run,) = find_runs(tmp_path / "runs" / "study-tune")
    record = run.read_record()
    assert trial.state.name == "PRUNED"
    assert (record.status, record.epochs < 60) == ("interrupted", True)
    assert re.fullmatch(r"pruned in epoch \d+, trial 0 of study-tune", record.error)
    assert "no trial" not in search.stdout
    values = ("task=train", "trainer.epochs=60", f"optimizer.lr={trial.params['optimizer.lr']}")
    words = (*WORDS[1:-1], *values, "runs_dir=runs/study-tune")
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
