"""Call the commands of Slurm and read their answers. No torch.

The shell of a user may hold variables that change what these commands show or do: with
SQUEUE_PARTITION set, squeue is silent on the jobs of all other partitions. A call gets none of
them, but those by which a user says where jobs run (KEPT).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resnests.errors import UserError
from resnests.sweep.scheduler import State

_STATES = {
    "PENDING": State.QUEUED,
    "REQUEUED": State.QUEUED,
    "REQUEUE_HOLD": State.QUEUED,
    "REQUEUE_FED": State.QUEUED,
    "RESV_DEL_HOLD": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED,
    "CONFIGURING": State.RUNNING,
    "RUNNING": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "STOPPED": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "COMPLETING": State.ENDING,
    "CANCELLED": State.CANCELLED,
}  # any other is over
OURS = re.compile(r"(SLURM|SBATCH|SQUEUE|SCANCEL|SCONTROL|SINFO)_")
WHERE = ("ACCOUNT", "PARTITION", "QOS", "RESERVATION", "CONSTRAINT", "TIMELIMIT")
KEPT = ("SLURM_CONF", "SLURM_JWT", *(f"SBATCH_{name}" for name in WHERE))
REST = "N/A"  # stands for all tasks of an array that never began, and for a job that is in none
_SUBMIT_LIMIT = r"SubmitJobs?\w*Limit"
# What Slurm says of a limit of any kind, after the word for it if it has one.
_ANY_LIMIT, _WORD = "job submit limit", r"\w+Limit\b|\b(QOS|Assoc)\w+"
_MIN_JOB_AGE = 300  # Slurm's default


@dataclass(frozen=True)
class Seen:
    """Holds a line of squeue's output."""

    job: str  # such as 17_3, or 17 of one that is in no array
    state: State
    node: str
    reason: str  # why it waits, or the word for how it ended


Queue = dict[str, dict[str, Seen]]  # name of the array -> task -> what is seen of it


def query_queue(names: Sequence[str], timeout: float | None = None) -> Queue:
    """Return what squeue shows of the arrays of these names, each of which has an entry."""
    queue: Queue = {name: {} for name in names}
    if not names:
        return queue
    form = "%j|%F|%K|%T|%N|%r"
    which = ("--all", "--states=all", "--array", f"--name={','.join(names)}")
    for line in ask(
        "squeue", "--noheader", *which, f"--format={form}", timeout=timeout
    ).splitlines():
        name, array, task, word, node, reason = line.strip().split("|", 5)
        state = _STATES.get(word, State.OVER)
        why = reason if state is State.QUEUED else word
        job = array if task == REST else f"{array}_{task}"
        queue[name][task] = Seen(job, state, node, why)
    return queue


def site_limits() -> tuple[int, int]:
    """Return the most jobs of an array, and the seconds for which squeue knows of a job that ended.

    A size of 0 says that the site has no arrays. A MinJobAge of 0, with which Slurm forgets no job,
    counts as Slurm's default.
    """
    shown = ask("scontrol", "show", "config")
    size = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    age = re.search(r"MinJobAge\s*=\s*(\d+)", shown)
    return int(size[1]) if size else 1000, (int(age[1]) if age else 0) or _MIN_JOB_AGE


def ask(*command: str, given: str | None = None, timeout: float | None = None) -> str:
    """Return the output of a command of Slurm's; raises a UserError with its complaint, or where
    it takes more than `timeout` seconds.
    """
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"cluster=slurm: {command[0]}: no answer in {timeout:.0f} s") from None
    except OSError as error:
        raise UserError(f"cluster=slurm: {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines()]
        said = "; ".join(filter(None, lines)) or f"exit status {done.returncode}"
        raise UserError(f"cluster=slurm: {command[0]} says: {said}{_hint(said)}")
    return done.stdout


def _hint(said: str) -> str:
    """Return which key helps against what a command said, "" where none is known to."""
    if is_submit_limit(said):
        return " (cluster.runs_per_job packs more runs into a job)"
    return " (cluster.gpus=0 asks for no GPU)" if "generic resource" in said else ""


def is_submit_limit(said: str) -> bool:
    """Return whether a site says that it lets in no more jobs of this user for now."""
    if re.search(_SUBMIT_LIMIT, said):
        return True
    return _ANY_LIMIT in said and re.search(_WORD, said) is None


def given_exclude(options: Sequence[str]) -> list[str]:
    """Return the nodes that sbatch's `options` exclude themselves, as they are written there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-x", "--exclude")
    nodes = parser.parse_known_args(options)[0].exclude
    return [nodes] if nodes else []


def exclude_nodes(arrays: Iterable[str], nodes: str) -> None:
    """Keep the jobs of `arrays` that wait off these nodes and no others."""
    for array in arrays:
        command = ["scontrol", "update", f"jobid={array}", f"excnodelist={nodes}"]
        subprocess.run(command, capture_output=True, env=environment())


def environment() -> dict[str, str]:
    """Return the variables of this process that a command of Slurm's may see.

    Those that a job gets from Slurm are not for the jobs that a sweep in it submits.
    """
    return {k: v for k, v in os.environ.items() if k in KEPT or not OURS.match(k)}
