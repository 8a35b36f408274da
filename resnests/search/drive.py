"""From a space to a finished study: trials are taken, trained and told, as many at once as there
are devices for. No torch.

The study and the run directories are the only truth, so that any death of any process leaves
nothing to repair: the same command, here or beside this one, goes on.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna.trial import TrialState

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory, study_folder
from resnests.search.plan import trial_configs
from resnests.search.results import show_results
from resnests.search.space import Space
from resnests.search.study import Study, storage_errors
from resnests.search.trial import TrialAtWork
from resnests.sweep.devices import Allocation
from resnests.sweep.forking import forking
from resnests.sweep.outcome import say_unsent
from resnests.sweep.plan import Run
from resnests.sweep.protocol import INTERRUPTED
from resnests.sweep.stop import Stop

POLL = 0.3  # seconds between two looks at the runs
HOUR = 3600.0


def search(space: Space, allocation: Allocation, words: list[str]) -> int:
    """Bring the study to its end and show it; the exit status. `words` are those of the command
    line.
    """
    with storage_errors(study_folder(space.first)):
        study = Study(space)
        first = [Run(config, RunDirectory.of(config)) for config in trial_configs(space.first)]
        with (
            TemporaryDirectory(prefix="resnests-") as folder,
            forking(first * space.first.tune.trials, allocation, Path(folder)),
            Stop() as stop,
            ThreadPoolExecutor(allocation.concurrent) as executor,
        ):
            work = Search(study, allocation, stop, executor)
            try:
                work.run()
            finally:
                work.stop_all()
        if work.runs:
            say_unsent(work.runs)
        show_results(study, words)
        failed = study.failed()
    if stop.signals:
        return INTERRUPTED
    return 1 if failed else 0


class Search:
    """The trials that this process has at work."""

    def __init__(
        self, study: Study, allocation: Allocation, stop: Stop, executor: ThreadPoolExecutor
    ) -> None:
        self.study, self.allocation, self.stop, self.executor = study, allocation, stop, executor
        self.active: list[TrialAtWork] = []
        self.runs: list[Run] = []  # of all trials that were
        self.started = time.monotonic()

    def run(self) -> None:
        """Until no trial is left, here or in other processes, or it is to stop."""
        while True:
            for trial in list(self.active):
                trial.stop.signals = self.stop.signals
                if outcome := trial.advance(self.stop.requested):
                    self.active.remove(trial)
                    if trial.failed and trial.runs[0].config.sweep.fail_fast:
                        self.stop.ask()
                    print(f"{outcome}: {trial.name}", flush=True)
            while self._has_room() and self._begin():
                pass
            if not self.active and (self._is_closing() or self.study.is_over()):
                return
            time.sleep(POLL)

    def stop_all(self) -> None:
        for trial in self.active:
            trial.stop.ask()

    def _has_room(self) -> bool:
        futures = [future for trial in self.active for future in trial.futures]
        busy = sum(not future.done() for future in futures)
        return busy < self.allocation.concurrent and not self._is_closing()

    def _is_closing(self) -> bool:
        hours = self.study.tune.hours
        late = hours is not None and time.monotonic() - self.started > hours * HOUR
        return late or self.stop.requested()

    def _begin(self) -> bool:
        """Start another trial; whether there was one."""
        trial = self.study.take()
        if trial is None:
            return False
        try:
            configs = trial_configs(self.study.space.config(trial.params))
        except UserError as error:  # values that exclude each other
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, TrialState.PRUNED)
            print(f"trial {trial.number}: {error}", flush=True)
            return True
        runs = [Run(config, RunDirectory.of(config)) for config in configs]
        work = TrialAtWork(self.study, trial, runs)
        work.start(self.executor, self.allocation)
        self.active.append(work)
        self.runs += runs
        print(f"start {work.name}", flush=True)
        return True
