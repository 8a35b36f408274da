"""aggregate.py --status, and the lines and the live table of a sweep."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers import run_command, tiny
from rich.console import Console
from trees import add_run

from resnests.runs.directory import RunDirectory
from resnests.runs.record import Provenance, Record
from resnests.sweep.child import Run
from resnests.sweep.display import Display
from resnests.text import duration

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
    assert first == "4 of 9 done, 1 running, 1 failed, 1 killed, 2 missing"
    assert header.split() == ["Standard", "ResNEst", "A-ResNEst"]
    assert "3 done" in row
    assert "1 done, 1 running, 1 missing" in row
    assert "1 failed, 1 killed, 1 missing" in row
    (running,) = [line for line in lines if line.startswith("running")]
    assert (
        "on cpu-0, epoch 3/10, loss 0.5000, 1234 images/s, 1:30 min left, last sign of life"
        in running
    )
    assert any(
        "failed: cifar10/resnet20/a_resnest seed=1: ValueError: what went wrong; see" in line
        for line in lines
    )


def test_a_run_whose_process_is_gone_is_not_shown_as_running(grid):
    done = run_command("--status", script="aggregate.py", cwd=grid)
    assert "killed: cifar10/resnet20/a_resnest seed=0" in done.stdout
    assert done.stdout.count("\nrunning:") == 1


def test_an_error_text_full_of_markup_is_shown_as_it_is(tmp_path):
    error = "RuntimeError: [/opt/pytorch/x.cc:3] [enforce fail at a.cpp:127] [red]boom :warning:"
    add_run(tmp_path / "runs", status="failed", record={"error": error})
    done = run_command("--status", script="aggregate.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert error in " ".join(done.stdout.split())


def test_status_of_nothing_is_an_error(tmp_path):
    done = run_command("--status", script="aggregate.py", cwd=tmp_path)
    assert done.returncode != 0
    assert "runs" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_command("--watch", script="aggregate.py", cwd=tmp_path).returncode != 0


def display_of(tmp_path, count: int, terminal: bool) -> tuple[Display, list[Run], Console]:
    configs = [
        tiny(f"runs_dir={tmp_path}", f"seed={seed}", "trainer.epochs=10") for seed in range(count)
    ]
    runs = [Run(config, RunDirectory.of(config), index) for index, config in enumerate(configs)]
    display = Display(runs, runs)
    console = Console(record=True, force_terminal=terminal, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    display.console = console
    return display, runs, console


def test_the_live_table_shows_counts_and_every_running_run(tmp_path):
    display, runs, console = display_of(tmp_path, 3, terminal=True)
    runs[0].directory.write_config(runs[0].config)
    time.sleep(0.01)
    display.started -= 1
    runs[0].directory.write_record(Record.of(runs[0].config, Provenance()))
    runs[0].directory.write_progress(PROGRESS)
    display._refresh()
    console.print(display._table())
    text = console.export_text()
    console.file.close()
    assert "0 of 3 done, 1 running, 2 waiting" in text
    assert "digits/tiny/standard seed=0" in text
    for cell in ("cpu-0", "3/10", "0.5000", "80.00%", "1234", "1:30 min"):
        assert cell in text


def test_plain_lines_tell_start_and_end_of_each_run_of_a_sweep(tmp_path):
    display, runs, console = display_of(tmp_path, 2, terminal=False)
    display.live = None
    directory = runs[0].directory
    directory.write_config(runs[0].config)
    display.started -= 1
    directory.write_progress(PROGRESS)
    display._refresh()
    record = replace(
        Record.of(runs[0].config, Provenance()), status="failed", error="OSError: no disk"
    )
    directory.write_record(record)
    display._refresh()
    display._refresh()
    lines = console.export_text().splitlines()
    console.file.close()
    assert lines == [
        "start digits/tiny/standard seed=0 on cpu-0",
        "failed 1/2 digits/tiny/standard seed=0: OSError: no disk",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.24, "1.2 s"), (59.4, "59.4 s"), (90, "1:30 min"), (3600, "1:00 h"), (93_600, "26:00 h")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
