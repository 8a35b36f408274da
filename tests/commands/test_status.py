"""aggregate.py --status."""

import dataclasses
import io
import json
import os
import socket
from pathlib import Path

import psutil
import pytest
from helpers import run_command
from rich.console import Console
from trees import add_run

from resnests.commands.status import Status, show
from resnests.results import frame
from resnests.runs.analysis import Analysis

ME = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "process_started": psutil.Process().create_time(),
}
PROGRESS = {
    "state": "training",
    "device": "cpu-0",
    "epoch": 3,
    "epochs": 10,
    "step": 1,
    "steps": 2,
    "loss": 0.5,
    "accuracy": 80.0,
    "images_per_second": 1234.0,
    "seconds_left": 90.0,
}


@pytest.fixture
def grid(tmp_path) -> Path:
    root = tmp_path / "runs"
    for seed in range(3):
        add_run(root, seed=seed)
    add_run(root, variant="resnest", seed=0)
    run = add_run(root, variant="resnest", seed=1, status="running", provenance=ME)
    run.write_progress(PROGRESS)
    add_run(
        root,
        variant="a_resnest",
        seed=0,
        status="running",
        provenance=ME | {"process_started": 1.0},
    )
    add_run(
        root,
        variant="a_resnest",
        seed=1,
        status="failed",
        record={"error": "ValueError: what went wrong"},
    )
    return tmp_path


def test_status_counts_every_cell_and_names_what_is_not_done(grid):
    done = run_command("--status", script="aggregate.py", cwd=grid)
    assert done.returncode == 0, done.stderr
    first, header, row, *lines = done.stdout.splitlines()
    assert first == "4 of 9 done, 1 running, 1 failed, 1 killed, 2 missing; about 1:30 min left"
    assert header.split() == ["Standard", "ResNEst", "A-ResNEst"]
    assert "3 done" in row
    assert "1 done, 1 running, 1 missing" in row
    assert "1 failed, 1 killed, 1 missing" in row
    (running,) = [line for line in lines if line.startswith("running")]
    assert (
        "on cpu-0, epoch 3/10, loss 0.5000, 1234 images/s, 1:30 min left, last heartbeat" in running
    )
    assert any(
        "failed: cifar10/resnet20/a_resnest seed=1: ValueError: what went wrong; see" in line
        for line in lines
    )


@pytest.mark.slow
def test_a_run_whose_process_is_gone_is_not_shown_as_running(grid):
    done = run_command("--status", script="aggregate.py", cwd=grid)
    assert "killed: cifar10/resnet20/a_resnest seed=0" in done.stdout
    assert done.stdout.count("\nrunning:") == 1


def test_runs_of_two_recipes_with_one_seed_are_told_apart(tmp_path):
    for rate in (0.1, 0.05):
        add_run(tmp_path, status="interrupted", optimizer__lr=rate)
        add_run(tmp_path, status="running", seed=1, provenance=ME, optimizer__lr=rate)
    lines = [str(line) for line in Status(str(tmp_path)).poll().renderables]
    for status, seed in (("interrupted", 0), ("running", 1)):
        own = [line for line in lines if line.startswith(f"{status}: ")]
        assert len(own) == 2
        named = f"cifar10/resnet20/standard seed={seed}, optimizer.lr=0.05"
        assert [named in line for line in own].count(True) == 1


