"""What is on disk of jobs in Slurm's queue: a folder for each array of them, beside the runs.

    <runs_dir>/.sweep-resnests-x7f3a2/     the name of the array's jobs is resnests-x7f3a2
        batches.json    which runs each job of the array trains
        orders.jsonl    their configurations, see sweep/protocol.py
        <task>.log      what a job says

It is written before the array is submitted, and found by its name in the queue, so that jobs are
never lost sight of, whichever process dies when.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from resnests.runs.files import write_atomic
from resnests.sweep.plan import Run
from resnests.sweep.protocol import announce
from resnests.text import last_words

_PREFIX = ".sweep-"
_NAME = "resnests-"


@dataclass(frozen=True)
class Submission:
    """An array of jobs."""

    folder: Path
    batches: list[list[str]]  # for each job its runs, as paths below runs_dir

    @property
    def name(self) -> str:
        return self.folder.name.removeprefix(_PREFIX)

    @classmethod
    def write(cls, batches: Sequence[Sequence[Run]]) -> Submission:
        runs = list(chain(*batches))
        runs_dir = Path(runs[0].config.runs_dir).resolve()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX + _NAME, dir=runs_dir))
        announce([replace(run.config, cluster=None) for run in runs], None, folder)
        paths = [[place(run) for run in batch] for batch in batches]
        write_atomic(folder / "batches.json", json.dumps(paths).encode())
        return cls(folder, paths)

    def last_line(self, task: int) -> str:
        """What job `task` said last; that it has no log where it did not get so far."""
        try:
            return last_words(self.folder / f"{task}.log").strip()
        except OSError:
            if not self.folder.is_dir():  # another sweep tidied up
                return ""
            return f"without a log in {self.folder}, which its node must reach"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def place(run: Run) -> str:
    return str(run.directory.path.relative_to(run.config.runs_dir))


def find_submissions(runs_dir: Path | str) -> list[Submission]:
    """Those beside the runs, as far as they can be read: others may be of other users."""
    found = []
    for folder in sorted(Path(runs_dir).resolve().glob(f"{_PREFIX}{_NAME}*")):
        try:
            found.append(Submission(folder, json.loads((folder / "batches.json").read_bytes())))
        except (FileNotFoundError, ValueError):
            found.append(Submission(folder, []))
        except OSError:
            continue
    return found


def members(folder: Path, task: int) -> range:
    """Which of the orders in `folder` are for job `task`; none where the folder is gone."""
    try:
        batches = json.loads((folder / "batches.json").read_bytes())
    except FileNotFoundError:
        return range(0)
    first = sum(map(len, batches[:task]))
    return range(first, first + len(batches[task]))
