"""Run jobs on this machine: of Hydra's launcher for a sweep, of threads for a search. No torch."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from resnests.sweep.devices import Allocation
from resnests.sweep.folders import remove_abandoned
from resnests.sweep.plan import Run
from resnests.sweep.process import run_on_host
from resnests.sweep.protocol import SweepFolder
from resnests.sweep.scheduler import REFUSED, Job, State
from resnests.sweep.stop import Stop, lock_until_exit
from resnests.text import what_goes_on

POLL_SECONDS = 0.2
PREFIX = "resnests-sweep-"  # of no other temporary folder, as those are not locked
CRASHES = 5  # of the launcher, one after the other, with no run reaching its end
FRESHEN_SECONDS = 3600.0  # cleaners of temporary folders spare what was used in the last days

# Starts a job for each of these numbers, and returns or raises when they are over.
Launch = Callable[[list[int]], object]

log = logging.getLogger(__name__)


@contextmanager
def local_sweep(runs: Sequence[Run], allocation: Allocation) -> Iterator[SweepFolder]:
    """Make the folder of a sweep on this machine, known to all processes started meanwhile."""
    remove_abandoned(PREFIX, SweepFolder(Path()).specs.name)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as path:
        folder = SweepFolder(Path(path))
        folder.write(runs, allocation)
        lock_until_exit(folder.specs)
        os.environ |= folder.environment()
        yield folder


class LauncherExecutor:
    """Runs jobs of Hydra's launcher, one a run; what is submitted together is launched together.

    A launcher returns when all of its jobs are over, and where one of its processes dies it gives
    up all of them. So it works in a thread, each job tells by a file how it left its run, and jobs
    that did not are lost.
    """

    waits_for = "waiting for a device"

    def __init__(self, launch: Launch, folder: SweepFolder, report: Callable[[str], None]) -> None:
        self.launch, self.folder, self.report = launch, folder, report
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None  # of the last launch
        self.crashes, self.stopped = 0, False
        self.freshened = time.monotonic()

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Launch a job for each of `runs`, unless jobs of the launch before are open."""
        if open_jobs or not runs:
            return []
        numbers = [run.index for run in runs]
        for number in numbers:
            self.folder.forget(number)
        self.thread = threading.Thread(target=self._launch, args=(numbers,), daemon=True)
        self.thread.start()
        return [Job("", [run]) for run in runs]

    def _launch(self, numbers: list[int]) -> None:
        self.error = None
        try:
            self.launch(numbers)
        except Exception as error:  # the launcher's own: run_job() lets none out
            log.debug("launcher", exc_info=True)
            self.error = error

    def poll(self, jobs: Sequence[Job]) -> None:
        """Read what jobs told; once the launcher is through, the others are lost."""
        assert self.thread is not None
        is_through = not self.thread.is_alive()  # first, as jobs tell before it returns
        active, ended = self.folder.state()
        for job in jobs:
            (run,) = job.runs
            if run.index in ended:
                job.state, job.started = State.OVER, True
                job.outcomes[run] = ended[run.index]
            elif is_through:
                job.state, job.counts = State.OVER, job.started
            elif run.index in active:
                job.state, job.started = State.RUNNING, True
        if is_through and not self.stopped:
            self._judge_launch([job for job in jobs if not job.outcomes])
        self._freshen()

    def _judge_launch(self, lost: Sequence[Job]) -> None:
        """Report what ended the launch of which `lost` jobs are left, and whether to try again."""
        if not lost:
            self.crashes = 0
            return
        if self.error is None:
            reason = f"somebody removed {self.folder.specs}, which stops the jobs of a sweep"
            self.report(f"{reason}; {what_goes_on(lost[0].runs[0].config.trainer.overwrite)}")
            self.crashes = CRASHES
        else:
            reason = f"{type(self.error).__name__}: {self.error}".splitlines()[0]
            if getattr(self.error, "errno", None) == errno.ENOSPC:
                reason += "; joblib needs room in /dev/shm, hydra/launcher=basic needs none"
            self.report(f"the launcher lost a process ({reason}): going on with what is left")
            self.crashes = 0 if any(job.started for job in lost) else self.crashes + 1
            if self.crashes == CRASHES:
                self.report(f"the launcher lost a process {CRASHES} times in a row: giving up")
        for job in lost:
            job.reason = reason
            if self.crashes == CRASHES:
                job.outcomes[job.runs[0]] = REFUSED

    def _freshen(self) -> None:
        """Keep the folder from cleaners, which would stop a sweep of many days."""
        if time.monotonic() - self.freshened > FRESHEN_SECONDS:
            self.freshened = time.monotonic()
            for path in (self.folder.path, *self.folder.path.iterdir()):
                with suppress(OSError):
                    os.utime(path)

    def last_log_line(self, job: Job) -> str:
        """Return nothing: a job on this machine has no log but that of its run."""
        return ""

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Stop all jobs; a second signal reaches them by the terminal, or the batch system."""
        self.stopped = True
        self.folder.stop()

    def close(self, jobs: Sequence[Job]) -> None:
        """Wait for the launcher, as jobs write their checkpoints."""
        self.folder.stop()
        if self.thread:
            self.thread.join()

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next poll."""
        return POLL_SECONDS


class ThreadExecutor:
    """Runs jobs that threads of `pool` wait for, one a run; they stop by `stop`, their own."""

    waits_for = "waiting for a device"

    def __init__(self, pool: Pool, allocation: Allocation, stop: Stop) -> None:
        self.pool, self.stop = pool, stop
        self.report: Callable[[str], None] = lambda line: None  # it has nothing to say
        self.shared = vars(allocation)
        self.futures: dict[Job, Future[str]] = {}

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Put a job for each of `runs` in line."""
        jobs = [Job("", [run]) for run in runs]
        for job in jobs:
            self.futures[job] = self.pool.submit(self._work, job)
        return jobs

    def _work(self, job: Job) -> str:
        job.state, job.started = State.RUNNING, True
        return run_on_host(job.runs[0], self.shared, 1, self.stop)

    def poll(self, jobs: Sequence[Job]) -> None:
        """See which threads are through; raises what one of them raised."""
        for job in jobs:
            future = self.futures[job]
            if future.cancelled():
                job.state = State.CANCELLED
            elif future.done():
                job.state = State.OVER
                job.outcomes[job.runs[0]] = future.result()

    def last_log_line(self, job: Job) -> str:
        """Return nothing: a job of a thread has no log but that of its run."""
        return ""

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Stop all jobs, and take those out of line that did not begin."""
        self.stop.ask()
        for job in jobs:
            self.futures[job].cancel()

    def close(self, jobs: Sequence[Job]) -> None:
        """Do nothing: the pool is its owner's."""

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next poll."""
        return POLL_SECONDS