@pytest.mark.slow
def test_an_error_text_full_of_markup_is_shown_as_it_is(tmp_path):
    error = "RuntimeError: [/opt/pytorch/x.cc:3] [enforce fail at a.cpp:127] [red]boom :warning:"
    add_run(tmp_path / "runs", status="failed", record={"error": error})
    done = run_command("--status", script="aggregate.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert error in " ".join(done.stdout.split())


@pytest.mark.slow
def test_status_of_nothing_is_an_error(tmp_path):
    done = run_command("--status", script="aggregate.py", cwd=tmp_path)
    assert done.returncode != 0
    assert "runs" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_command("--watch", script="aggregate.py", cwd=tmp_path).returncode != 0


def test_a_look_opens_only_what_has_changed_since_the_last_one(tmp_path, monkeypatch):
    opened = []
    decode = frame.decode
    monkeypatch.setattr(
        frame, "decode", lambda text: opened.append(json.loads(text)["seed"]) or decode(text)
    )
    for seed in range(3):
        add_run(tmp_path, seed=seed)
    add_run(tmp_path, seed=3, status="running", provenance=ME)
    status = Status(str(tmp_path))
    assert status.poll().renderables[0] == "3 of 4 done, 1 running"
    opened.clear()
    assert status.poll().renderables[0] == "3 of 4 done, 1 running"
    assert opened == [3]
    opened.clear()
    add_run(tmp_path, seed=1, status="failed")
    add_run(tmp_path, seed=3)
    assert status.poll().renderables[0] == "3 of 4 done, 1 failed"
    assert opened == [1, 3]


def test_an_analysis_that_was_interrupted_is_not_done(tmp_path):
    run = add_run(tmp_path)
    run.analysis.path.mkdir()
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64))
    started = dataclasses.replace(run.read_record(), task="analyze", status="interrupted")
    run.analysis.write_record(started)
    status = Status(str(tmp_path))
    first, _, line = status.poll().renderables
    assert first == "1 of 1 done, 1 analysis not done"
    assert line.startswith("analysis interrupted: cifar10/resnet20/standard seed=0; see ")
    assert line.endswith("analysis/run.log")
    run.analysis.write_record(dataclasses.replace(started, status="complete"))
    assert status.poll().renderables[0] == "1 of 1 done"


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 200])
def test_every_cell_can_be_read_on_a_narrow_terminal_too(tmp_path, width):
    for variant in ("standard", "resnest", "bn_resnest", "a_resnest"):
        for epochs in (10, 20):
            add_run(tmp_path, variant=variant, status="interrupted", trainer__epochs=epochs)
            add_run(tmp_path, variant=variant, seed=1, trainer__epochs=epochs)
    console = Console(width=width, file=io.StringIO())
    console.print(Status(str(tmp_path)).poll().renderables[1])
    shown = console.file.getvalue()
    assert shown.count("1 done, 1 interrupted") == 8
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert ("  ResNEst: 1 done, 1 interrupted\n" in shown) == (width == 80)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"loss": "<b>"}, {"epochs": 0}, {"steps": 0}, {"seconds_left": 1e400}, {"time": "now"},
        {"seconds_left": []}, {"seconds_left": ""}, {"steps": 5e-324},
        {"images_per_second": None}, {"device": {}}, {"epoch": 10**400}, {"accuracy": float("nan")},
    ],
)  # fmt: skip
def test_a_heartbeat_that_somebody_made_up_is_not_shown(tmp_path, change):
    run = add_run(tmp_path, status="running", provenance=ME)
    run.write_progress(PROGRESS)
    run.progress_file.write_text(json.dumps(json.loads(run.progress_file.read_text()) | change))
    first, *_, line = Status(str(tmp_path)).poll().renderables
    assert first == "0 of 1 done, 1 running"
    assert line == "running: cifar10/resnet20/standard seed=0 on cpu"


def test_a_heartbeat_need_not_know_how_long_it_takes(tmp_path):
    run = add_run(tmp_path, status="running", provenance=ME)
    run.write_progress({name: PROGRESS[name] for name in PROGRESS if name != "seconds_left"})
    *_, line = Status(str(tmp_path)).poll().renderables
    assert "1234 images/s, last heartbeat" in line


def watch(root, monkeypatch, steps):
    """Watch the status of `root`, in which each of `steps` changes something between two polls."""
    left = [*steps]

    def sleep(seconds):
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr("time.sleep", sleep)
    show(str(root), watch=True)


def test_a_heartbeat_before_the_first_epoch_says_nothing_of_the_time_left(tmp_path):
    run = add_run(tmp_path, status="running", provenance=ME)
    run.write_progress({"state": "starting", "seconds_left": 90.0})
    assert Status(str(tmp_path)).poll().renderables[0] == "0 of 1 done, 1 running"


@pytest.mark.parametrize("terminal", ["", "dumb"])
def test_what_cannot_be_drawn_is_printed_when_it_changes(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setenv("TERM", terminal)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal as rich sees it
    run = add_run(tmp_path, status="running", provenance=ME)
    steps = [
        lambda: run.write_progress(PROGRESS),
        lambda: add_run(tmp_path, seed=1),
        lambda: None,
        lambda: add_run(tmp_path),
    ]
    watch(tmp_path, monkeypatch, steps)
    shown = [line for line in capsys.readouterr().out.splitlines() if " done" in line]
    heads = [line for line in shown if " of " in line]
    assert heads == [
        "0 of 1 done, 1 running",
        "1 of 2 done, 1 running; about 1:30 min left",
        "2 of 2 done",
    ]


def test_a_low_terminal_shows_what_runs_before_the_table(tmp_path, monkeypatch, capsys):
    for name, value in {
        "TERM": "xterm",
        "FORCE_COLOR": "1",
        "COLUMNS": "80",
        "LINES": "24",
    }.items():
        monkeypatch.setenv(name, value)
    for variant in ("standard", "resnest", "bn_resnest", "a_resnest"):
        for epochs in range(10, 18):
            add_run(tmp_path, variant=variant, status="complete", trainer__epochs=epochs)
    run = add_run(tmp_path, seed=1, status="running", provenance=ME)
    run.write_progress(PROGRESS)
    watch(tmp_path, monkeypatch, [lambda: None])
    assert "epoch 3/10" in " ".join(capsys.readouterr().out.split())
