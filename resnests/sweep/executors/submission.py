"""Keep on disk what is in Slurm's queue: a folder for each array of jobs, beside the runs.

    <runs_dir>/.sweep-resnests-x7f3a2/     the name of the array's jobs is resnests-x7f3a2
        batches.json    which runs each job of the array trains
        jobs.jsonl ...  what jobs are told and tell, see sweep/protocol.py
        <task>.log      what a job prints
        unlisted        there since squeue lists no job of the array

It is written before the array is submitted, and found by its name in the queue, so that jobs are
never lost sight of, whichever process dies when.

Where the umask of its user lets a group read, the other users of runs_dir see what is queued, and
wait for it. They write nothing there: what the jobs of a user do, nobody else says.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import msgspec

from resnests.errors import UserError
from resnests.runs.files import read_file, write_atomic
from resnests.runs.record import owner
from resnests.sweep.plan import Run
from resnests.sweep.protocol import SweepFolder
from resnests.text import last_log_line_of

_PREFIX = ".sweep-"
_NAME = "resnests-"
NO_LOG = "without a log in "


@dataclass(frozen=True)
class Submission:
    """Holds an array of jobs."""

    folder: Path
    batches: list[list[str]]  # for each job its runs, as paths below runs_dir
    is_foreign: bool = False  # another user's

    @property
    def name(self) -> str:
        """Return the name of the array's jobs in the queue."""
        return self.folder.name.removeprefix(_PREFIX)

    @classmethod
    def write(cls, batches: Sequence[Sequence[Run]]) -> Submission:
        """Write the folder of a new array, a job for each of `batches`."""
        runs = list(chain(*batches))
        runs_dir = Path(runs[0].config.runs_dir).resolve()
        folder = runs_dir / f"{_PREFIX}{_NAME}{secrets.token_hex(4)}"
        folder.mkdir(mode=0o750)
        here = [replace(run, config=replace(run.config, cluster=None)) for run in runs]
        SweepFolder(folder).write([replace(run, index=i) for i, run in enumerate(here)], None)
        paths = [[place(run) for run in batch] for batch in batches]
        write_atomic(folder / "batches.json", json.dumps(paths).encode())
        return cls(folder, paths)

    @property
    def specs(self) -> SweepFolder:
        """Return the folder as its jobs know it."""
        return SweepFolder(self.folder)

    def numbers(self, task: int) -> range:
        """Return the numbers of the runs of job `task`, in the order of its batch."""
        return range(self._firsts[task], self._firsts[task + 1])

    @cached_property
    def _firsts(self) -> list[int]:
        return [0, *accumulate(map(len, self.batches))]

    def last_log_line(self, task: int) -> str:
        """Return what job `task` printed last, or that it has no log."""
        try:
            return last_log_line_of(self.folder / f"{task}.log").strip()
        except OSError:
            if not self.folder.is_dir():  # another sweep tidied up
                return ""
            return f"{NO_LOG}{self.folder}, which its node must reach"

    def unlisted_seconds(self, listed: bool) -> float:
        """Note whether squeue lists the array; return for how long it did not, in seconds.

        The file stays for the next sweep, which then need not wait again. A folder that is gone was
        removed by a sweep that saw the array end; of one that is closed to us nothing is known.
        Another user's array is given up at once, as a site may hide it (PrivateData=jobs).
        """
        if self.is_foreign:
            return 0.0 if listed else math.inf
        marker = self.folder / "unlisted"
        try:
            if listed:
                marker.unlink(missing_ok=True)
                return 0.0
            if not marker.exists():
                marker.touch()
            return max(0.0, time.time() - marker.stat().st_mtime)
        except FileNotFoundError:
            return math.inf
        except OSError:
            return 0.0

    def age(self) -> float:
        """Return for how many seconds nothing was written into the folder."""
        try:
            return time.time() - self.folder.stat().st_mtime
        except OSError:
            return 0.0

    def remove(self) -> None:
        """Remove the folder: jobs of the array that begin later find nothing to do."""
        shutil.rmtree(self.folder, ignore_errors=True)


def place(run: Run) -> str:
    """Return the path of a run below its runs_dir."""
    return str(run.directory.path.relative_to(run.config.runs_dir))


def find_submissions(runs_dir: Path | str) -> list[Submission]:
    """Return the arrays beside the runs, as far as they can be read: some may be other users'."""
    found = []
    for folder in sorted(Path(runs_dir).resolve().glob(f"{_PREFIX}{_NAME}*")):
        batches, is_foreign = [], False
        try:
            is_foreign = folder.stat().st_uid != os.geteuid()
            text = read_file(folder / "batches.json")
            batches = msgspec.json.decode(text, type=list[list[str]])
        except (FileNotFoundError, ValueError, RecursionError, msgspec.MsgspecError):
            pass
        except OSError:
            continue
        found.append(Submission(folder, batches, is_foreign))
    return found


@contextmanager
def submitting(runs_dir: Path) -> Iterator[None]:
    """Keep two sweeps, of two users as well, from submitting what neither sees queued yet.

    The file is as the umask has it, so that a group that shares runs_dir can lock it.
    """
    path = runs_dir / ".sweep.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        raise UserError(f"{path}: cannot be locked; it belongs to {owner(path)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_submission(folder: Path) -> Submission:
    """Return the array of `folder`, one without jobs where the folder is gone."""
    try:
        return Submission(folder, json.loads((folder / "batches.json").read_bytes()))
    except FileNotFoundError:
        return Submission(folder, [])
