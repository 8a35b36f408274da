"""Fault injection: sweeps that are hurt at random instants, and in the end must be what an
undisturbed sweep is.

    python tests/faults.py --faults 60      # the long form: faults injected, survived, results lost

A fault is SIGKILL of a training, of a joblib worker, of the whole sweep; a flipped bit in or the
loss of the end of a checkpoint or record; a second sweep over the same grid at once. After the
faults the same command is given until it reports success, and every file is compared with the
undisturbed sweep.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from helpers import REPOSITORY, TINY, history

from resnests.runs.directory import RunDirectory, find_runs
from resnests.training.checkpoint import read_torch

SECOND_SWEEPS: list[Sweep] = []
GRID = ("variant=standard,a_resnest", "seed=0,1")
RUNS = 4


class Sweep:
    """A sweep as a user starts it, with the processes below it by their roles."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        command = [
            sys.executable,
            str(REPOSITORY / "run.py"),
            "-m",
            *TINY,
            "trainer.epochs=40",
            *GRID,
            *overrides,
        ]
        with open(folder / "sweep.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def children(self, role: str) -> list[psutil.Process]:
        """role: training, or worker for those of joblib."""
        marks = {"training": "resnests.sweep.worker", "worker": "loky"}
        found = []
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    line = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if marks[role] in line and "resource_tracker" not in line:
                    found.append(process)
        except psutil.Error:
            pass
        return found

    def wait(self, timeout: float = 240) -> int:
        return self.process.wait(timeout)


class Leases(threading.Thread):
    """Looks all the time whether two trainings of different directories report the same device."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over, self.doubled = folder, threading.Event(), []

    def run(self) -> None:
        while not self.over.wait(0.1):
            holders: dict[str, tuple[int, str]] = {}
            for path in self.folder.glob("**/progress.json"):
                progress = RunDirectory(path.parent).read_progress()
                if "device" not in progress or not psutil.pid_exists(progress["pid"]):
                    continue
                for device in progress["device"].split():
                    other = holders.setdefault(device, (progress["pid"], str(path)))
                    if other[0] != progress["pid"] and self._both_live(other[0], progress["pid"]):
                        self.doubled.append((device, other, progress["pid"]))

    @staticmethod
    def _both_live(*pids: int) -> bool:
        """Still trainings, both of them, after what was read of them."""
        try:
            return all(
                "resnests.sweep.worker" in " ".join(psutil.Process(pid).cmdline()) for pid in pids
            )
        except psutil.Error:
            return False


def kill_training(sweep: Sweep, _folder: Path) -> bool:
    return _kill_one(sweep.children("training"))


def kill_worker(sweep: Sweep, _folder: Path) -> bool:
    return _kill_one(sweep.children("worker"))


def kill_sweep(sweep: Sweep, _folder: Path) -> bool:
    sweep.process.kill()
    return True


def interrupt_sweep(sweep: Sweep, _folder: Path) -> bool:
    sweep.process.send_signal(random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)))
    return True


def second_sweep(_sweep: Sweep, folder: Path) -> bool:
    SECOND_SWEEPS.append(Sweep(folder))
    return True


def damage_file(_sweep: Sweep, folder: Path) -> bool:
    """Flip a bit of, or cut, a checkpoint or record of a run that nobody trains just now."""
    runs = [
        run
        for run in find_runs(folder / "runs")
        if run.status() != "complete" and not run.is_owned()
    ]
    names = [
        path
        for run in runs
        for name in ("checkpoint.pt", "record.json")
        if (path := run.path / name).exists()
    ]
    if not names:
        return False
    path = random.choice(names)
    content = bytearray(path.read_bytes())
    if random.random() < 0.5:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    else:
        content = content[: random.randrange(len(content))]
    path.write_bytes(bytes(content))
    return True


def _kill_one(processes: list[psutil.Process]) -> bool:
    if not processes:
        return False
    try:
        random.choice(processes).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


FAULTS = {
    "training killed": kill_training,
    "worker killed": kill_worker,
    "sweep killed": kill_sweep,
    "sweep interrupted": interrupt_sweep,
    "second sweep": second_sweep,
    "file damaged": damage_file,
}


def hurt_until(folder: Path, faults: list[str]) -> None:
    """Sweep again and again, with one of `faults` at a random instant of each sweep, until all
    were injected.
    """
    while faults:
        sweep = Sweep(folder)
        fault = FAULTS[faults[0]]
        time.sleep(random.uniform(1.5, 9))
        if sweep.process.poll() is not None:  # done before it could be hurt: the grid starts anew
            for run in find_runs(folder / "runs"):
                if not run.is_owned():
                    run.clear()
        elif fault(sweep, folder) or (
            fault is damage_file and kill_sweep(sweep, folder) and _after(fault, sweep, folder)
        ):
            print(f"{faults.pop(0)}; {len(faults)} faults to go", flush=True)
        sweep.wait()


def _after(fault, sweep: Sweep, folder: Path) -> bool:
    """Damage files once the trainings of a killed sweep are gone."""
    sweep.process.wait()
    deadline = time.monotonic() + 30
    while any(run.is_owned() for run in find_runs(folder / "runs")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return fault(sweep, folder)


def finish(folder: Path, tries: int = 6) -> int:
    """The same command until it reports success; how often it was given."""
    while SECOND_SWEEPS:
        SECOND_SWEEPS.pop().wait()
    for count in range(1, tries + 1):
        if Sweep(folder).wait() == 0:
            return count
    raise AssertionError(
        f"not complete after {tries} commands: {(folder / 'sweep.log').read_text()[-2000:]}"
    )


def differences(folder: Path, reference: Path) -> list[str]:
    """What is not the same to the bit as in the undisturbed sweep, or not whole."""
    found = []
    expected = {run.path.relative_to(reference): run.path for run in find_runs(reference / "runs")}
    assert len(expected) == RUNS
    for place, path in expected.items():
        mine = folder / place
        if RunDirectory(mine).status() != "complete":
            found.append(f"{place}: not complete")
            continue
        one, other = read_torch(mine / "model.pt"), read_torch(path / "model.pt")
        if not all(torch.equal(one[name], other[name]) for name in other):
            found.append(f"{place}: other weights")
        if history(mine) != history(path):
            found.append(f"{place}: another history")
        found += [f"{place}: {left.name} is left" for left in mine.glob(".*.tmp")]
    return found


def campaign(folder: Path, faults: list[str]) -> tuple[list[str], list, int]:
    """(differences, doubly leased devices, commands needed in the end) after `faults`."""
    hurt, reference = folder / "hurt", folder / "reference"
    hurt.mkdir(parents=True)
    reference.mkdir()
    assert Sweep(reference).wait() == 0
    watch = Leases(hurt)
    watch.start()
    hurt_until(hurt, list(faults))
    commands = finish(hurt)
    watch.over.set()
    return differences(hurt, reference), watch.doubled, commands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    faults = [random.choice(list(FAULTS)) for _ in range(options.faults)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("RESNESTS_LOCK_DIR", str(Path(folder) / "slots"))
        lost, doubled, commands = campaign(Path(folder), faults)
    for name in FAULTS:
        print(f"{faults.count(name):4} x {name}")
    print(
        f"{len(faults)} faults injected in {time.monotonic() - started:.0f} s, then {commands} more command(s)"
    )
    print(
        f"{RUNS - len({line.split(':')[0] for line in lost})} of {RUNS} results bit-identical to an undisturbed sweep"
    )
    print(f"{len(lost)} results lost or different, {len(doubled)} devices doubly leased")
    for line in [*lost, *map(str, doubled)]:
        print(line)
    return 1 if lost or doubled else 0


if __name__ == "__main__":
    sys.exit(main())
