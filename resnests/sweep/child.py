"""One run in a process of its own: what it is, how it is asked to stop, and how its end gets on
record. No torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from resnests.config.schema import Config, config_dict
from resnests.data.splits import is_ready
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL, Provenance, Record
from resnests.runs.weights import digest, weights_file
from resnests.sweep.devices import Allocation
from resnests.sweep.worker import BUSY, INTERRUPTED, USER_ERROR

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Run:
    """A configuration, its place on disk, and its number in the sweep."""

    config: Config
    directory: RunDirectory
    index: int = 0
    differs: str = ""  # what tells it from other runs of the sweep with the same names and seed

    @property
    def label(self) -> str:
        c = self.config
        return (
            f"{c.dataset.name}/{c.arch.name}/{c.variant.name} seed={c.seed} {self.differs}".rstrip()
        )

    @property
    def action(self) -> str:
        """What the next launch would do: skip, resume or run."""
        status = self.directory.status()
        if status in FINAL and not self.config.trainer.overwrite and not self._is_outdated():
            return "skip"
        resumable = self.directory.checkpoint_file.exists() and not self.config.trainer.overwrite
        return "resume" if resumable else "run"

    def _is_outdated(self) -> bool:
        """Whether weights were evaluated that are others by now."""
        if self.config.task != "evaluate":
            return False
        record = self.directory.read_record()
        return record is None or record.weights_sha256 != digest(weights_file(self.config))


class Stop:
    """Whether to stop: by a signal to this process, or by a file that a process of the same sweep
    made.

    A signal stops the whole sweep, unless it is this run's `own`: that of a batch system to one of
    its jobs. Where jobs wait in a `queue`, the second signal raises KeyboardInterrupt: they stop
    when they start and find the sweep's folder gone.
    """

    SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR2")

    def __init__(
        self, file: Path | None = None, parent: int | None = None, *, own=False, queue=False
    ) -> None:
        self.file, self.own, self.queue, self.signals = file, own, queue, 0
        self.parent = (
            parent if parent == os.getppid() else None
        )  # the sweep, where this is a process of its launcher
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.signals += 1
        if not self.own:
            self.set()
        outer = self._previous[number]
        if isinstance(getattr(outer, "__self__", None), Stop):  # a job in the process of its sweep
            outer(number, frame)
        if self.queue and self.signals > 1:
            raise KeyboardInterrupt

    def set(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                self.file.touch()

    @property
    def orphaned(self) -> bool:
        return self.parent is not None and os.getppid() != self.parent

    def requested(self) -> bool:
        told = self.file is not None and (self.file.exists() or not self.file.parent.exists())
        return self.signals > 0 or self.orphaned or told


def run_child(run: Run, allocation: Allocation, stop: Stop) -> int:
    """Train `run` in a fresh process and wait for it; its exit status. Its end is on record
    whatever it was.
    """
    if stop.requested():
        return 0
    run.directory.path.mkdir(parents=True, exist_ok=True)
    with open(run.directory.log_file, "ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "resnests.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the parent, which asks once for a checkpoint
        )
    # What is to start afresh was cleared before: the run itself, and whoever runs its config.yaml
    # again, must resume.
    trainer = dataclasses.replace(run.config.trainer, overwrite=False)
    config = dataclasses.replace(run.config, trainer=trainer)
    job = {"config": config_dict(config), "allocation": asdict(allocation)}
    with suppress(BrokenPipeError):  # it died at once: the exit status tells
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
    asked = False
    while child.poll() is None:
        if stop.requested() and not asked:
            child.terminate()
            asked = True
        if stop.signals > 1:
            child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL)
    with suppress(BrokenPipeError):
        child.stdin.close()
    died_at_start = (
        asked and child.returncode == -signal.SIGTERM
    )  # before it could listen: later it ends by itself
    code = INTERRUPTED if died_at_start else child.returncode
    conclude(run, code)
    return code


def python_path() -> str:
    return os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )


def command_line() -> str:
    return os.environ.get("RESNESTS_COMMAND", " ".join(sys.argv))


def conclude(run: Run, code: int) -> None:
    """Put on record how a child ended that could not do so itself.

    One that was interrupted before it trained leaves the record of the attempt before it, or none.
    """
    if code in (0, BUSY, INTERRUPTED):
        return
    directory = run.directory
    with suppress(Timeout, OSError), directory.owner().acquire(blocking=False):
        record = directory.sound_record()
        if record is None:
            if code == USER_ERROR:
                return
            record = Record.of(run.config, Provenance(host=socket.gethostname()))
        if record.status != "running":
            return
        if code < 0:
            record.status, record.error = "killed", f"killed by {signal.Signals(-code).name}"
        else:
            record.status, record.error = "failed", last_line(directory)
        directory.write_record(record)


def last_line(directory: RunDirectory) -> str:
    """The last line of run.log that says something."""
    with suppress(OSError):
        lines = directory.log_file.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "no output")
    return "no log"


def prepare_data(runs: Sequence[Run]) -> None:
    """Fetch and check each data set once, before the runs; in a process of its own, as that may
    take torchvision.
    """
    for dataset in {
        json.dumps(asdict(run.config.dataset), sort_keys=True): run.config.dataset for run in runs
    }.values():
        if is_ready(dataset):
            continue
        command = [sys.executable, "-m", "resnests.data.splits", json.dumps(asdict(dataset))]
        done = subprocess.run(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": python_path()},
        )
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
