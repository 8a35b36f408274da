"""Bring runs to their end in jobs of an executor: this machine's, Slurm's or Ray's. No torch.

The run directories are the only truth. Whatever an executor says of a job, a run is as its own
record says, so that any death of any process leaves nothing to repair and the same command goes on.

A run is submitted again by one rule:
- A run that failed by itself (an exception, or its process was killed while its job lived) is tried
  `sweep.retries` more times.
- A run whose job was lost (its node, its time limit, the launcher's process) or that was
  interrupted by somebody else goes on as long as each job gets an epoch further, and ends after
  three jobs in a row that do not.
- A run that this host or the configuration refuses, or for which the host has no device that
  works, is not tried again: nothing would change. On a cluster it goes on elsewhere, if another
  node trains (executors/nodes.py), which also decides whether a device that failed under a run was
  at fault, or a node that could not read what the run needs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from resnests.errors import UserError
from resnests.runs.record import FINAL, UnreadableRun
from resnests.sweep.plan import Run
from resnests.sweep.process import record_lost_job

STALLED_JOBS = 3  # in a row in which a run gets no epoch further
REFUSALS = 5  # in a row, with no job left that goes on meanwhile
LOOKS = 5  # in a row at a run whose files cannot be read, until nobody waits for it
KILL_SECONDS = 3.0  # for which killed jobs are waited for: a summary follows
TICK_SECONDS = 0.2  # how fast a pause notices that the sweep is to stop

# What a job says of a run that it could not, or need not, bring to an end on record.
BUSY, REFUSED, NO_DEVICE = "busy", "refused", "no device"
SUSPECT = "device failed"  # the only one that the job had, which passes its trial
UNREADABLE = "unreadable"  # what the run needs, on this node
AGAIN = "again"  # what an executor makes of one of these: it goes on in another job, at no cost


class State(Enum):
    """Names where a job is in the life that every executor's jobs have."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    OVER = "over"
    CANCELLED = "cancelled"  # and over


@dataclass(eq=False)
class Job:
    """Holds a job that trains `runs`, as the executor saw it at the last poll."""

    name: str  # as the executor's own commands take it, "" on this machine
    runs: list[Run]
    state: State = State.QUEUED
    node: str = ""
    reason: str = ""  # why it waits, or how it ended
    started: bool = False
    # What it said itself of its runs: a status of the record, or one of the words above.
    outcomes: dict[Run, str] = field(default_factory=dict)
    counts: bool = True  # as one of the jobs in which its runs get no further
    dies_as_one: bool = True  # once it is over none of its processes is left

    @property
    def is_active(self) -> bool:
        """Return whether its runs may be training."""
        return self.state in (State.RUNNING, State.ENDING)

    @property
    def is_over(self) -> bool:
        """Return whether it has ended, cancelled or not."""
        return self.state in (State.OVER, State.CANCELLED)


