"""Follow a job of Slurm, a task of an array, by what squeue shows and the job tells. No torch."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from resnests.sweep.executors.slurm_commands import REST, Seen
from resnests.sweep.executors.slurm_script import LACKS, SETUP
from resnests.sweep.executors.submission import NO_LOG, Submission, place
from resnests.sweep.process import log_line
from resnests.sweep.scheduler import BUSY, REFUSED, Job, State

UNLISTED = "not listed by squeue"


@dataclass(eq=False, kw_only=True)
class SlurmJob(Job):
    """Holds a task of an array."""

    submission: Submission
    task: int
    is_released: bool = False  # and over for this sweep, whatever becomes of it

    def __post_init__(self) -> None:
        if self.submission.is_foreign:
            # How it ends says nothing of a job of this user's: the records of its runs do.
            self.counts = self.dies_as_one = False

    def release(self) -> None:
        """Wait no longer for the job of another user."""
        self.is_released, self.state = True, State.OVER
        self.outcomes = dict.fromkeys(self.runs, BUSY)

    def update(self, seen: dict[str, Seen], is_gone: bool, ended: Container[int]) -> None:
        """Set the state by what squeue shows of the array, and outcomes by what the job told.

        Where squeue shows nothing, `is_gone` says whether that was so for long enough, and `ended`
        are the numbers of the runs of which jobs of the array told.
        """
        if self.is_released:
            return
        own = seen.get(str(self.task))
        now = own or seen.get(REST)
        numbers = self.submission.numbers(self.task)
        if now is None:
            # One that has not begun when its specs are removed finds nothing to do.
            may_go_on = self.started or self.submission.specs.specs.exists()
            told_all = all(number in ended for number in numbers)
            if may_go_on and not (seen or is_gone or told_all):
                self.reason = UNLISTED
                return
            now = Seen("", State.OVER, "", "no longer in the queue")
        self.state, self.reason = now.state, now.reason
        self.node = now.node or self.node  # squeue forgets it with the job
        self.name = own.job if own else self.name or now.job
        self.started |= bool(now.node) or now.state is State.RUNNING
        if self.is_over and self.submission.is_foreign:
            self.state = State.OVER  # cancelled was the other's wish
        elif self.is_over:
            by_place = {place(run): run for run in self.runs}
            for number, path in zip(numbers, self.submission.batches[self.task], strict=True):
                told = self.submission.specs.outcome(number) if path in by_place else None
                if told:
                    self.outcomes[by_place[path]] = told
            if self.runs:
                self._refuse_what_did_not_begin()

    def _refuse_what_did_not_begin(self) -> None:
        """Note what another job would not mend: a line of cluster.setup that fails, a node that
        lacks something.
        """
        said = self.submission.last_log_line(self.task)
        has_no_log = said.startswith(NO_LOG) and self.reason == "FAILED" and bool(self.node)
        if has_no_log or said.startswith((SETUP, LACKS)):
            for run in self.runs:
                if run not in self.outcomes and not run.directory.is_locked():
                    self.outcomes[run] = REFUSED
                    log_line(run, f"{LACKS}{self.node} left it {said}" if has_no_log else said)
