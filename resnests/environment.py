"""The environment variables by which processes of a sweep know of each other. Imports nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SWEEP = "RESNESTS_SWEEP"  # the file of the sweep that a process works for
RUN = "RESNESTS_RUN"  # which of its configurations
JOB = "RESNESTS_JOB"  # the number that a batch system gave the job of this process
COMMAND = "RESNESTS_COMMAND"  # what the user typed


def command_line() -> str:
    """Return what the user typed to start this process, or the sweep that it works for."""
    return os.environ.get(COMMAND, " ".join(sys.argv))


def python_path() -> str:
    """Return the PYTHONPATH with which other processes find this package."""
    here = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
