"""Do a job of Slurm: train some runs of a sweep, several at once where its node has room.

    python -m resnests.sweep.executors.slurm_job     # RESNESTS_SWEEP says of which sweep

Shortly before its time limit a job gets SIGUSR2. It then writes checkpoints and queues again by
itself, as the sweep may be gone, unless it got nowhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

from resnests.environment import JOB
from resnests.errors import UserError
from resnests.runs.record import FINAL
from resnests.sweep.devices import allocate
from resnests.sweep.executors.slurm_commands import environment
from resnests.sweep.executors.submission import read_submission
from resnests.sweep.folders import temporary_folder
from resnests.sweep.job import run_job
from resnests.sweep.plan import Run, known_memory
from resnests.sweep.process import last_log_line
from resnests.sweep.protocol import SweepFolder
from resnests.sweep.stop import Stop


def main() -> int:
    """Train the runs of this job; return 0 where every one has come to its end."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")  # none where a site has no arrays
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]
    os.environ[JOB] = job
    folder = SweepFolder.of_this_job()
    submission = read_submission(folder.path)
    numbers = submission.numbers(int(task or 0)) if submission.batches else range(0)
    runs = [spec.as_run(number) for number in numbers if (spec := folder.read(number))]
    before = _unfinished(runs)
    for run in before:
        folder.forget(run.index)  # as it was left by this job before it was queued again
    with Stop(folder.specs) as stop:
        _train(list(before))
    left = _unfinished(runs)
    for run, epochs in left.items():
        if epochs is None:
            print(last_log_line(run.directory), flush=True)
    if left and left != before and stop.last == signal.SIGUSR2:
        with suppress(OSError):  # a node without scontrol: the sweep submits again
            subprocess.run(["scontrol", "requeue", job], env=environment())
    return 1 if left else 0


def _train(runs: list[Run]) -> None:
    """Train these runs, which share what this job has."""
    if not runs:
        return
    at_once, aside = 1, ""
    with ExitStack() as folder:
        with suppress(UserError):  # which each of them says by itself
            at_once = allocate(runs[0].config, len(runs), known_memory(runs)).concurrent
            aside = str(folder.enter_context(temporary_folder()))
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda run: run_job(run.index, at_once, aside), runs))


def _unfinished(runs: list[Run]) -> dict[Run, int | None]:
    """Return the runs that are not at their end, with their epochs; None where they have no record
    but what they start afresh over.
    """
    left: dict[Run, int | None] = {}
    for run in runs:
        record = run.directory.record_or_none()
        if record is None or run.directory.record_digest() == run.replaces:
            left[run] = None
        elif record.status not in FINAL:
            left[run] = record.epochs
    return left


if __name__ == "__main__":
    sys.exit(main())
