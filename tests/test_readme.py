"""What the README says can be typed can be typed, as it stands where it can run small."""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
import torch
import trees
from data_images import write_classes
from helpers import REPOSITORY, run_command, until

from resnests import build_model
from resnests.runs.analysis import TRAINED, Analysis, Solve
from resnests.runs.directory import find_runs

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
LINES = [re.split(r"\s#", line)[0].strip() for block in BLOCKS for line in block.splitlines()]
# The lines of a day follow each other: they have a test of their own.
(DAY,) = re.findall(r"## A day with a sweep\n\n```sh\n(.*?)```", README, flags=re.DOTALL)
DAY = [re.split(r"\s#", line)[0].strip() for line in DAY.splitlines()]
RUNS = sorted({line for line in LINES if line.startswith("python run.py")} - {*DAY})
TABLES = sorted({line for line in LINES if line.startswith("python aggregate.py")})
ENDLESS = ("python aggregate.py --status --watch", "python aggregate.py --serve")  # until Ctrl-C
FINISHED = ("task=export", "task=analyze")  # these are of runs that are there already
SMALL = ("variant=standard", "seed=0", "trainer.epochs=1", "dataset.train_limit=96")


def type_line(line: str, *more: str, cwd: Path) -> str:
    """Type a line of the README in a checkout, with `more` words; return its output."""
    for script in ("run.py", "aggregate.py", "examples"):
        if not (cwd / script).exists():
            (cwd / script).symlink_to(REPOSITORY / script)
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", shlex.join(["exec", *shlex.split(line), *more]) if more else line],
        cwd=cwd,
        env=os.environ | paths | {"PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_block_is_valid_shell():
    for block in BLOCKS:
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_the_readme_has_the_two_commands_that_set_everything_up():
    assert len([line for line in LINES if line.startswith("python3 -m venv ")]) == 2
    assert len(RUNS) > 5


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Return a folder with the weights and images that lines of the README name."""
    folder = tmp_path_factory.mktemp("given")
    write_classes(folder / "my leaves", 5)
    torch.save(build_model("resnet20", "resnest").state_dict(), folder / "model.pt")
    names = ["CIFAR10_ResNEst_WRN_16_8_seed=0"]
    names += [
        f"official/CIFAR10_{variant}_ResNet_{depth}_seed={seed}"
        for variant in ("Standard", "AResNEst")
        for depth in (20, 110)
        for seed in range(7)
    ]
    for name in names:
        (folder / name).mkdir(parents=True)
        shutil.copy(folder / "model.pt", folder / name / "last_model.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in RUNS if not any(t in line for t in FINISHED)])
def test_every_run_of_the_readme_is_understood(line, given):
    """It is composed and checked as it stands, up to what this machine has no images for."""
    if "--help" in line:
        assert "experiment=paper" in type_line(line, cwd=given)
        return
    more = [] if "sweep.dry_run=true" in line else ["sweep.dry_run=true"]
    assert " to run, " in type_line(line, *more, cwd=given)


@pytest.mark.slow
def test_given_weights_are_evaluated(given):
    (line,) = [line for line in RUNS if "weights=model.pt" in line]
    small = ("dataset=digits", "dataset.test_limit=40", "trainer.device=cpu", "runs_dir=evaluated")
    type_line(line, *small, cwd=given)
    (run,) = find_runs(given / "evaluated")
    assert run.read_record().status == "complete"
    assert run.read_record().weights == "model.pt"


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in RUNS if any(t in line for t in FINISHED)])
def test_lines_about_finished_runs_follow_a_training(line, tmp_path):
    if "safetensors" in line:
        pytest.importorskip("safetensors", reason="needs resnests[hub]")
    small = ("dataset=digits", "arch=resnet20", "trainer.device=cpu", *SMALL)
    preset = next(word for word in line.split() if word.startswith("experiment="))
    assert run_command("-m", preset, *small, cwd=tmp_path).returncode == 0
    type_line(line, *small, cwd=tmp_path)
    (run,) = find_runs(tmp_path / "runs")
    name = "DIGITS_Standard_ResNet_20_seed=0"
    if "task=analyze" in line:
        assert run.analysis.read_record().status == "complete"
    elif "safetensors" in line:
        assert (tmp_path / "shared" / name / "model.safetensors").is_file()
    else:
        assert (tmp_path / "published" / name / "last_model.pt").is_file()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a folder with runs/ that all lines with aggregate.py have something to say of."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        for variant in ("standard", "resnest"):
            rows = trees.history_rows(90 + seed, 5, val=True)
            values = {"seed": seed, "variant": variant, "dataset__val_fraction": 0.1}
            record = {"metrics": {"f1": {"val": 80.0, "test": 81.0}}}
            run = trees.add_run(
                folder / "runs", 90 + seed, history=rows, trainer__epochs=5, record=record, **values
            )
    labels = np.arange(10)
    np.savez(run.predictions_file, label=labels, prediction=labels, logits=np.eye(10))
    run.analysis.path.mkdir()
    run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
    solves = [Solve(TRAINED, "exact", "3.3", 576, 0.3)]
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64, True, solves=solves))
    trees.add_run(folder / "runs", arch="resnet8", status="failed", record={"error": "no"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in TABLES if line not in (*ENDLESS, DAY[4])])
def test_every_line_about_results_prints_or_writes_them(line, finished):
    if "--to wandb" in line:
        pytest.importorskip("wandb", reason="needs resnests[wandb]")
    output = type_line(line, cwd=finished)
    if "--output" in line:
        written = finished / line.split()[-1]
        assert written.stat().st_size > 0
        assert not written.is_dir() or list(written.rglob("*.png"))
    elif "--to" not in line:
        assert len(output) > 20
    assert len(list(find_runs(finished / "runs"))) == 5  # --delete deletes nothing without --yes


@pytest.mark.slow
def test_the_example_of_own_parts_trains(tmp_path):
    (line,) = [line for line in LINES if line.startswith("cd examples/own_parts")]
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    type_line(line, cwd=tmp_path)
    runs = list(find_runs(tmp_path / "examples" / "own_parts" / "runs"))
    assert [run.read_record().status for run in runs] == ["complete"] * 3


@contextmanager
def suspended(sweep: subprocess.Popen) -> Iterator[None]:
    """Suspend what trains below a sweep, for as long as the `with` block takes.

    Some of the processes there, such as a compiler, are gone by the time they are asked.
    """
    below = psutil.Process(sweep.pid).children(recursive=True)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.long
def test_a_day_with_a_sweep(tmp_path, monkeypatch):
    """Start, watch, stop, go on, add a seed, delete a bad cell, export the best: as it is typed."""
    monkeypatch.setenv("RESNESTS_LOCK_DIR", str(tmp_path / "leases"))
    begin, watch, status, more, delete, export = DAY
    small = ("arch=resnet8", "arch.name=tiny", "arch.blocks=[1,1]", "arch.widths=[4,8]")
    small += ("dataset.train_limit=96", "trainer.batch_size=32", "trainer.epochs=80")
    small += ("trainer.device=cpu",)
    (tmp_path / "run.py").symlink_to(REPOSITORY / "run.py")
    (tmp_path / "runs").mkdir()
    sweep = subprocess.Popen(
        [sys.executable, *shlex.split(begin)[1:], *small], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((tmp_path / "runs").rglob("history.csv")):
        assert sweep.poll() is None
        time.sleep(0.02)
    with suspended(sweep):  # or a fast machine is through before it was looked at
        seen = type_line(status, cwd=tmp_path)
        assert " of 4 done" in seen
        assert " running" in seen
        with subprocess.Popen(
            [sys.executable, *shlex.split(watch)[1:], "0"], cwd=tmp_path, stdout=subprocess.PIPE,
            text=True,
        ) as server:  # fmt: skip
            try:
                address = server.stdout.readline().split()[0]
                until(lambda: " of 4 done" in urlopen(address).read().decode())
            finally:
                server.terminate()
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    (goes_on,) = [line for line in type_line(status, cwd=tmp_path).splitlines() if "-m" in line]
    assert "4 of 4 runs" not in type_line(goes_on.strip(), cwd=tmp_path)
    assert type_line(status, cwd=tmp_path).startswith("4 of 4 done")
    assert "4 of 8 runs are finished already" in type_line(more, *small, cwd=tmp_path)
    assert "deleted" in type_line(delete, cwd=tmp_path)
    assert type_line(status, cwd=tmp_path).startswith("6 of 6 done")
    type_line(export, cwd=tmp_path)
    assert len(list((tmp_path / "best").rglob("last_model.pt"))) == 1
