"""List what is in the queue of Slurm, for those who look at runs from outside their sweep."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from resnests.errors import UserError
from resnests.sweep.executors.slurm_commands import REST, query_queue
from resnests.sweep.executors.submission import find_submissions
from resnests.sweep.scheduler import State

MOST = 20  # lines


def queue_lines(runs_dir: str) -> list[str]:
    """Return how many runs below `runs_dir` wait in the queue, and a line for each, then a line for
    each that is not on record although its job has begun.
    """
    submissions = find_submissions(runs_dir)
    try:
        queue = query_queue([submission.name for submission in submissions])
    except UserError as error:
        return [str(error)]
    shown = [
        (path, seen)
        for submission in submissions
        for task, batch in enumerate(submission.batches)
        if (seen := queue[submission.name].get(str(task)) or queue[submission.name].get(REST))
        for path in batch
    ]
    waiting = [(path, seen) for path, seen in shown if seen.state is State.QUEUED]
    begun = [(path, seen) for path, seen in shown if seen.state is State.RUNNING]
    lines = [f"queued: {path}, job {seen.job} ({seen.reason})" for path, seen in waiting]
    if waiting:
        reasons = Counter(seen.reason for _, seen in waiting).most_common()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
        lines = [f"{len(waiting)} queued ({counts})", *_some(lines)]
    return lines + _some(
        [
            f"not yet on record: {path}, job {seen.job} on {seen.node}"
            for path, seen in begun
            if not (Path(runs_dir) / path / "record.json").exists()
        ]
    )


def _some(lines: list[str]) -> list[str]:
    """Return the first of `lines`, and how many more there are."""
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [*lines[:MOST], *more]
