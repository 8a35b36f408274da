"""One trial at work: its runs, what they report to Optuna, and how it ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress

import optuna
from filelock import Timeout
from optuna.trial import TrialState

from resnests.runs.directory import RunDirectory
from resnests.runs.record import BrokenRecord
from resnests.search.study import Study
from resnests.sweep.child import last_line, train
from resnests.sweep.devices import Allocation
from resnests.sweep.drive import launch_until_done
from resnests.sweep.plan import Run
from resnests.sweep.protocol import BUSY
from resnests.sweep.stop import Stop


class TrialAtWork:
    """Trains a run for each seed, and stops them as soon as the trial is decided."""

    def __init__(self, study: Study, trial: optuna.Trial, runs: Sequence[Run]) -> None:
        self.study, self.trial, self.runs = study, trial, runs
        self.stop = Stop()  # of its runs alone
        self.ended: tuple[TrialState, str] | None = None  # before its runs did, and why
        self.futures: list[Future[None]] = []
        known = study.trials()[trial.number].intermediate_values
        self.reported = set(known)  # epochs
        trial.set_user_attr("runs", [str(run.directory.path) for run in runs])
        if known and self._should_prune(max(known)):  # the process before was about to
            self._prune(max(known))

    @property
    def name(self) -> str:
        values = " ".join(f"{key}={_short(value)}" for key, value in self.trial.params.items())
        return f"trial {self.trial.number} ({values})"

    @property
    def failed(self) -> bool:
        return self.ended is not None and self.ended[0] == TrialState.FAIL

    def start(self, executor: Executor, allocation: Allocation) -> None:
        for run in [] if self.ended else self.runs:
            self.futures.append(executor.submit(self._train, run, allocation))

    def advance(self, stopping: Callable[[], bool]) -> str | None:
        """Look at the runs, report and decide; how the trial ended, None while it goes on."""
        over = all(future.done() for future in self.futures)  # then the report is the last one
        if not self.ended:
            self._report()
        if not self.ended:
            bad = [run for run in self._done_runs() if objective(run) is None]
            if bad and not stopping():
                self._end(*_blame(bad[0]))
        return self._conclude() if over else None

    def _train(self, run: Run, allocation: Allocation) -> None:
        """Bring one run to its end, as a sweep would."""

        def launch(batch: list[Run]) -> list[str | None]:
            code = train(run, allocation, self.stop)
            return ["busy" if code == BUSY else run.directory.status()] * len(batch)

        launch_until_done([run], launch, self.stop.requested, lambda line: None)

    def _done_runs(self) -> list[Run]:
        pairs = zip(self.runs, self.futures, strict=False)
        return [run for run, future in pairs if future.done() and not future.cancelled()]

    def _report(self) -> None:
        """Tell Optuna of each epoch that all runs at work have reached, and ask whether to prune.

        Runs that wait for a device are not waited for: the first seeds may decide.
        """
        pairs = zip(self.runs, self.futures, strict=True)
        begun = [run for run, future in pairs if future.running() or future.done()]
        curves = [accuracies(run.directory) for run in begun]
        common = set(curves[0]).intersection(*curves) if curves else set()
        for epoch in sorted(common - self.reported):
            self.trial.report(statistics.fmean(curve[epoch] for curve in curves), epoch)
            self.reported.add(epoch)
            through = epoch == self.runs[0].config.trainer.epochs and len(begun) == len(self.runs)
            if not through and self._should_prune(epoch):
                return self._prune(epoch)

    def _should_prune(self, epoch: int) -> bool:
        config = self.runs[0].config
        ripe = epoch > config.tune.warmup * config.trainer.epochs
        return ripe and self.trial.should_prune()

    def _prune(self, epoch: int) -> None:
        self._end(TrialState.PRUNED, f"pruned in epoch {epoch}")

    def _end(self, state: TrialState, reason: str) -> None:
        self.ended = state, reason
        self.stop.ask()
        for future in self.futures:
            future.cancel()

    def _conclude(self) -> str | None:
        if self.ended is None:
            values = [objective(run) for run in self._done_runs()]
            if None in values or len(values) < len(self.runs):
                self.study.let_go(self.trial)  # interrupted: the same command goes on
                return "interrupted"
            found = [value for value in values if value is not None]
            self.trial.set_user_attr("accuracies", found)
            mean = statistics.fmean(found)
            self.study.tell(self.trial, TrialState.COMPLETE, mean)
            return f"{mean:.2f}%"
        state, reason = self.ended
        self.trial.set_user_attr("reason", reason)
        for run in self.runs:
            _note(run.directory, f"{reason}, trial {self.trial.number} of {self.study.folder.name}")
        self.study.tell(self.trial, state)
        return reason


def accuracies(directory: RunDirectory) -> dict[int, float]:
    """Epoch -> validation accuracy in percent, where it was measured."""
    rows = directory.history_rows()
    return {int(r["epoch"]): r["val_accuracy"] for r in rows if math.isfinite(r["val_accuracy"])}


def objective(run: Run) -> float | None:
    """The validation accuracy of a run by tune.objective; None where it is not complete."""
    measured = accuracies(run.directory)
    if run.directory.status() != "complete" or not measured:
        return None
    last = measured[max(measured)]
    return last if run.config.tune.objective == "last" else max(measured.values())


def _blame(run: Run) -> tuple[TrialState, str]:
    """What a run that is not complete makes of its trial. One that diverged says as much as a
    pruned one; any other failure says nothing of the values.
    """
    record = run.directory.sound_record()
    if record and record.status == "diverged":
        return TrialState.PRUNED, f"diverged: {record.error}"
    reason = record.error if record and record.error else last_line(run.directory)
    return TrialState.FAIL, f"failed: {reason}; see {run.directory.log_file}"


def _note(directory: RunDirectory, reason: str) -> None:
    """Put on record why the run was interrupted."""
    with suppress(Timeout, OSError, BrokenRecord), directory.owner().acquire(blocking=False):
        record = directory.read_record()
        if record and record.status == "interrupted" and record.error is None:
            record.error = reason
            directory.write_record(record)


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
