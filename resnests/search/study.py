"""Keep the trials of a search in Optuna's own storage, where all processes take their next one.

    <runs_dir>/study-<name>/
        study.db       Optuna's, an sqlite file: optuna-dashboard sqlite:///<this file>
        study.lock     byte 0 is locked while a trial is chosen, byte 1 + n while trial n is trained
        <dataset>/...  the run directories of the trials
        trials.csv, history.png, importance.png ...    see results.py

The operating system releases the trials of a process that dies: they are still RUNNING in study.db,
and whoever finds their bytes unlocked goes on with them.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from resnests.config.parts import Component
from resnests.config.schedule import MOVED
from resnests.config.targets import build, locate
from resnests.errors import UserError
from resnests.runs.directory import STUDY, study_folder
from resnests.search.space import OF, Dimension, Space

_AGAIN, _SETTING = "again", "setting"  # attributes: of a trial, whose trial it repeats; of a study
WAIT_SECONDS = 60.0  # for another process to finish writing


class Study:
    """Holds the study as one process sees it, and the trials that it has locked.

    Raises a UserError where the folder has another search in it.
    """

    def __init__(self, space: Space) -> None:
        config = space.first
        self.space, self.tune = space, config.tune
        self.folder = study_folder(config)
        self.distributions = {key: _distribution(dim) for key, dim in space.dimensions.items()}
        sampler, pruner = (_build(key, getattr(self.tune, key)) for key in ("sampler", "pruner"))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.locks = os.open(self.folder / "study.lock", os.O_RDWR | os.O_CREAT)
        self.held: set[int] = set()  # trials whose bytes this process has locked
        with self._locked():  # as one process makes the tables of the database
            self.storage = _storage(self.folder)
            self.optuna = optuna.create_study(
                storage=self.storage,
                sampler=sampler,
                pruner=pruner,
                study_name=self.tune.study,
                direction="maximize",
                load_if_exists=True,
            )
            _compare(self.folder, self.optuna, space)
            self.optuna.set_user_attr(_SETTING, space.setting())
            for trial in self.failed():
                self._repeat(trial)

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """Return the trials of these states, or all."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def take(self) -> optuna.Trial | None:
        """Return a trial whose process is gone, or else the next one, or None."""
        with self._locked():
            return self._orphan() or self._next()

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> None:
        """Record the end of a trial that was taken, and release it."""
        self.optuna.tell(trial, value, state)
        self.release(trial)

    def release(self, trial: optuna.Trial) -> None:
        """Leave a trial, which is over or not, to whoever takes it."""
        self._unlock(trial.number)

    def is_over(self) -> bool:
        """Return whether every trial has ended, those of other processes too."""
        unfinished = self.trials(TrialState.RUNNING, TrialState.WAITING)
        return not unfinished and self._missing() == 0

    def failed(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that failed and were not done again yet."""
        repeated = self._repeated()
        return [t for t in self.trials(TrialState.FAIL) if t.number not in repeated]

    def _repeated(self) -> set[int]:
        return {t.user_attrs[_AGAIN] for t in self.trials() if _AGAIN in t.user_attrs}

    def _missing(self) -> int:
        """Return how many trials are to be begun yet; one and its repetitions are one."""
        return max(0, self.tune.trials - len(self.trials()) + len(self._repeated()))

    def _orphan(self) -> optuna.Trial | None:
        """Take a trial that is RUNNING although no process has it.

        Its state is read again once it is locked: its process may have recorded its end, and
        released it, since we read that it was running.
        """
        for known in self.trials(TrialState.RUNNING):
            if known.number in self.held or not self._lock(known.number):
                continue
            if self.trials()[known.number].state != TrialState.RUNNING:
                self._unlock(known.number)
            elif known.params.keys() == self.distributions.keys():
                return self._reopen(known.number)
            else:  # it died in asking
                self.optuna.tell(known.number, state=TrialState.FAIL)
                self._unlock(known.number)
                self._repeat(known)
        return None

    def _reopen(self, number: int) -> optuna.Trial:
        """Return the trial as Optuna's ask() returned it to the process that is gone."""
        study = self.storage.get_study_id_from_name(self.tune.study)
        id = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.Trial(self.optuna, id)

    def _next(self) -> optuna.Trial | None:
        if not self._missing() and not self.trials(TrialState.WAITING):
            return None
        trial = self.optuna.ask(self.distributions)
        self._lock(trial.number)
        return trial

    def _repeat(self, trial: optuna.trial.FrozenTrial) -> None:
        """Have a failed trial done again."""
        self.optuna.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from choosing a trial meanwhile."""
        fcntl.lockf(self.locks, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, 0)

    def _lock(self, number: int) -> bool:
        """Lock trial `number` if it is free; return whether this process has it now."""
        with suppress(OSError):
            fcntl.lockf(self.locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + number)
            self.held.add(number)
            return True
        return False

    def _unlock(self, number: int) -> None:
        fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, 1 + number)
        self.held.discard(number)


def ended_trials(space: Space) -> int:
    """Return how many trials of the study have ended, for whoever only wants to know."""
    folder = study_folder(space.first)
    if not (folder / STUDY).exists():
        return 0
    with storage_errors(folder):
        study = optuna.load_study(study_name=space.first.tune.study, storage=_storage(folder))
        _compare(folder, study, space)
        return len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _compare(folder: Path, study: optuna.Study, space: Space) -> None:
    """Raise a UserError where the trials so far are those of another setting."""
    setting = json.loads(json.dumps(space.setting()))
    known = study.user_attrs.get(_SETTING, setting)
    # Studies of before have the source of the first choices alone
    asked = {key for key in setting if key in known or OF not in key}
    keys = sorted(known.keys() | asked, key=lambda key: (key == MOVED, key))
    for key in (*space.dimensions, *keys):  # what follows from others is named last
        before, now = known.get(key, "its default"), setting.get(key, "its default")
        if before != now:
            expected = f"{key}={before}, as its trials so far have, not {now}"
            raise UserError(f"{folder}: expected {expected}; tune.study=NAME begins another study")


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Raise a UserError where study.db is broken, or cannot be written."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{folder / STUDY}: {reason}") from error


def _distribution(dim: Dimension) -> optuna.distributions.BaseDistribution:
    if dim.choices:
        return optuna.distributions.CategoricalDistribution(dim.choices)
    if isinstance(dim.low, int) and isinstance(dim.high, int):
        step = dim.step or 1
        return optuna.distributions.IntDistribution(dim.low, dim.high, log=dim.log, step=step)
    return optuna.distributions.FloatDistribution(dim.low, dim.high, log=dim.log)


def _storage(folder: Path) -> optuna.storages.RDBStorage:
    """Open the database; sqlite gives up where another process writes for longer than `timeout`."""
    engine = {"connect_args": {"timeout": WAIT_SECONDS}}
    return optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY}", engine_kwargs=engine)


def _build(name: str, values: dict[str, Any]) -> Any:
    """Build a sampler or pruner; raises a UserError."""
    args = {key: value for key, value in values.items() if key != "_target_"}
    part = Component(name=name, _target_=values["_target_"], args=args)
    locate(f"tune.{name}", part)  # also where only the working directory has it
    return build(f"tune.{name}", part)
