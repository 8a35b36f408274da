"""Train runs in jobs of Slurm: arrays, submitted by sbatch, polled by one squeue for all. No torch.

squeue knows of a job that ended for some minutes (MinJobAge), with or without accounting. That it
lists nothing of an array is no evidence of an end: a controller may have lost its state, a site
may rename jobs. Such a job is over once it told so itself in its folder, or once squeue, which
answered, did not list it for longer than MinJobAge. Folders are removed on the same evidence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path

from resnests.config.cluster import Cluster, slurm_seconds
from resnests.config.schema import Config
from resnests.errors import UserError, require
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL
from resnests.sweep.executors.nodes import Nodes
from resnests.sweep.executors.slurm_commands import (
    ask,
    environment,
    exclude_nodes,
    given_exclude,
    is_submit_limit,
    query_queue,
    site_limits,
)
from resnests.sweep.executors.slurm_lanes import Lanes
from resnests.sweep.executors.slurm_script import job_script
from resnests.sweep.executors.slurm_task import UNLISTED, SlurmJob
from resnests.sweep.executors.submission import (
    Submission,
    find_submissions,
    place,
    submitting,
)
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import Job, State

SLOWEST_SECONDS = 10.0  # between two polls of the queue
SHELLS_TIME = "SBATCH_TIMELIMIT"  # where cluster.time is null


class SlurmExecutor:
    """Runs jobs of Slurm for the runs of `config`, whose runs_dir all nodes see."""

    report: Callable[[str], None] = staticmethod(print)
    is_drawn = False  # whether a live table shows why jobs wait

    waits_for = None

    def __init__(self, config: Config) -> None:
        assert config.cluster is not None
        self.cluster: Cluster = config.cluster
        for command in ("sbatch", "squeue", "scontrol", "scancel"):
            where = "on the PATH, as on a login node of a Slurm cluster"
            require(shutil.which(command) is not None, "cluster", "slurm", f"{command} {where}")
        self._require_grace()
        self.runs_dir = Path(config.runs_dir).resolve()
        self.gpus = int(self.cluster.gpus_of_a_job(config.trainer.device))
        self.submitted: list[Submission] = []
        self.places: set[str] = set()  # of the runs of this sweep
        self.is_stopping = False
        self.signalled: set[str] = set()  # names of jobs
        self.full: int | None = None  # open jobs with which the site let in no other
        self.refusal = ""
        self.reasons: set[str] = set()  # why jobs wait, as last reported
        self.took = 0.0  # seconds of the last poll
        self.nodes = Nodes(lambda line: self.report(line))

    def _require_grace(self) -> None:
        """Refuse a limit of the user's shell that has no room for cluster.grace."""
        limit = os.environ.get(SHELLS_TIME, "")
        seconds = slurm_seconds(limit) if self.cluster.time is None else None
        expected = f"more than cluster.grace={self.cluster.grace} seconds, or cluster.time"
        ok = seconds is None or seconds > (self.cluster.grace or 0)
        require(ok, SHELLS_TIME, limit, expected)

    @cached_property
    def limits(self) -> tuple[int, int]:
        """Return the site's MaxArraySize, 0 where it has no arrays, and MinJobAge."""
        return site_limits()

    def submit(self, runs: Sequence[Run], busy: Sequence[Run], open_jobs: int) -> list[Job]:
        """Return the jobs that the queue has for these runs, and new ones for the rest."""
        limit = self.cluster.jobs
        if limit is not None and open_jobs >= limit:
            return []
        if self.full is not None and open_jobs >= self.full:
            return []
        with submitting(self.runs_dir):
            jobs = self._adopt([*runs, *busy])
            known = {run for job in jobs for run in job.runs}
            rest = [run for run in runs if run not in known]
            room = None if limit is None else limit - open_jobs - len(jobs)
            if rest and (room is None or room > 0):
                return jobs + self._submit(rest, room, open_jobs + len(jobs))
            return jobs

    def _adopt(self, runs: Sequence[Run]) -> list[Job]:
        """Return the jobs in the queue for any of `runs`, and remove what ended arrays left."""
        by_place = {place(run): run for run in runs}
        self.places |= by_place.keys()
        submissions = find_submissions(self.runs_dir)
        found: list[SlurmJob] = []
        arrays = [
            [SlurmJob("", [], submission=s, task=task) for task in range(len(s.batches))]
            for s in submissions
        ]
        self._update(list(chain(*arrays)))
        for submission, jobs in zip(submissions, arrays, strict=True):
            is_being_written = not jobs and submission.age() <= self.limits[1]
            is_over = all(job.is_over for job in jobs) and not is_being_written
            if is_over and not submission.is_foreign:
                submission.remove()
            for job in jobs:
                job.runs = [by_place[p] for p in submission.batches[job.task] if p in by_place]
                found += [job] if job.runs and not job.is_over else []
        unlisted = sum(job.reason == UNLISTED for job in found)
        if unlisted:
            age = f"they count as over after {self.limits[1]} s"
            self.report(f"squeue does not list {unlisted} job(s) of these runs; {age}")
        if found[unlisted:]:
            others = sum(job.submission.is_foreign for job in found)
            whose = f" ({others} of other users)" if others else ""
            count = len(found) - unlisted
            self.report(f"{count} job(s) of these runs are in the queue already{whose}")
        return list(found)

    def _update(self, jobs: Sequence[SlurmJob]) -> None:
        """Bring `jobs` up to date by one call of squeue."""
        submissions = {job.submission.folder: job.submission for job in jobs}
        queue = query_queue(sorted(submission.name for submission in submissions.values()))
        gone, ended = {}, {}
        for folder, submission in submissions.items():
            seconds = submission.unlisted_seconds(bool(queue[submission.name]))
            gone[folder] = seconds > 0 and seconds > self.limits[1]  # asked for when needed
            ended[folder] = set() if queue[submission.name] else submission.specs.ended()
        for job in jobs:
            folder = job.submission.folder
            job.update(queue[job.submission.name], gone[folder], ended[folder])

    def _submit(self, runs: list[Run], room: int | None, open_jobs: int) -> list[Job]:
        """Submit arrays for `runs`, smaller ones where the site lets in no more; return the jobs.

        The runs of jobs that are not let in stay idle until some of ours end. An array depends on
        earlier ones where more than `room` jobs could run at once otherwise.
        """
        size, most = self.cluster.runs_per_job or 1, self.limits[0] or 1
        batches = [runs[i : i + size] for i in range(0, len(runs), size)]
        lanes = Lanes(room)
        jobs: list[Job] = []
        top, grows = most, self.full is not None
        if self.full is not None:  # as many as ended first, and more only where these are let in
            most, self.full = min(top, max(1, self.full - open_jobs)), None
        while some := batches[len(jobs) : len(jobs) + most]:
            submission = Submission.write(some)
            try:
                array = self._sbatch(submission, room, lanes.before(len(some)))
            except UserError as error:
                submission.remove()
                if limited := is_submit_limit(str(error)):
                    if len(some) > 1:
                        most, grows = len(some) // 2, False
                        continue
                    self.full = open_jobs + len(jobs)
                if not jobs and not (limited and open_jobs):
                    raise
                self._report_once(str(error))
                break
            lanes.add(array, len(some))
            most = min(top, 2 * most) if jobs and grows else most
            self.submitted.append(submission)
            jobs += [
                SlurmJob(self._name(array, task), list(batch), submission=submission, task=task)
                for task, batch in enumerate(some)
            ]
        if jobs:
            count = sum(len(job.runs) for job in jobs)
            self.report(f"submitted {_named(jobs)} of Slurm for {count} runs")
        return jobs

    def _name(self, array: str, task: int) -> str:
        """Return what Slurm calls a task, a job by itself where the site has no arrays."""
        return f"{array}_{task}" if self.limits[0] else array

    def _report_once(self, line: str) -> None:
        """Report `line` unless it was the last one of its kind: a limit refuses again and again."""
        if line != self.refusal:
            self.report(line)
        self.refusal = line

    def _sbatch(self, submission: Submission, room: int | None, before: list[str]) -> str:
        """Submit an array; return its number."""
        c = self.cluster
        options = {
            "job-name": submission.name,
            "array": f"0-{len(submission.batches) - 1}" + (f"%{room}" if room else ""),
            "output": f"{submission.folder}/%a.log",
            "dependency": f"afterany:{':'.join(before)}" if before else None,
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
        if not self.limits[0]:
            options |= {"array": None, "output": f"{submission.folder}/0.log"}
        words = [f"--{key}={value}" for key, value in options.items() if value is not None]
        words += c.options or []
        words += [f"--exclude={self._excluded()}"] if self.nodes.avoided else []
        given = job_script(submission, c.setup or [])
        answer = ask("sbatch", "--parsable", "--requeue", *words, given=given)
        number = answer.strip().partition(";")[0]
        if not number.isdecimal():
            said = answer.strip() or "nothing"
            raise UserError(f"cluster=slurm: sbatch says: {said}; expected the number of a job")
        return number

    def _excluded(self) -> str:
        """Return the nodes that get no jobs, with those of cluster.options, as sbatch has it."""
        given = given_exclude(self.cluster.options or [])
        return ",".join([*given, *sorted(self.nodes.avoided)])

    def poll(self, jobs: Sequence[Job]) -> None:
        """Bring `jobs` up to date by one call of squeue."""
        began = time.monotonic()
        mine = [job for job in jobs if isinstance(job, SlurmJob)]
        self._update(mine)
        if self.nodes.judge(mine):
            queued = {job.name.partition("_")[0] for job in mine if job.state is State.QUEUED}
            exclude_nodes(queued, self._excluded())
        self.took = time.monotonic() - began
        if self.is_stopping:
            self._cancel_again(mine)
        if not self.is_drawn:
            self._report_reasons(jobs)

    def _report_reasons(self, jobs: Sequence[Job]) -> None:
        """Report why jobs wait, once and whenever there is another reason."""
        queued = [job.reason for job in jobs if job.state is State.QUEUED]
        reasons = Counter(reason for reason in queued if reason not in ("", "None"))
        if reasons.keys() - self.reasons:
            counts = [f"{count} ({reason})" for reason, count in reasons.most_common()]
            self.report(f"jobs that wait: {', '.join(counts)}")
        self.reasons = set(reasons)

    def last_log_line(self, job: Job) -> str:
        """Return the last line of a job's own log, "" where it never left the queue."""
        assert isinstance(job, SlurmJob)
        is_ours = job.started and not job.submission.is_foreign
        return job.submission.last_log_line(job.task) if is_ours else ""

    def cancel(self, jobs: Sequence[Job], kill: bool) -> None:
        """Cancel what is queued, and signal SIGTERM to what runs; or cancel all with `kill`.

        Jobs of other users go on, and are waited for no longer. No file that fails keeps ours in
        the queue.
        """
        names = []
        for job in jobs:
            assert isinstance(job, SlurmJob)
            if job.submission.is_foreign:
                job.release()
            elif job.name:
                names.append(job.name)
        self.is_stopping = True
        for submission in self._own(jobs):  # a job that starts in this instant finds no spec
            with suppress(OSError):
                submission.specs.stop()
        self._scancel(names, kill)

    def _own(self, jobs: Sequence[Job]) -> list[Submission]:
        """Return the arrays in which nobody but this sweep has runs that are not finished."""
        adopted = [job.submission for job in jobs if isinstance(job, SlurmJob)]
        arrays = {s.folder: s for s in [*adopted, *self.submitted]}.values()
        return [s for s in arrays if not s.is_foreign and not self._others(s)]

    def _others(self, submission: Submission) -> bool:
        """Return whether an array has a run of another sweep that is not at its end, as far as its
        record can be read.
        """
        others = set(chain(*submission.batches)) - self.places
        records = (RunDirectory(self.runs_dir / path).record_or_none() for path in others)
        return any(record is None or record.status not in FINAL for record in records)

    def _scancel(self, names: Sequence[str], kill: bool) -> None:
        for how in ([],) if kill else (["--state=PENDING"], ["--batch", "--signal=TERM"]):
            if names:  # those to which it does not apply are complained of
                command = ["scancel", "--quiet", *how, *names]
                subprocess.run(command, capture_output=True, env=environment())
        self.signalled |= set(names)

    def _cancel_again(self, jobs: Sequence[SlurmJob]) -> None:
        """Cancel what squeue did not list when the sweep was stopped, and what still waits."""
        mine = [job for job in jobs if job.name and not job.submission.is_foreign]
        waits = [j.name for j in mine if j.state is State.QUEUED]
        new = [j.name for j in mine if j.is_active and j.name not in self.signalled]
        self._scancel([*waits, *new], kill=False)

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next squeue: more the longer the sweep takes, and so many
        that a controller which is busy, or a long queue, is not asked most of the time.
        """
        return max(min(SLOWEST_SECONDS, 1 + elapsed / 30), min(60, 20 * self.took))

    def close(self, jobs: Sequence[Job]) -> None:
        """Remove the folders of arrays that are through."""
        going = {job.submission.folder for job in jobs if isinstance(job, SlurmJob)}
        for submission in self.submitted:
            if submission.folder not in going:
                submission.remove()
        with suppress(UserError), submitting(self.runs_dir):
            self._adopt([])


def _named(jobs: Sequence[Job]) -> str:
    if len(jobs) == 1:
        return f"job {jobs[0].name}"
    return f"jobs {jobs[0].name} to {jobs[-1].name}"
