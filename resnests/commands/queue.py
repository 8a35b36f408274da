"""List what waits in the queue of Slurm, for those who look at runs from outside their sweep."""

from __future__ import annotations

from collections import Counter

from resnests.errors import UserError
from resnests.sweep.executors.slurm import query_queue
from resnests.sweep.executors.submission import find_submissions
from resnests.sweep.scheduler import State

MOST = 20  # lines


def queue_lines(runs_dir: str) -> list[str]:
    """Return how many runs below `runs_dir` are in the queue, then a line for each."""
    submissions = find_submissions(runs_dir)
    try:
        queue = query_queue([submission.name for submission in submissions])
    except UserError as error:
        return [str(error)]
    waiting = [
        (path, seen)
        for submission in submissions
        for task, batch in enumerate(submission.batches)
        if (seen := queue[submission.name].get(str(task))) and seen.state is State.QUEUED
        for path in batch
    ]
    if not waiting:
        return []
    reasons = Counter(seen.reason for _, seen in waiting).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    lines = [f"queued: {path}, job {seen.job} ({seen.reason})" for path, seen in waiting]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [f"{len(waiting)} queued ({counts})", *lines[:MOST], *more]