class Executor(Protocol):
    """Describes the place where jobs run. Its methods raise a UserError where it refuses or is
    silent.
    """

    report: Callable[[str], None]  # prints a line for the user

    @property
    def waits_for(self) -> str | None:
        """Return what runs wait for that have not begun, None where a queue tells that."""

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Return new jobs for `runs`, none while `open_jobs` are as many as there may be.

        A queue may hold jobs of an earlier sweep for them, or for runs that are `busy` as another
        process trains them: those are returned instead.
        """

    def poll(self, jobs: Sequence[Job]) -> None:
        """Bring `jobs` up to date."""

    def last_log_line(self, job: Job) -> str:
        """Return what a job that is over printed last, "" where that was nothing."""

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Ask `jobs` to write their checkpoints and end, or with `kill` end them at once."""

    def close(self, jobs: Sequence[Job]) -> None:
        """Release what the executor holds; `jobs` go on where they can."""

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next poll, `elapsed` seconds after the first."""


class Scheduler:
    """Brings `runs`, all of one sweep, to their end in jobs of `executor`."""

    def __init__(
        self,
        runs: Sequence[Run],
        executor: Executor,
        stopping: Callable[[], bool],
        report: Callable[[str], None],
    ) -> None:
        self.idle = list(runs)  # in no job
        self.executor, self.stopping, self.report = executor, stopping, report
        self.options = runs[0].config.sweep
        self.jobs: list[Job] = []
        self.unsettled: list[tuple[Job, Run]] = []  # the job is over, the run has a heartbeat yet
        self.cancelled: list[tuple[Job, Run]] = []  # while it is open whether all jobs are
        self.refusals, self.accepted, self.stopped = 0, False, False
        self.failures: Counter[Run] = Counter()
        self.stalled: Counter[Run] = Counter()  # jobs in a row without an epoch more
        self.unread: Counter[Run] = Counter()  # looks in a row at what cannot be read
        self.epochs = {run: _epochs(run) for run in runs}

    def rounds(self) -> Generator[list[Job], None, None]:
        """Submit, poll and settle until every run is at its end; yields the open jobs each round.

        Raises a UserError where the executor refuses the first jobs, or does not answer.
        """
        started = time.monotonic()
        try:
            while self._round():
                yield self.jobs
                self._pause(self.executor.pause(time.monotonic() - started))
        except BaseException:
            self.executor.cancel(self.jobs, kill=True)
            self._record_killed()
            raise
        finally:
            self.executor.close(self.jobs)

    def submit(self) -> list[Job]:
        """Fill the queue and leave it; return the jobs."""
        try:
            self._fill()
        finally:
            self.executor.close(self.jobs)
        return self.jobs

    def given_up(self, runs: Sequence[Run]) -> list[Run]:
        """Return those of `runs` that no job goes on with, finished or not."""
        going_on = {run for job in self.jobs for run in job.runs}
        going_on |= {*self.idle, *(run for _, run in self.unsettled)}
        return [run for run in runs if run not in going_on]

    def _round(self) -> bool:
        """Go once through all jobs; return whether there is more to wait for."""
        if self.stopping():
            self._stop()
        if self.jobs and self._answered(lambda: self.executor.poll(self.jobs)):
            over = [job for job in self.jobs if job.is_over]
            self.jobs = [job for job in self.jobs if not job.is_over]
            self.unsettled += [(job, run) for job in over for run in job.runs]
        self._settle()
        if self.stopped:
            return bool(self.jobs)
        self._sort_cancelled()
        self._fill()
        return bool(self.jobs or self.unsettled or self.idle)

    def _fill(self) -> None:
        """Submit jobs for the idle runs that nobody else trains."""
        free: list[Run] = []
        busy: list[Run] = []
        idle, self.idle = self.idle, []
        for run in idle:
            with self._reading(run, self.idle, run):
                # The lock is asked first: its holder releases it after the end is on record.
                runs = busy if run.directory.is_locked() else free
                if run.status() not in FINAL:
                    runs.append(run)
                    self.idle.append(run)
        submitted: list[Job] = []

        def submit() -> None:
            submitted.extend(self.executor.submit(free, busy, len(self.jobs)))

        if (free or (busy and not self.accepted)) and self._answered(submit):
            self.jobs += submitted
            gone = {run for job in submitted for run in job.runs}
            self.idle = [run for run in self.idle if run not in gone]

    def _answered(self, ask: Callable[[], object]) -> bool:
        """Return whether the executor did what `ask` asks of it: it may be away for a while."""
        try:
            ask()
        except UserError as error:
            self.refusals += 1
            if not self.accepted or (not self.jobs and self.refusals == REFUSALS):
                raise
            if self.refusals == 1:
                self.report(f"{error}; asking again")
            return False
        self.refusals, self.accepted = 0, True
        return True

    @contextmanager
    def _reading(self, run: Run, later: list[Any], entry: Any) -> Iterator[None]:
        """Append `entry` to `later` where the files of `run` cannot be read, as while a disk is
        away; after some looks in a row nobody waits for that run, and the others go on.
        """
        try:
            yield
        except UnreadableRun as error:
            self.unread[run] += 1
            if self.unread[run] == 1:
                self.report(f"{error}; looking again")
            if self.unread[run] < LOOKS:
                later.append(entry)
        else:
            self.unread.pop(run, None)

    def _settle(self) -> None:
        """Decide what becomes of the runs of jobs that are over.

        A job is over before its processes are: a run that another process still holds stays
        unsettled until its lock is free. Only then does its record say how it ended.
        """
        unsettled, self.unsettled = self.unsettled, []
        lines = {
            job: self.executor.last_log_line(job)
            for job in {job for job, run in unsettled if job.outcomes.get(run, AGAIN) == AGAIN}
        }
        for job, run in unsettled:
            how = ": ".join(filter(None, (job.reason, lines.get(job, ""))))
            with self._reading(run, self.unsettled, (job, run)):
                self._settle_run(job, run, how)

    def _settle_run(self, job: Job, run: Run, how: str) -> None:
        """Decide what becomes of a run whose job is over, and ended as `how` says."""
        # One that waited here for a device when the sweep was stopped had no job of its own
        waited = self.stopped and not (job.started or job.name)
        if not waited and (run not in job.outcomes or run.status() == "running"):
            record_lost_job(run, job.name if job.dies_as_one else None, _ended(job, how))
        status = run.status()
        if status in FINAL:
            self._fail_fast(status == "diverged")
        elif run.directory.is_locked():  # by a process that is dying, or of another sweep
            if job.outcomes.get(run) == BUSY:
                self.idle.append(run)
            else:
                self.unsettled.append((job, run))
        elif job.state is State.CANCELLED:
            self.cancelled += [(job, run)] * job.started  # one that waited is unwanted by now
        elif not self._goes_on(job, run, how):
            self._fail_fast(status != "interrupted")

    def _sort_cancelled(self) -> None:
        """Submit the runs of cancelled jobs again while others go on.

        One job among others that is cancelled is a loss like any other; where all are, somebody
        wants the sweep to end.
        """
        going = any(job.state in (State.QUEUED, State.RUNNING) for job in self.jobs)
        if going or not self.jobs:
            for job, run in self.cancelled if going else []:
                self._goes_on(job, run, job.reason)
            self.cancelled = []

    def _goes_on(self, job: Job, run: Run, how: str) -> bool:
        """Return whether another job is tried for `run`, and put it in line if so."""
        status = run.status()
        again = not self.stopped and self._deserves_another_job(job, run, status)
        if again:
            if job.counts and job.outcomes.get(run) != BUSY:
                self.report(
                    f"{status or 'not started'}: {run.label}, {_ended(job, how)}; trying again"
                )
            self.idle.append(run)
        return again

    def _deserves_another_job(self, job: Job, run: Run, status: str | None) -> bool:
        """Return whether another job could finish `run`: the rule at the head of this module."""
        outcome = job.outcomes.get(run)
        if outcome in (BUSY, AGAIN):  # another sweep trained it until now, or its node was at fault
            return True
        if outcome in (REFUSED, NO_DEVICE):
            return False
        if outcome in ("failed", "killed", SUSPECT, UNREADABLE) or status == "failed":
            self.failures[run] += 1
            return self.failures[run] <= self.options.retries
        before, self.epochs[run] = self.epochs[run], _epochs(run)
        further = self.epochs[run] > before
        self.stalled[run] = 0 if further else self.stalled[run] + job.counts
        return self.stalled[run] < STALLED_JOBS

    def _fail_fast(self, failed: bool) -> None:
        if failed and self.options.fail_fast:
            self._stop()

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.executor.cancel(self.jobs, kill=False)

    def _record_killed(self) -> None:
        """Record how the runs of killed jobs ended, as far as these die within a moment."""
        end = time.monotonic() + KILL_SECONDS
        active = [(job, run) for job in self.jobs if job.is_active for run in job.runs]
        for job, run in active:
            while run.directory.is_locked() and time.monotonic() < end:
                time.sleep(TICK_SECONDS)
            record_lost_job(run, job.name if job.dies_as_one else None, _ended(job, "cancelled"))

    def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the sweep is to stop."""
        end = time.monotonic() + (min(seconds, 1.0) if self.stopped else seconds)
        while (left := end - time.monotonic()) > 0 and (self.stopped or not self.stopping()):
            time.sleep(min(TICK_SECONDS, left))


def _ended(job: Job, how: str) -> str:
    name = f"job {job.name}" if job.name else "its job"
    return f"{name} ended ({how})" if how else f"{name} ended"


def _epochs(run: Run) -> int:
    record = run.directory.record_or_none()
    return record.epochs if record else 0
