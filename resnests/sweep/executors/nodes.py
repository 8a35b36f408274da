"""Set aside the nodes that refuse what others train. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from resnests.sweep.plan import Run
from resnests.sweep.scheduler import NO_DEVICE, REFUSED, Job, State


class Nodes:
    """Knows on which nodes a sweep trains, and which it avoids.

    A node whose driver is broken ends each job within a second, and so gets one after the other, of
    a whole grid. Whether it is the node, or the configuration that no node would train, other nodes
    tell: so a job that was refused stays open until one of them trains, or none is left that may.
    In the first case its node is avoided, and its runs go on elsewhere, once. A run that is refused
    there, too, was no fault of the node, which gets jobs again. Where it is known which nodes there
    are, nobody waits for one of them to train: a run goes on elsewhere as long as there is one that
    refused nothing yet, and the last one is never avoided.

    Where no device of a node works (NO_DEVICE) it is the node, whatever it has trained before. Its
    runs go on wherever others train, as often as that happens.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.good: set[str] = set()
        self.avoided: set[str] = set()
        self.moved: dict[Run, str] = {}  # from which node

    def judge(self, jobs: Sequence[Job], known: Iterable[str] = ()) -> bool:
        """Decide what becomes of the jobs among `jobs` that were refused; return whether other
        nodes are avoided than before. `known` are the nodes on which jobs can be.
        """
        self.good |= {job.node for job in jobs if job.is_over and _trains(job)}
        refused = [job for job in jobs if _is_refused(job) and job.node]
        if not refused:
            return False
        self.good |= {job.node for job in jobs if job.is_active and _trains(job)}
        self.good -= {job.node for job in refused if NO_DEVICE in job.outcomes.values()}
        active = {job.node for job in jobs if job.is_active}
        before = set(self.avoided)
        for job in refused:
            others = {*self.avoided, job.node}
            if job.node in self.good:  # it is the configuration
                self.avoided -= {self.moved.get(run, "") for run in job.outcomes}
            elif {*self.good, *known} - others:
                self._avoid(job)
            elif active - others:
                job.state = State.ENDING  # until the next poll
        return self.avoided != before

    def _avoid(self, job: Job) -> None:
        """Avoid the node of `job`, whose runs go on elsewhere."""
        if job.node not in self.avoided:
            self.avoided.add(job.node)
            why = "refuses what others train" if self.good else "refuses what others may train"
            if NO_DEVICE in job.outcomes.values():
                why = "has no device that works"
            self.report(f"node {job.node} {why}: it gets no more jobs")
        for run, how in list(job.outcomes.items()):
            if how == NO_DEVICE or (how == REFUSED and run not in self.moved):
                self.moved[run] = job.node
                del job.outcomes[run]


def _is_refused(job: Job) -> bool:
    """Return whether its node, or the configuration, refused one of the job's runs."""
    return job.is_over and not {REFUSED, NO_DEVICE}.isdisjoint(job.outcomes.values())


def _trains(job: Job) -> bool:
    """Return whether the job's node has trained one of its runs, or does so now."""
    if job.is_over:
        return any(how in ("complete", "diverged") for how in job.outcomes.values())
    heartbeats = (run.directory.read_progress() for run in job.runs if job.is_active)
    return any(beat.get("job") == job.name and "epoch" in beat for beat in heartbeats)
