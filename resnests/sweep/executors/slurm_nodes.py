"""Set aside the nodes that refuse what others train. No torch."""

from __future__ import annotations

import argparse
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

    def __init__(self, options: Sequence[str], report: Callable[[str], None]) -> None:
        """Begin with the nodes that sbatch's `options` exclude themselves."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("-x", "--exclude", default="")
        self.given = parser.parse_known_args(options)[0].exclude
        self.report = report
        self.good: set[str] = set()
        self.avoided: set[str] = set()
        self.moved: dict[Run, str] = {}  # from which node

    @property
    def excluded(self) -> str:
        """Return the nodes that get no jobs, as sbatch takes them."""
        return ",".join(filter(None, [self.given, *sorted(self.avoided)]))

    def judge(self, jobs: Sequence[SlurmJob]) -> None:
        """Decide what becomes of the jobs among `jobs` that were refused."""
        self.good |= {job.node for job in jobs if job.is_over and job.trains()}
        refused = [job for job in jobs if job.is_refused() and job.node]
        if not refused:
            return
        self.good |= {job.node for job in jobs if job.is_active and job.trains()}
        active = {job.node for job in jobs if job.is_active}
        before = self.excluded
        for job in refused:
            others = {*self.avoided, job.node}
            if job.node in self.good:  # it is the configuration
                self.avoided -= {self.moved.get(run, "") for run in job.outcomes}
            elif self.good - others:
                self._avoid(job)
            elif active - others:
                job.state = State.ENDING  # until the next poll
        if self.excluded != before:
            for array in {job.name.partition("_")[0] for job in jobs if job.state is State.QUEUED}:
                command = ["scontrol", "update", f"jobid={array}", f"excnodelist={self.excluded}"]
                subprocess.run(command, capture_output=True, env=environment())

    def _avoid(self, job: SlurmJob) -> None:
        """Avoid the node of `job`, whose runs go on elsewhere."""
        if job.node not in self.avoided:
            self.avoided.add(job.node)
            self.report(f"node {job.node} refuses what others train: it gets no more jobs")
        for run, how in list(job.outcomes.items()):
            if how == REFUSED and run not in self.moved:
                self.moved[run] = job.node
                del job.outcomes[run]
