"""Bring one trial from its runs to what Optuna is told, in a thread of its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Pool
from contextlib import closing, suppress

import optuna
from filelock import Timeout
from optuna.trial import TrialState

from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL, BrokenRecord
from resnests.search.study import Study
from resnests.sweep.devices import Allocation
from resnests.sweep.executors.local import ThreadExecutor
from resnests.sweep.plan import Run
from resnests.sweep.process import last_log_line
from resnests.sweep.scheduler import Scheduler, State
from resnests.sweep.stop import Stop
from resnests.text import short

Ending = tuple[TrialState, str]  # of a trial that does not complete, and why


class TrialAtWork:
    """Trains a run for each seed, and stops them as soon as the trial is decided."""

    def __init__(
        self,
        study: Study,
        trial: optuna.Trial,
        runs: Sequence[Run],
        search_stop: Stop,
        is_nothing_left: Callable[[], bool],  # of the devices
    ) -> None:
        self.study, self.trial, self.runs, self.search_stop = study, trial, runs, search_stop
        self.is_nothing_left = is_nothing_left
        self.stop = Stop()  # of its runs alone
        self.reported = set(study.trials()[trial.number].intermediate_values)  # epochs
        self.failed = False

    @property
    def name(self) -> str:
        """Return the number of the trial, with its values."""
        values = " ".join(f"{key}={short(value)}" for key, value in self.trial.params.items())
        return f"trial {self.trial.number} ({values})"

    def work(self, pool: Pool, allocation: Allocation) -> str:
        """Bring the trial to its end in threads of `pool`; return how it ended.

        Its runs end before Optuna is told: whoever takes a trial with the same values next finds
        their directories free.
        """
        self.trial.set_user_attr("runs", [str(run.directory.path) for run in self.runs])
        ending = self._ending_of_the_process_before()
        if ending is None:
            ending = self._train(ThreadExecutor(pool, allocation, self.stop))
        if ending:
            return self._tell(*ending)
        accuracies = [objective(run) for run in self.runs]
        if None in accuracies:
            self.study.release(self.trial)  # interrupted: the same command goes on
            return "interrupted"
        return self._tell_complete([value for value in accuracies if value is not None])

    def _train(self, executor: ThreadExecutor) -> Ending | None:
        """Train the runs until they end or the trial is decided; return an ending but completion.

        A decided trial asks its runs to stop, and goes on with the rounds until they have.
        """
        ending: Ending | None = None
        scheduler = Scheduler(self.runs, executor, self._is_stopping, lambda line: None)
        with closing(scheduler.rounds()) as rounds:
            for jobs in rounds:
                self.stop.signals = self.search_stop.signals  # the second one kills
                queued = {run for job in jobs if job.state is State.QUEUED for run in job.runs}
                begun = [run for run in self.runs if run not in queued]
                given_up = scheduler.given_up(self.runs)
                ending = ending or self._report(begun) or self._failure(given_up)
                if ending:
                    self.stop.ask()
        return ending or self._report(self.runs) or self._failure(self.runs)

    def _is_stopping(self) -> bool:
        return self.stop.requested() or self.search_stop.requested()

    def count_unfinished(self) -> int:
        """Return how many of its runs need a device, now or later."""
        return sum(run.directory.status() not in FINAL for run in self.runs)

    def _ending_of_the_process_before(self) -> Ending | None:
        """Prune what a process that is gone was about to prune."""
        last = max(self.reported, default=0)
        return _pruned(last) if last and self._should_prune(last) else None

    def _report(self, begun: Sequence[Run]) -> Ending | None:
        """Report each epoch that all runs at work have reached; return an ending to prune.

        Runs that wait for a device are not waited for: the first seeds may decide. After the last
        epoch of the last seed there is nothing left to prune.
        """
        curves = [accuracies(run.directory) for run in begun]
        common = set(curves[0]).intersection(*curves) if curves else set()
        for epoch in sorted(common - self.reported):
            self.trial.report(statistics.fmean(curve[epoch] for curve in curves), epoch)
            self.reported.add(epoch)
            is_last = epoch == self.runs[0].config.trainer.epochs and len(begun) == len(self.runs)
            if not is_last and self._should_prune(epoch):
                return _pruned(epoch)
        return None

    def _should_prune(self, epoch: int) -> bool:
        config = self.runs[0].config
        is_ripe = epoch > config.tune.warmup * config.trainer.epochs
        return is_ripe and self.trial.should_prune()

    def _failure(self, ended: Sequence[Run]) -> Ending | None:
        """Return the ending that a run makes of the trial which ended without an accuracy."""
        bad = [run for run in ended if objective(run) is None]
        if not bad or self.search_stop.requested() or self.is_nothing_left():
            return None  # it was interrupted, and goes on
        return outcome_of_failure(bad[0])

    def _tell(self, state: TrialState, reason: str) -> str:
        self.failed = state == TrialState.FAIL
        self.trial.set_user_attr("reason", reason)
        place = f"trial {self.trial.number} of {self.study.folder.name}"
        for run in self.runs:
            _record_reason(run.directory, f"{reason}, {place}")
        self.study.tell(self.trial, state)
        return reason

    def _tell_complete(self, found: list[float]) -> str:
        self.trial.set_user_attr("accuracies", found)
        mean = statistics.fmean(found)
        self.study.tell(self.trial, TrialState.COMPLETE, mean)
        return f"{mean:.2f}%"


def accuracies(directory: RunDirectory) -> dict[int, float]:
    """Return epoch -> validation accuracy in percent, where it was measured."""
    rows = directory.history_rows()
    return {int(r["epoch"]): r["val_accuracy"] for r in rows if math.isfinite(r["val_accuracy"])}


def objective(run: Run) -> float | None:
    """Return the validation accuracy by tune.objective, None of a run that is not complete."""
    measured = accuracies(run.directory)
    if run.directory.status() != "complete" or not measured:
        return None
    last = measured[max(measured)]
    return last if run.config.tune.objective == "last" else max(measured.values())


def outcome_of_failure(run: Run) -> Ending:
    """Return what a run that is not complete makes of its trial.

    One that diverged says as much as a pruned one; any other failure says nothing of the values.
    """
    record = run.directory.record_or_none()
    if record and record.status == "diverged":
        return TrialState.PRUNED, f"diverged: {record.error}"
    reason = record.error if record and record.error else last_log_line(run.directory)
    return TrialState.FAIL, f"failed: {reason}; see {run.directory.log_file}"


def _pruned(epoch: int) -> Ending:
    return TrialState.PRUNED, f"pruned in epoch {epoch}"


def _record_reason(directory: RunDirectory, reason: str) -> None:
    """Put on record why the run was interrupted."""
    with suppress(Timeout, OSError, BrokenRecord), directory.lock().acquire(blocking=False):
        record = directory.read_record()
        if record and record.status == "interrupted" and record.error is None:
            record.error = reason
            directory.write_record(record)
