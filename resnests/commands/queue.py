"""List what is in the queue of Slurm, for those who look at runs from outside their sweep."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from resnests.errors import UserError
from resnests.sweep.executors.slurm_commands import REST, Seen, query_queue
from resnests.sweep.executors.submission import find_submissions
from resnests.sweep.scheduler import State

MOST = 20  # lines


def queued_runs(runs_dir: str) -> dict[str, Seen]:
    """Return the jobs of runs below `runs_dir` that wait or have only just begun, by the paths of
    these; raise a UserError where the queue does not answer.
    """
    submissions = find_submissions(runs_dir)
    queue = query_queue([submission.name for submission in submissions])
    seen = {
        os.path.join(runs_dir, path): job
        for submission in submissions
        for task, batch in enumerate(submission.batches)
        if (job := queue[submission.name].get(str(task)) or queue[submission.name].get(REST))
        for path in batch
    }
    return {path: job for path, job in seen.items() if _is_yet_to_begin(path, job)}


def is_queued(runs_dir: str) -> bool:
    """Return whether runs below `runs_dir` may start yet: of a queue that does not answer, too."""
    try:
        return bool(queued_runs(runs_dir))
    except UserError:
        return True


def queue_lines(queued: dict[str, Seen]) -> list[str]:
    """Return how many runs wait in the queue and why, and a line for each, then a line for each
    that is not on record although its job has begun.
    """
    waiting = {path: job for path, job in queued.items() if job.state is State.QUEUED}
    lines = [f"queued: {path}, job {job.job} ({job.reason})" for path, job in waiting.items()]
    if waiting:
        reasons = Counter(job.reason for job in waiting.values()).most_common()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
        lines = [f"{len(waiting)} queued ({counts})", *_some(lines)]
    begun = [(path, job) for path, job in queued.items() if path not in waiting]
    return lines + _some(
        [f"not yet on record: {path}, job {job.job} on {job.node}" for path, job in begun]
    )


def _is_yet_to_begin(path: str, job: Seen) -> bool:
    if job.state is State.QUEUED:
        return True
    return job.state is State.RUNNING and not Path(path, "record.json").exists()


def _some(lines: list[str]) -> list[str]:
    """Return the first of `lines`, and how many more there are."""
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [*lines[:MOST], *more]
