"""What several test files need: configurations as the command line composes them, and the
command line itself.
"""

import copy
import csv
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir

from resnests.config.compose import register
from resnests.config.schema import Config, config_from
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.record import Provenance, Record
from resnests.sweep.devices import allocate
from resnests.sweep.leases import Lease, lease

REPOSITORY = Path(__file__).parent.parent
TINY = (
    "dataset=digits",
    "dataset.train_limit=96",
    "dataset.test_limit=40",
    "arch=resnet8",
    "arch.name=tiny",
    "arch.blocks=[1,1]",
    "arch.widths=[4,8]",
    "trainer.epochs=2",
    "trainer.batch_size=32",
)
METRICS = {"train_loss": 0.1, "train_accuracy": 99.0, "test_loss": 0.2, "test_accuracy": 98.0}
TIMES = ("seconds", "images_per_second")


def make_config(*overrides: str) -> Config:
    """Return the Config of `python run.py <overrides>`, for the caller to change."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return config_from(compose("config", list(overrides)))


def tiny(*overrides: str) -> Config:
    """Return a run of about a second."""
    return make_config(*TINY, *overrides)


def run_command(
    *arguments: str, cwd: Path, script: str = "run.py", **kwargs
) -> subprocess.CompletedProcess:
    """Run a command line as a user does, in a directory of their own."""
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    kwargs.setdefault("env", os.environ | kwargs.pop("environment", {}))
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, **kwargs)


def history(directory: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv, less what a clock measured."""
    with open(directory / "history.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in csv.DictReader(file)
        ]


def statuses(folder: Path) -> dict[str, str | None]:
    """Return the states of the runs below `folder`/runs, by variant and seed."""
    found = find_runs(folder / "runs")
    return {f"{run.path.parts[-3]} {run.path.parts[-1]}": run.status() for run in found}


def write_run(config: Config, status: str, **record) -> RunDirectory:
    """Write what a run of this host that ended with `status` leaves, without training anything."""
    directory = RunDirectory.of(config)
    directory.write_config(config)
    values = METRICS | {"parameters": 7} if status == "complete" else {}
    made = Record.of(config, Provenance(host=socket.gethostname()))
    directory.write_record(replace(made, status=status, **values, **record))
    return directory


def until(is_so: Callable[[], object], seconds: float = 90) -> None:
    """Wait for that; it fails the test if it takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def hold_all_cores() -> Lease:
    """Lease all cores that a run may use here, as a run of somebody else's does."""
    held = lease(allocate(make_config("trainer.device=cpu"), 1), "somebody else's run")
    assert held is not None
    return held


def gpu(number: int) -> str:
    """Return the UUID of a card of the stand-in for NVML, see sweep/nvml.c."""
    return f"GPU-0000000{number}-1111-4222-8333-bbbbbbbbbbbb"


def mig(number: int, part: int) -> str:
    """Return the UUID of one of its slices."""
    return f"MIG-0000000{number}-000{part}-4000-8000-aaaaaaaaaaaa"
