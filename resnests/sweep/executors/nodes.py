"""Set aside the nodes that refuse what others train. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from resnests.sweep.plan import Run
from resnests.sweep.scheduler import AGAIN, NO_DEVICE, REFUSED, SUSPECT, UNREADABLE, Job, State

TRIES = 5  # of a run for which devices of nodes were at fault, while no other run ends well
SUSPICIONS = {SUSPECT, UNREADABLE}  # of a node, or of the run
FAULTS = {NO_DEVICE, *SUSPICIONS}
WELL = ("complete", "diverged")


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
    runs go on wherever others train, TRIES times while no run ends well. Where the device of a job
    fails under a run and passes its trial (SUSPECT), or where a node cannot read what a run needs
    (UNREADABLE), it is the node until that is so on another one: then it is the run. Where the run
    ends well on another one, the node stays avoided if it never trained anything. Else it gets jobs
    again: it is avoided for good at the second such run with none that ended well there between.

    A node of many cards may have one that is broken, which as a rule is the free one. Where no
    other node is known, runs for which it was at fault wait for its other jobs to end, and are then
    tried there once more: the suspected ones once, the others TRIES times, and all anew whenever
    some run has come to its end meanwhile.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.good: set[str] = set()
        self.trained: set[str] = set()  # the nodes on which a run ended well, good or not by now
        self.broken: set[str] = set()
        self.avoided: set[str] = set()
        self.moved: dict[Run, str] = {}  # from which node that refused it
        self.suspected: dict[Run, str] = {}  # the first node that may be at fault for it
        self.strikes: Counter[str] = Counter()  # such runs that ended well elsewhere, by node
        self.tries: Counter[Run] = Counter()  # since a run ended well

    def judge(self, jobs: Sequence[Job], known: Iterable[str] = ()) -> bool:
        """Decide what becomes of the jobs among `jobs` that were refused; return whether other
        nodes are avoided than before. `known` are the nodes on which jobs can be.
        """
        before = set(self.avoided)
        for job in jobs:
            self._learn(job)
        refused = [job for job in jobs if _is_refused(job) and job.node]
        if not refused:
            return self.avoided != before
        self.good |= {job.node for job in jobs if job.is_active and _trains(job)}
        self.good -= {job.node for job in refused if _is_faulty(job)}
        active = {job.node for job in jobs if job.is_active}
        for job in refused:
            others = {*self.avoided, job.node}
            if job.node in self.good:  # it is the configuration
                self.avoided -= {self.moved.get(run, "") for run in job.outcomes}
            elif {*self.good, *known} - others:
                self._avoid(job)
            elif active - others or (job.node in active and _is_faulty(job)):
                job.state = State.ENDING  # until the next poll
            else:
                self._try_here(job)
        return self.avoided != before

    def _learn(self, job: Job) -> None:
        """Note what a job that is over tells of nodes, and of runs that suspect them."""
        if not job.is_over:
            return
        if _trains(job):
            self.good.add(job.node)
            self.trained.add(job.node)
            self.tries.clear()
            if self.strikes.pop(job.node, 0):
                self._use_again(job.node)
        for run, how in list(job.outcomes.items()):
            first = self.suspected.get(run, "")
            if how in WELL and first:
                self.strikes[first] += first != job.node
            elif how in SUSPICIONS and first and (first != job.node or self.tries[run]):
                job.outcomes[run] = "failed"  # as it does so elsewhere, too
            else:
                continue
            del self.suspected[run]
            self._use_again(first)

    def _use_again(self, node: str) -> None:
        """Let a node have jobs that is not known to be broken, once no run suspects it any more."""
        is_broken = node in self.broken or self.strikes[node] > (node in self.trained)
        if node in self.avoided and not is_broken and node not in self.suspected.values():
            self.avoided.remove(node)
            self.report(f"node {node} gets jobs again")

    def _avoid(self, job: Job) -> None:
        """Avoid the node of `job`, whose runs go on elsewhere."""
        is_broken = NO_DEVICE in job.outcomes.values()
        self.broken |= {job.node} if is_broken else set()
        if job.node not in self.avoided:
            self.avoided.add(job.node)
            why = "refuses what others train" if self.good else "refuses what others may train"
            if is_broken:
                why = "has no device that works"
            elif SUSPECT in job.outcomes.values():
                why = "has a device that fails"
            self.report(f"node {job.node} {why}: it gets no more jobs")
        for run, how in list(job.outcomes.items()):
            if how in FAULTS and self.tries[run] < TRIES:
                self._try_again(job, run)
            elif how == REFUSED and run not in self.moved:
                self.moved[run] = job.node
                self._try_again(job, run)

    def _try_here(self, job: Job) -> None:
        """Try runs again on the only node there is, where another of its devices may work."""
        for run, how in list(job.outcomes.items()):
            may_work = how in SUSPICIONS or (how == NO_DEVICE and job.node in self.trained)
            if may_work and self.tries[run] < TRIES:
                self._try_again(job, run)

    def _try_again(self, job: Job, run: Run) -> None:
        if job.outcomes[run] in SUSPICIONS:
            self.suspected.setdefault(run, job.node)
        self.tries[run] += 1
        job.outcomes[run] = AGAIN


def _is_refused(job: Job) -> bool:
    """Return whether its node, or the configuration, refused one of the job's runs."""
    return job.is_over and (REFUSED in job.outcomes.values() or _is_faulty(job))


def _is_faulty(job: Job) -> bool:
    """Return whether its node, or a device of it, may be at fault for one of the job's runs."""
    return not FAULTS.isdisjoint(job.outcomes.values())


def _trains(job: Job) -> bool:
    """Return whether the job's node has trained one of its runs, or does so now."""
    if job.is_over:
        return any(how in WELL for how in job.outcomes.values())
    heartbeats = (run.directory.read_progress() for run in job.runs if job.is_active)
    return any(beat.get("job") == job.name and "epoch" in beat for beat in heartbeats)
