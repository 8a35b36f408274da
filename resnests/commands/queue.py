"""List what is in the queue of Slurm, for those who look at runs from outside their sweep."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resnests.errors import UserError
from resnests.results.frame import read_runs
from resnests.results.select import select
from resnests.runs.directory import ANALYSIS
from resnests.runs.files import only_below
from resnests.sweep.executors.slurm_commands import REST, Seen, query_queue
from resnests.sweep.executors.submission import find_submissions
from resnests.sweep.scheduler import State

MOST = 20  # lines
PATIENCE = 15.0  # seconds in which squeue must answer: Slurm's own limits are minutes
ASK_SECONDS = 10.0  # between two questions of the page


def queued_runs(runs_dir: str) -> dict[str, Seen]:
    """Return the jobs of runs below `runs_dir` that wait or have only just begun, by the paths of
    these; raise a UserError where the queue does not answer.
    """
    submissions = find_submissions(runs_dir)
    queue = query_queue([submission.name for submission in submissions], PATIENCE)
    seen = {
        str(Path(runs_dir, path)): job
        for submission in submissions
        for task, batch in enumerate(submission.batches)
        if (job := queue[submission.name].get(str(task)) or queue[submission.name].get(REST))
        for path in batch
    }
    return {path: job for path, job in seen.items() if _is_yet_to_begin(path, job)}


class QueueWatch:
    """Asks the queue in a thread, at most once in some seconds: nobody waits for its answer."""

    def __init__(self, runs_dir: str) -> None:
        self.runs_dir = runs_dir
        self.due = 0.0
        self.thread: threading.Thread | None = None
        self.known: dict[str, Seen] | UserError = {}

    def queued_runs(self) -> dict[str, Seen]:
        """Return what queued_runs found last, nothing before its first answer; raise its
        UserError.
        """
        is_asked = self.thread is not None and self.thread.is_alive()
        if not is_asked and time.monotonic() >= self.due:
            self.due = time.monotonic() + ASK_SECONDS
            self.thread = threading.Thread(target=self._ask, daemon=True)
            self.thread.start()
        if isinstance(self.known, UserError):
            raise self.known
        return self.known

    def _ask(self) -> None:
        try:
            with only_below(self.runs_dir):
                self.known = queued_runs(self.runs_dir)
        except UserError as error:
            self.known = error


def is_queued(runs_dir: str, query: Sequence[str] = ()) -> bool:
    """Return whether runs below `runs_dir` that `query` chooses may start yet: also where the queue
    does not answer, or what it has was planned by nobody.
    """
    root = str(Path(runs_dir))
    try:
        # A run that its analysis trains is no row of its own
        queued = {path.removesuffix(f"/{ANALYSIS}") for path in queued_runs(root)}
        meant = set(select(read_runs(root, planned=True)[0], query)["path"]) if query else queued
    except UserError:
        return True
    return not queued.isdisjoint(meant)


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
