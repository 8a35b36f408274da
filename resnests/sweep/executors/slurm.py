"""Jobs of Slurm: arrays, submitted by sbatch and polled by one squeue for all. No torch.

squeue knows of a job that ended for some minutes (MinJobAge), with or without accounting. One that
it does not know is over.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from resnests.config.cluster import Cluster
from resnests.config.schema import Config
from resnests.errors import UserError, require
from resnests.sweep.executors.submission import Submission, find_submissions, place
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import Job, State

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
SLOWEST_SECONDS = 10.0  # between two polls of the queue
_REST = "N/A"  # stands for all tasks of an array that never began


@dataclass(frozen=True)
class Seen:
    """A line of squeue's output."""

    job: str  # such as 17_3
    state: State
    node: str
    reason: str  # why it waits, or the word for how it ended


@dataclass(eq=False, kw_only=True)
class SlurmJob(Job):
    """A task of an array."""

    submission: Submission
    task: int

    def update(self, queue: Queue) -> None:
        """Set the state by what squeue shows, and once it is over by what the job told."""
        seen = queue.get(self.submission.name, {})
        now = seen.get(str(self.task)) or seen.get(_REST) or Seen("", State.OVER, "", "")
        self.state, self.node, self.reason = now.state, now.node, now.reason
        self.name = now.job if now.job.endswith(f"_{self.task}") else self.name
        self.started |= bool(now.node) or now.state is State.RUNNING
        if self.is_over:
            told = self.submission.specs.state()[1]
            by_place = {place(run): run for run in self.runs}
            numbers = self.submission.numbers(self.task)
            for number, path in zip(numbers, self.submission.batches[self.task], strict=True):
                if number in told and path in by_place:
                    self.outcomes[by_place[path]] = told[number]


Queue = dict[str, dict[str, Seen]]  # name of the array -> task -> what is seen of it


