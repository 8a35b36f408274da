"""Start sweeps on a cluster as a user does, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from helpers import REPOSITORY, TINY, history, run_command
from helpers import until as until
from sweeps import GRID as GRID  # of the tests here, too

from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory, find_runs

STARTED: list[subprocess.Popen] = []
SLURM = ("cluster=slurm", "cluster.cpus=1", "cluster.gpus=0")
EPOCHS = 300
LONG = f"trainer.epochs={EPOCHS}"  # some eight seconds, and many with the machine busy

SEEN = "trainer.epochs=100"  # some three seconds, more than two jobs at once begin apart


def start(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """Start a sweep, whose lines are appended to sweep.log."""
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *TINY, *overrides]
    with open(folder / "sweep.log", "ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | environment
        )
    STARTED.append(process)
    return process


def end_all() -> None:
    """End the sweeps that a failed test left."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def sweep(folder: Path, *overrides: str, **environment: str) -> int:
    """Run a sweep and return its exit status."""
    return start(folder, *overrides, **environment).wait(800)


def log(folder: Path) -> str:
    return (folder / "sweep.log").read_text()


def assert_refused(folder: Path, said: str, *overrides: str) -> None:
    """Assert that one line refuses, with the exit status of a user's mistake."""
    done = run_command("-m", *overrides, "seed=0,1", "dataset=digits", cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def runs(folder: Path) -> dict[str, RunDirectory]:
    """Return the runs by variant and seed."""
    found = find_runs(folder / "runs")
    return {f"{run.path.parts[-3]} {run.path.parts[-1]}": run for run in found}


def statuses(folder: Path) -> list[str | None]:
    return [run.status() for run in runs(folder).values()]


def epochs(folder: Path) -> list[int]:
    """Return how far the runs are that have begun."""
    return [len(run.history_rows()) for run in runs(folder).values()]


def assert_same_results(folder: Path, reference: Path) -> None:
    """Assert that weights and history are the same to the bit."""
    mine, others = runs(folder), runs(reference)
    assert mine.keys() == others.keys()
    for name, run in mine.items():
        assert run.status() == "complete"
        one, other = (read_torch(r.weights_file) for r in (run, others[name]))
        assert all(torch.equal(one[key], other[key]) for key in other)
        assert history(run.path) == history(others[name].path)


def left_over(folder: Path) -> list[str]:
    """Return the folders of submissions that nobody removed."""
    return sorted(path.name for path in (folder / "runs").glob(".sweep-*"))
