"""Name the environment variables by which the processes of a sweep know each other. No torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SWEEP = "RESNESTS_SWEEP"  # the folder of the sweep that a job works for, see sweep/protocol.py
RUN = "RESNESTS_RUN"  # the number of the run that a job of Hydra's launcher trains
JOB = "RESNESTS_JOB"  # the number that a batch system gave the job of this process
COMMAND = "RESNESTS_COMMAND"  # what the user typed
DRY_RUN = "RESNESTS_DRY_RUN"  # set where nothing may be written, see begin_dry_run
PROGRESS = "RESNESTS_PROGRESS"  # number of the file that a process shows its progress bar on


def command_line() -> str:
    """Return what the user typed."""
    return os.environ.get(COMMAND, " ".join(sys.argv))


def shell_line(words: Sequence[str]) -> str:
    """Return the command of this process, with `words` behind it, as one types it in a shell."""
    module = Path(__file__).with_name("run.py")
    here = Path(sys.argv[0]).resolve() == module
    return shlex.join(["python", *(["-m", "resnests.run"] if here else [sys.argv[0]]), *words])


def begin_dry_run() -> None:
    """Tell this process and all that it starts that nothing may be written, not even to a cache."""
    os.environ[DRY_RUN] = "1"


def is_dry_run() -> bool:
    """Return whether nothing may be written."""
    return DRY_RUN in os.environ


def python_path() -> str:
    """Return the PYTHONPATH by which other processes find this package."""
    here = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def export_environment() -> None:
    """Set what the processes that are started from now on record, and where they find us."""
    os.environ |= {COMMAND: command_line(), "PYTHONPATH": python_path()}
