"""Bring a study to its end: trials are taken, trained and told. No torch.

The study and the run directories are the only truth, so that any death of any process leaves
nothing to repair: the same command, here or beside this one, goes on.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from hydra.errors import MissingConfigException
from optuna.trial import TrialState

from resnests.config.schema import Config
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory, study_folder
from resnests.runs.sweeps import write_search
from resnests.search.results import show_results
from resnests.search.space import Space, trial_configs
from resnests.search.study import Study, storage_errors
from resnests.search.trial import TrialAtWork
from resnests.sweep.aside import Aside, News
from resnests.sweep.devices import Allocation
from resnests.sweep.folders import temporary_folder
from resnests.sweep.forking import forking
from resnests.sweep.mps_sharing import sharing
from resnests.sweep.plan import Run
from resnests.sweep.protocol import INTERRUPTED
from resnests.sweep.stop import Stop
from resnests.sweep.summary import print_unsent
from resnests.sweep.tryout import set_aside, trying
from resnests.trackers.sync import Add, syncing

POLL_SECONDS = 0.3  # between two looks at the trials
HOUR = 3600.0


def search(space: Space, allocation: Allocation, words: list[str]) -> int:
    """Bring the study to its end and show it; return the exit status.

    `words` are those of the command line.
    """
    first = trial_runs(space.first)
    with storage_errors(study_folder(space.first)):
        study = Study(space)
        with (
            trying(allocation.gpus) as trials,
            temporary_folder() as folder,
            sharing(space.first.devices.mps, allocation) as allocation,
            forking(first * study.tune.trials, allocation, folder),
            syncing(first[0].config) as add_to_trackers,
        ):
            set_aside(Aside(folder), allocation, trials, space.first.trainer.device)
            work = Search(study, replace(allocation, aside=str(folder)), add_to_trackers)
            work.run()
        if work.runs:
            print_unsent(work.runs)
        show_results(study, words)
        failed = study.failed()
    if work.stop.signals:
        return INTERRUPTED
    return 1 if failed or work.is_nothing_left else 0


def trial_runs(config: Config) -> list[Run]:
    """Return the runs of a trial, one for each seed."""
    return [Run(one, RunDirectory.of(one)) for one in trial_configs(config)]


class Search:
    """Holds the trials that this process has at work, each in a thread: see TrialAtWork.work.

    This thread takes them and composes their configurations, which goes one by one: the study is
    locked meanwhile, and Hydra is not made for several threads. So many trials are at work that
    every device has a run. Runs wait in a queue, those of earlier trials first.
    """

    def __init__(self, study: Study, allocation: Allocation, add_to_trackers: Add) -> None:
        self.study, self.allocation, self.add_to_trackers = study, allocation, add_to_trackers
        self.stop = Stop()
        self.news = News(Aside(allocation.aside), allocation.devices)
        self.is_nothing_left = False  # of the devices
        self.active: dict[TrialAtWork, Future[None]] = {}
        self.runs: list[Run] = []  # of all trials that were
        self.started, self.ended = time.monotonic(), 0  # the latter: of our trials

    def run(self) -> None:
        """Work until no trial is left, here or in other processes, or it is to stop."""
        threads = self.allocation.concurrent
        self._note()
        with self.stop, ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(threads) as trials:
            try:
                while True:
                    for ended in [one for one, thread in self.active.items() if thread.done()]:
                        self.active.pop(ended).result()  # raises what its thread raised
                        self.ended += 1
                        self._note()
                    for line in self.news.lines():
                        print(line, flush=True)
                    if not self.is_nothing_left and self.news.is_nothing_left():
                        self.is_nothing_left = True
                        print(self.news.aside.summary(), file=sys.stderr, flush=True)
                        self.stop.ask()
                    if not self._is_closing() and self._has_room() and (trial := self._take()):
                        self.active[trial] = trials.submit(self._bring_to_end, trial, pool)
                    elif not self.active and (self._is_closing() or self.study.is_over()):
                        self._note()  # others may have ended the last trials
                        return
                    else:
                        time.sleep(POLL_SECONDS)
            finally:
                self.stop.ask()

    def _note(self) -> None:
        """Leave beside the runs how far the study is, for those who look."""
        ended = len(self.study.trials(TrialState.COMPLETE, TrialState.PRUNED))
        pace = (time.monotonic() - self.started) / self.ended if self.ended else None
        write_search(self.study.space.first, ended, pace)

    def _is_closing(self) -> bool:
        hours = self.study.tune.hours
        is_late = hours is not None and time.monotonic() - self.started > hours * HOUR
        return is_late or self.stop.requested()

    def _has_room(self) -> bool:
        unfinished = sum(trial.count_unfinished() for trial in self.active)
        return unfinished < self.allocation.concurrent

    def _take(self) -> TrialAtWork | None:
        """Take a trial whose values make a configuration; return None where there is none."""
        while trial := self.study.take():
            try:
                runs = trial_runs(self.study.space.config(trial.params))
            except UserError as error:  # values that exclude each other, or a file that is gone
                is_gone = isinstance(error.__cause__, MissingConfigException)
                trial.set_user_attr("reason", str(error))
                self.study.tell(trial, TrialState.FAIL if is_gone else TrialState.PRUNED)
                print(f"trial {trial.number}: {error}", flush=True)
                self._note()
                continue
            self.runs += runs
            self.add_to_trackers(run.directory for run in runs)
            return TrialAtWork(self.study, trial, runs, self.stop, self.news.is_nothing_left)
        return None

    def _bring_to_end(self, trial: TrialAtWork, pool: ThreadPoolExecutor) -> None:
        print(f"start {trial.name}", flush=True)
        ended = trial.work(pool, self.allocation)
        print(f"{ended}: {trial.name}", flush=True)
        if trial.failed and trial.runs[0].config.sweep.fail_fast:
            self.stop.ask()
