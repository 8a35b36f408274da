"""Jobs in the queue of a batch system, from which a sweep gets its runs done. No torch.

Whatever the system says of a job, a run is as its directory says: a job that is over has done what
is on record there, and what is left goes into another job as long as that helps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from resnests.errors import UserError
from resnests.runs.record import FINAL
from resnests.sweep.child import conclude_lost
from resnests.sweep.plan import Run

TRIES = 3  # jobs in a row in which a run gets no epoch further
SLOWEST = 10.0  # seconds between two looks at the queue; the first ones are closer
REFUSALS = 5  # in a row, with no job left that goes on meanwhile
TICK = 0.2  # seconds


class State(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    OVER = "over"
    CANCELLED = "cancelled"  # and over


@dataclass(eq=False)
class Job:
    """A job that trains `runs`, as the system showed it at the last look."""

    name: str  # as the system's own commands take it
    runs: list[Run]
    state: State = State.QUEUED
    node: str = ""
    reason: str = ""  # why it waits, or how it ended
    began: bool = False

    @property
    def is_at_work(self) -> bool:
        return self.state in (State.RUNNING, State.ENDING)

    @property
    def leaves_nothing(self) -> bool:
        """Whether all of its processes are gone when it is over."""
        return True

    @property
    def is_over(self) -> bool:
        return self.state in (State.OVER, State.CANCELLED)


class System(Protocol):
    """Slurm or Ray. Its methods raise a UserError where it does not answer or refuses."""

    say: Callable[[str], None]  # to the user

    def take(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Jobs for `runs`, or for none of them while `open_jobs` are as many as there may be: new
        ones, or those of an earlier sweep. Of `busy`, which somebody trains, only the latter.
        """

    def look(self, jobs: Sequence[Job]) -> None:
        """Bring `jobs` up to date."""

    def last_words(self, job: Job) -> str:
        """What a job that is over said last, "" where that was nothing."""

    def stop(self, jobs: Sequence[Job], kill: bool) -> None:
        """Have `jobs` write their checkpoints and end, or end at once."""

    def close(self, jobs: Sequence[Job]) -> None:
        """Tidy up; `jobs` go on."""


class Rounds:
    """Brings `todo` to its end in jobs of `system`."""

    def __init__(
        self,
        todo: Sequence[Run],
        system: System,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
        show: Callable[[Sequence[Job]], None],
    ) -> None:
        self.idle = list(todo)  # in no job
        self.system, self.stopping, self.say, self.show = system, stopping, say, show
        self.options = todo[0].config.sweep
        self.jobs: list[Job] = []
        self.unsettled: list[tuple[Job, Run]] = []  # the job is over, the run still shows life
        self.cancelled: list[tuple[Job, Run]] = []  # while it is open whether all are
        self.refusals, self.accepted, self.stopped = 0, False, False
        self.failures: Counter[Run] = Counter()
        self.stalled: Counter[Run] = Counter()  # jobs in a row without an epoch more
        self.epochs = {run: _epochs(run) for run in todo}

    def until_done(self) -> None:
        """Raises a UserError where the system refuses the first jobs, or does not answer."""
        started = time.monotonic()
        try:
            while self._round():
                self._pause(min(SLOWEST, 1 + (time.monotonic() - started) / 30))
        except BaseException:
            self.system.stop(self.jobs, kill=True)
            raise
        finally:
            self.system.close(self.jobs)

    def submit(self) -> list[Job]:
        """Fill the queue and leave it; the jobs."""
        try:
            self._fill()
        finally:
            self.system.close(self.jobs)
        return self.jobs

    def _round(self) -> bool:
        """Whether there is more to wait for."""
        if self.stopping():
            self._stop()
        if self.jobs and self._answered(lambda: self.system.look(self.jobs)):
            over = [job for job in self.jobs if job.is_over]
            self.jobs = [job for job in self.jobs if not job.is_over]
            self.unsettled += [(job, run) for job in over for run in job.runs]
        self._settle()
        self.show(self.jobs)
        if self.stopped:
            return bool(self.jobs)
        self._sort_cancelled()
        self._fill()
        return bool(self.jobs or self.unsettled or self.idle)

    def _fill(self) -> None:
        """Jobs for what is idle and not trained by anybody else."""
        # In this order, as an owner lets go after it has put the end on record
        owned = {run for run in self.idle if run.directory.is_owned()}
        self.idle = [run for run in self.idle if run.directory.status() not in FINAL]
        free = [run for run in self.idle if run not in owned]
        busy = [run for run in self.idle if run in owned]
        taken: list[Job] = []

        def take() -> None:
            taken.extend(self.system.take(free, busy, len(self.jobs)))

        if (free or (busy and not self.accepted)) and self._answered(take):
            self.jobs += taken
            gone = {run for job in taken for run in job.runs}
            self.idle = [run for run in self.idle if run not in gone]

    def _answered(self, ask: Callable[[], object]) -> bool:
        """Whether the system did what `ask` asks of it. It may be away for a while."""
        try:
            ask()
        except UserError as error:
            self.refusals += 1
            if not self.accepted or (not self.jobs and self.refusals == REFUSALS):
                raise
            if self.refusals == 1:
                self.say(f"{error}; asking again")
            return False
        self.refusals, self.accepted = 0, True
        return True

    def _settle(self) -> None:
        """What becomes of the runs of jobs that are over."""
        unsettled, self.unsettled = self.unsettled, []
        words = {job: self.system.last_words(job) for job in {job for job, _ in unsettled}}
        for job, run in unsettled:
            how = ": ".join(filter(None, (job.reason, words[job])))
            gone = job.name if job.leaves_nothing else None
            status = conclude_lost(run, gone, f"job {job.name} ended ({how})")
            if run.directory.is_owned():  # by a process that is dying, or of another sweep
                self.unsettled.append((job, run))
            elif status in FINAL:
                self._fail_fast(status == "diverged")
            elif job.state is State.CANCELLED:
                self.cancelled += [(job, run)] * job.began  # one that waited is unwanted by now
            elif not self._goes_on(job, run, how):
                self._fail_fast(status != "interrupted")

    def _sort_cancelled(self) -> None:
        """One job among others that is cancelled is a loss like any other; where all are, somebody
        wants the sweep to end.
        """
        going = any(job.state in (State.QUEUED, State.RUNNING) for job in self.jobs)
        if going or not self.jobs:
            for job, run in self.cancelled if going else []:
                self._goes_on(job, run, job.reason)
            self.cancelled = []

    def _goes_on(self, job: Job, run: Run, how: str) -> bool:
        """Whether another job is tried for `run`."""
        status = run.directory.status()
        again = not self.stopped and self._is_worth_another(run, status)
        if again:
            self.say(f"{status or 'not started'}: {run.label}, job {job.name} ended ({how})")
            self.idle.append(run)
        return again

    def _is_worth_another(self, run: Run, status: str | None) -> bool:
        if status == "failed":
            self.failures[run] += 1
            return self.failures[run] <= self.options.retries
        before, self.epochs[run] = self.epochs[run], _epochs(run)
        self.stalled[run] = 0 if self.epochs[run] > before else self.stalled[run] + 1
        return self.stalled[run] < TRIES

    def _fail_fast(self, failed: bool) -> None:
        if failed and self.options.fail_fast:
            self._stop()

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.system.stop(self.jobs, kill=False)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + (1.0 if self.stopped else seconds)
        while time.monotonic() < end and (self.stopped or not self.stopping()):
            time.sleep(TICK)


def _epochs(run: Run) -> int:
    record = run.directory.sound_record()
    return record.epochs if record else 0