class SlurmExecutor:
    """Jobs in the queue of Slurm for the runs of `config`, whose runs_dir all nodes see."""

    report: Callable[[str], None] = staticmethod(print)

    def __init__(self, config: Config) -> None:
        assert config.cluster is not None
        self.cluster: Cluster = config.cluster
        for command in ("sbatch", "squeue", "scontrol", "scancel"):
            where = "on the PATH, as on a login node of a Slurm cluster"
            require(shutil.which(command) is not None, "cluster", "slurm", f"{command} {where}")
        self.runs_dir = Path(config.runs_dir).resolve()
        self.gpus = int(self.cluster.gpus_of_a_job(config.trainer.device))
        self.submitted: list[Submission] = []

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Return the jobs that the queue has for these runs, and new ones for the rest."""
        limit = self.cluster.jobs
        if limit is not None and open_jobs >= limit:
            return []
        with self._lock():
            jobs = self._adopt([*runs, *busy])
            known = {run for job in jobs for run in job.runs}
            rest = [run for run in runs if run not in known]
            room = None if limit is None else limit - open_jobs - len(jobs)
            return jobs + (self._submit(rest, room) if rest and (room is None or room > 0) else [])

    def _lock(self) -> FileLock:
        """Return the lock that keeps two sweeps from submitting what neither sees queued yet."""
        return FileLock(self.runs_dir / ".sweep.lock")

    def _adopt(self, runs: Sequence[Run]) -> list[Job]:
        """Return the jobs in the queue for any of `runs`, and remove what ended arrays left."""
        by_place = {place(run): run for run in runs}
        submissions = find_submissions(self.runs_dir)
        queue = query_queue([submission.name for submission in submissions])
        found: list[Job] = []
        for submission in submissions:
            jobs = [
                SlurmJob("", [], submission=submission, task=task)
                for task in range(len(submission.batches))
            ]
            for job in jobs:
                job.update(queue)
            if all(job.is_over for job in jobs):
                submission.remove()
            for job in jobs:
                job.runs = [by_place[p] for p in submission.batches[job.task] if p in by_place]
                found += [job] if job.runs and not job.is_over else []
        if found:
            self.report(f"{len(found)} job(s) of these runs are in the queue already")
        return found

    def _submit(self, runs: list[Run], room: int | None) -> list[Job]:
        size, most = self.cluster.runs_per_job or 1, _max_array_size()
        batches = [runs[i : i + size] for i in range(0, len(runs), size)]
        jobs: list[Job] = []
        before = None
        for start in range(0, len(batches), most):
            some = batches[start : start + most]
            submission = Submission.write(some)
            try:
                array = self._sbatch(submission, room, before)
            except UserError as error:
                submission.remove()
                if not jobs:
                    raise
                self.report(str(error))
                break
            before = array if room else None
            self.submitted.append(submission)
            jobs += [
                SlurmJob(f"{array}_{task}", list(batch), submission=submission, task=task)
                for task, batch in enumerate(some)
            ]
        count = sum(len(job.runs) for job in jobs)
        self.report(f"submitted {_named(jobs)} of Slurm for {count} runs")
        return jobs

    def _sbatch(self, submission: Submission, room: int | None, before: str | None) -> str:
        """Submit an array; return its number."""
        c = self.cluster
        options = {
            "job-name": submission.name,
            "array": f"0-{len(submission.batches) - 1}" + (f"%{room}" if room else ""),
            "dependency": before and f"afterany:{before}",  # as the limit is one of each array
            "output": f"{submission.folder}/%a.log",
            "open-mode": "append",
            "signal": f"B:USR2@{c.grace}",
            "ntasks": 1,
            "cpus-per-task": c.cpus,
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "mem": c.memory,
            "time": c.slurm_time(),
            "partition": c.partition,
            "account": c.account,
            "qos": c.qos,
        }
        words = [f"--{key}={value}" for key, value in options.items() if value is not None]
        script = ["#!/bin/sh", f"cd {shlex.quote(os.getcwd())} || exit 1"]
        variables = submission.specs.environment()
        script += [f"export {key}={shlex.quote(text)}" for key, text in variables.items()]
        script += [
            *(c.setup or []),
            f"exec {shlex.quote(sys.executable)} -m resnests.sweep.executors.slurm_job",
        ]
        given = "\n".join(script) + "\n"
        answer = _ask("sbatch", "--parsable", "--requeue", *words, *(c.options or []), given=given)
        return answer.strip().partition(";")[0]

    def poll(self, jobs: Sequence[Job]) -> None:
        """Bring `jobs` up to date by one call of squeue."""
        mine = [job for job in jobs if isinstance(job, SlurmJob)]
        queue = query_queue(sorted({job.submission.name for job in mine}))
        for job in mine:
            job.update(queue)

    def last_log_line(self, job: Job) -> str:
        """Return the last line of a job's own log, "" where it was cancelled in the queue."""
        assert isinstance(job, SlurmJob)
        never = job.state is State.CANCELLED and not job.started
        return "" if never else job.submission.last_log_line(job.task)

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Cancel what is queued, and signal SIGTERM to what runs; or cancel all with `kill`."""
        names = [job.name for job in jobs if job.name]
        for submission in self.submitted:  # a job that starts in this instant finds no spec
            submission.specs.stop()
        for how in ([],) if kill else (["--state=PENDING"], ["--batch", "--signal=TERM"]):
            if names:  # those to which it does not apply are complained of
                subprocess.run(["scancel", "--quiet", *how, *names], capture_output=True)

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next squeue: more the longer the sweep takes."""
        return min(SLOWEST_SECONDS, 1 + elapsed / 30)

    def close(self, jobs: Sequence[Job]) -> None:
        """Remove the folders of arrays that are through."""
        going = {job.submission.folder for job in jobs if isinstance(job, SlurmJob)}
        for submission in self.submitted:
            if submission.folder not in going:
                submission.remove()
        with suppress(UserError), self._lock():
            self._adopt([])


def query_queue(names: Sequence[str]) -> Queue:
    """Return what squeue shows of the arrays of these names."""
    queue: Queue = defaultdict(dict)
    if not names:
        return queue
    form = "%j|%F|%K|%T|%N|%r"
    words = ("squeue", "--noheader", "--states=all", "--array", f"--name={','.join(names)}")
    for line in _ask(*words, f"--format={form}").splitlines():
        name, array, task, word, node, reason = line.strip().split("|", 5)
        state = _STATES.get(word, State.OVER)
        why = reason if state is State.QUEUED else word
        queue[name][task] = Seen(f"{array}_{task}", state, node, why)
    return queue


def _max_array_size() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return int(found[1]) if found else 1000


def _named(jobs: Sequence[Job]) -> str:
    if len(jobs) == 1:
        return f"job {jobs[0].name}"
    return f"jobs {jobs[0].name} to {jobs[-1].name}"


def _ask(*command: str, given: str | None = None) -> str:
    """Return the output of a command of Slurm's; raises a UserError with its complaint."""
    # What a job that we may be in was given is not for the jobs that we submit.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, env=kept)
    except OSError as error:
        raise UserError(f"cluster=slurm: {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines()]
        said = "; ".join(filter(None, lines)) or f"exit status {done.returncode}"
        raise UserError(f"cluster=slurm: {command[0]} says: {said}{_hint(said)}")
    return done.stdout


def _hint(said: str) -> str:
    return " (cluster.gpus=0 asks for no GPU)" if "generic resource" in said else ""
