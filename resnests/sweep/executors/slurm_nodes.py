"""Set aside the nodes that refuse what others train. No torch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from resnests.sweep.executors.slurm_commands import environment
from resnests.sweep.executors.slurm_task import SlurmJob
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import REFUSED, State


class Nodes:
    """Knows on which nodes a sweep trains, and which it avoids.

    A node whose driver is broken ends each job within a second, and so gets one after the other, of
    a whole grid. Whether it is the node, or the configuration that no node would train, other nodes
    tell: so a job that was refused stays open until one of them trains, or none is left that may.
    In the first case its node is avoided, and its runs go on elsewhere, once. A run that is refused
    there, too, was no fault of the node, which gets jobs again.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.good: set[str] = set()
        self.avoided: set[str] = set()
        self.moved: dict[Run, str] = {}  # from which node

    def judge(self, jobs: Sequence[SlurmJob]) -> None:
        """Decide what becomes of the jobs among `jobs` that were refused."""
        self.good |= {job.node for job in jobs if job.is_over and job.trains()}
        refused = [job for job in jobs if job.is_refused() and job.node]
        if not refused:
            return
        self.good |= {job.node for job in jobs if job.is_active and job.trains()}
        active = {job.node for job in jobs if job.is_active}
        for job in refused:
            others = {*self.avoided, job.node}
            if job.node in self.good:  # it is the configuration
                self.avoided -= {self.moved.get(run, "") for run in job.outcomes}
            elif self.good - others:
                self._avoid(job, jobs)
            elif active - others:
                job.state = State.ENDING  # until the next poll

    def _avoid(self, job: SlurmJob, jobs: Sequence[SlurmJob]) -> None:
        """Keep the jobs that wait off the node of `job`, and have its runs go on elsewhere."""
        if job.node not in self.avoided:
            self.avoided.add(job.node)
            self.report(f"node {job.node} refuses what others train: it gets no more jobs")
            for array in {j.name.partition("_")[0] for j in jobs if j.state is State.QUEUED}:
                nodes = f"excnodelist={','.join(sorted(self.avoided))}"
                command = ["scontrol", "update", f"jobid={array}", nodes]
                subprocess.run(command, capture_output=True, env=environment())
        for run, how in list(job.outcomes.items()):
            if how == REFUSED and run not in self.moved:
                self.moved[run] = job.node
                del job.outcomes[run]
