"""Sweeps as a user starts them, and who holds which device meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from helpers import REPOSITORY, TINY
from PIL import Image
from sklearn.datasets import load_digits

from resnests.runs.directory import RunDirectory
from resnests.sweep.executors.ray_node import node_task

GRID = ("variant=standard,a_resnest", "seed=0,1")
OWN = (  # a network that draws random numbers, and images, both below the folder of the sweep
    "arch.blocks=null",
    "arch.widths=null",
    "+arch._target_=dropping.net",
    "dataset.name=mine",
    "dataset.source=images",
    "dataset.root=own/images",
    "dataset.size=32",
    "dataset.num_classes=null",
    "dataset.mean=null",
    "dataset.std=null",
)


def write_digits(root: Path) -> None:
    """Write a folder of 96 and 40 images of digits in four classes."""
    digits = load_digits(n_class=4)
    for place, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if place < 136:
            folder = root / ("train" if place < 96 else "test") / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (image * 15).astype("uint8")
            Image.fromarray(pixels).convert("RGB").save(folder / f"{place:03}.png")


RAYS = f"ray::{node_task().__name__}"  # how Ray names a process of its while it does a task


class Sweep:
    """Runs a sweep as a user starts it, with its processes by their roles."""

    cluster: tuple[str, ...] = ()  # the overrides that bring all sweeps onto one
    shell: Mapping[str, str] = {}  # variables that it finds beside those of ours
    own: tuple[str, ...] = ()  # the overrides that have all sweeps train parts of a user's own
    epochs = 40

    def __init__(self, folder: Path, *overrides: str, prefix: Sequence[str] = ()) -> None:
        command = [
            *prefix,
            sys.executable,
            str(REPOSITORY / "run.py"),
            "-m",
            *TINY,
            f"trainer.epochs={self.epochs}",
            *GRID,
            *self.own,
            *self.cluster,
            *overrides,
        ]
        self.folder = folder
        folders = [str(folder / "own"), str(REPOSITORY / "tests" / "broken")]
        if self.own and not (folder / "own").is_dir():  # a copy, which a fault may edit
            shutil.copytree(REPOSITORY / "tests" / "own", folder / "own")
            write_digits(folder / "own" / "images")
        environment = os.environ | self.shell | {"PYTHONPATH": os.pathsep.join(folders)}
        with open(folder / "sweep.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log
            )

    def children(self, role: str) -> list[psutil.Process]:
        """role: training, server for what forks them, or worker for the processes of joblib, Slurm
        or Ray that ask for them.
        """
        found = []
        for process in self._processes():
            with suppress(psutil.Error):
                if _role(process) == role:
                    found.append(process)
        return found

    def _processes(self) -> list[psutil.Process]:
        """Return all below the sweep; of a cluster all that work in its folder."""
        try:
            if not self.cluster:
                return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []
        return [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(self.folder)]

    def wait(self, timeout: float = 600) -> int:
        return self.process.wait(timeout)


def _role(process: psutil.Process) -> str | None:
    line = " ".join(process.cmdline())
    if "resnests.sweep.forkserver" in line:  # its trainings have its command line
        parent = process.parent()
        return "training" if parent and parent.cmdline() == process.cmdline() else "server"
    marks: dict[str, str | None] = {"resnests.sweep.worker": "training", "resource_tracker": None}
    marks |= dict.fromkeys(("loky", "resnests.sweep.executors.slurm_job", RAYS), "worker")
    return next((role for mark, role in marks.items() if mark in line), None)


class Leases(threading.Thread):
    """Checks all the time whether two trainings report the same device, or the same directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over, self.doubled = folder, threading.Event(), []
        self.owners: dict[Path, int] = {}  # directory -> process that was seen there last

    def run(self) -> None:
        while not self.over.wait(0.1):
            holders: dict[str, tuple[int, str]] = {}
            for path in self.folder.glob("**/progress.json"):
                progress = RunDirectory(path.parent).read_progress()
                if "device" not in progress or not psutil.pid_exists(progress["pid"]):
                    continue
                last = self.owners.get(path, progress["pid"])
                self.owners[path] = progress["pid"]
                if last != progress["pid"] and self._both_live(last, progress["pid"]):
                    self.doubled.append((str(path), last, progress["pid"]))
                for device in progress["device"].split():
                    other = holders.setdefault(device, (progress["pid"], str(path)))
                    if other[0] != progress["pid"] and self._both_live(other[0], progress["pid"]):
                        self.doubled.append((device, other, progress["pid"]))

    @staticmethod
    def _both_live(*pids: int) -> bool:
        """Return whether both are still trainings, after what was read of them."""
        try:
            return all("resnests.sweep." in " ".join(psutil.Process(pid).cmdline()) for pid in pids)
        except psutil.Error:
            return False
