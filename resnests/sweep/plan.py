"""Plan a sweep: check its runs as a whole, tell them apart, and print what is to be done. Writes
nothing; no torch.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from resnests.config.recipe import WEIGHTS, distinguishing_keys, recipe_values
from resnests.config.schema import Config, config_dict
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import is_unmeasured
from resnests.runs.record import FINAL, UnreadableRun
from resnests.runs.weights import digest, require_analysable, weights_file
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.precision import warn_of_emulation
from resnests.text import brief, flat, progress

CONTEXT_GB = 0.6  # that CUDA takes for a process, beside what its tensors do


@dataclass(frozen=True, eq=False)
class Run:
    """Holds a configuration, its place on disk, and its number in the sweep."""

    config: Config
    directory: RunDirectory
    index: int = 0
    differs: str = ""  # what tells it from other runs of the sweep with the same names and seed
    # What it starts afresh over: the digest of the record that its worker clears; None resumes.
    replaces: str | None = None

    @property
    def label(self) -> str:
        c = self.config
        names = f"{c.dataset.name}/{c.arch.name}/{c.variant.name}"
        return f"{names} seed={c.seed} {self.differs}".rstrip()

    def status(self) -> str | None:
        """Return the status on record, None where there is none but what it starts afresh over."""
        if self.replaces is not None and self.directory.record_digest() == self.replaces:
            return None
        return self.directory.status()

    def planned(self) -> Run:
        """Return this run with what it starts afresh over, as the user or its weights ask for it.

        What another sweep finishes in this very moment is neither, and stays.
        """
        final = self.directory.status() in FINAL
        redo = self.config.trainer.overwrite or (final and self._is_outdated())
        return replace(self, replaces=self.directory.record_digest() if redo else None)

    def action(self) -> str:
        """Return what a sweep would do: skip, resume or run. It reads files, and may hash some."""
        status = self.directory.status()
        if status in FINAL and not self.config.trainer.overwrite and not self._is_outdated():
            return "skip"
        resumable = self.directory.checkpoint_file.exists() and not self.config.trainer.overwrite
        return "resume" if resumable else "run"

    def _is_outdated(self) -> bool:
        """Return whether other weights were evaluated, analysed in another way, or not measured by
        all that is asked for.
        """
        record = self.directory.read_record()
        if record is not None and is_unmeasured(self.directory, record, self.config):
            return True
        if self.config.task not in ("evaluate", "analyze"):
            return False
        if record is None or record.weights_sha256 != digest(weights_file(self.config)):
            return True
        if self.config.task == "evaluate":
            return False
        done = self.directory.read_analysis()
        if done is None or not done.is_made_with(self.config):
            return True
        return bool(done.lacking(self.config.analysis))


def plan_runs(configs: Sequence[Config]) -> list[Run]:
    """Return the runs of `configs`; raises a UserError where they cannot work.

    Whether there are such devices is seen here, unless other hosts train.
    """
    _require_shared_values(configs)
    for config in configs:
        if config.task == "evaluate":
            weights_file(config)
        with suppress(UnreadableRun):  # another user's: usable_runs() passes over it
            if config.task == "analyze" and not _is_trained_first(config):
                require_analysable(config)
    demands = {(c.trainer.precision, c.trainer.cuda_graph): c for c in configs}
    for config in () if configs[0].cluster else demands.values():
        allocate(config, 1)
    numbered = list(enumerate(configs))
    runs = [Run(c, RunDirectory.of(c), i) for i, c in progress(numbered, "checking")]
    return _disambiguate(_unique(runs))


def warn_of_epochs_not_kept(runs: Sequence[Run]) -> None:
    """Print that runs which are complete cannot have the weights that trainer.keep_epochs asks for.

    It is no part of a run's identity, so the sweep takes them as they are.
    """
    lacking = []
    for run in runs:
        analyses = run.config.task == "analyze" and run.config.weights is None
        trains = run.config.task == "train" and not run.config.trainer.overwrite
        if analyses or trains:
            trained = run.directory.analysed if analyses else run.directory
            if epochs := trained.epochs_not_kept(run.config.trainer.keep_epochs):
                lacking.append(f"{run.label} has no weights of epochs {epochs}")
    if lacking:
        more = f", nor have {len(lacking) - 1} more runs all of theirs" if lacking[1:] else ""
        print(
            f"warning: trainer.keep_epochs: {lacking[0]}{more}: they were complete when this was "
            "asked for; task=train trainer.overwrite=true trains them afresh",
            file=sys.stderr,
        )


def _is_trained_first(config: Config) -> bool:
    """Return whether an analysis trains its network, which needs no weights yet.

    One that is complete has had them: without them nobody can see whether they are others by now.
    """
    return config.analysis.train and RunDirectory.of(config).status() != "complete"


def usable_runs(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs that are to do, and those that this user may not read or write.

    A line is printed for each of the latter, such as another user's in a folder that is shared; the
    others go on without them.
    """
    todo, barred = [], []
    for run in progress(runs, "comparing"):
        try:
            if run.action() == "skip":
                continue
            run.directory.require_writable()
            todo.append(run.planned())
        except UserError as error:
            barred.append(run)
            print(f"passed over: {run.label}: {error}", file=sys.stderr)
    return todo, barred


def print_plan(runs: Sequence[Run], allocation: Allocation | None) -> list[Run]:
    """Print what a sweep would do with each of `runs`; return those that it would train."""
    actions = [_readable_action(run) for run in progress(runs, "comparing")]
    todo = [run for action, run in zip(actions, runs, strict=True) if action in ("run", "resume")]
    if allocation:
        warn_of_emulation((run.config for run in todo), allocation)
    for action, run in zip(actions, runs, strict=True):
        print(f"{action:7} {run.label}  {run.directory.path}")
    count = Counter(actions)
    slots = f"in jobs of {runs[0].config.cluster and runs[0].config.cluster.name}"
    if allocation:
        at_once = f"{allocation.concurrent} at once on {allocation.kind}"
        slots = f"{at_once}, {allocation.threads} thread(s) each"
    line = f"{count['run']} to run, {count['resume']} to resume, {count['skip']} to skip; {slots}"
    print(line, flush=True)  # before what other processes print
    return todo


def _readable_action(run: Run) -> str:
    try:
        action = run.action()
        if action != "skip":
            run.directory.require_writable()
        return action
    except UserError as error:  # another user's
        print(f"passed over: {run.label}: {error}", file=sys.stderr)
        return "barred"


def known_memory(runs: Sequence[Run]) -> float | None:
    """Return the most GB that one of `runs` is known to take on a GPU, by the records of its cell;
    None where nothing is known, or nothing shares a GPU.
    """
    if runs[0].config.devices.runs_per_gpu == 1:
        return None
    peaks = []
    for cell in {run.directory.path.parent for run in runs}:
        for path in cell.glob("seed=*"):
            with suppress(UserError):  # another user's
                record = RunDirectory(path).record_or_none()
                peaks.append((record and record.peak_device_memory_bytes) or 0)
    return max(peaks) / 1e9 + CONTEXT_GB if any(peaks) else None


def require_folder(runs_dir: str) -> Path:
    """Return the folder, runs_dir or one above it, in which files are or would be made.

    Raises a UserError where that is none.
    """
    place = Path(runs_dir).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        expected = "expected a directory that can be written (not a directory)"
        raise UserError(f"runs_dir={runs_dir}: {expected}")
    return place


def require_writable(runs_dir: str) -> None:
    """Raise a UserError where no file could be made in `runs_dir`; none is made."""
    # As this process would be asked, with the rights that it has beside its user's
    effective = os.access in os.supports_effective_ids
    if not os.access(require_folder(runs_dir), os.W_OK | os.X_OK, effective_ids=effective):
        expected = "expected a directory that can be written (no permission)"
        raise UserError(f"runs_dir={runs_dir}: {expected}")


def _require_shared_values(configs: Sequence[Config]) -> None:
    for key in (
        "task",
        "trainer.device",
        "devices",
        "sweep",
        "cluster",
        "logger",
        "metrics",
        "predictions",
    ):
        shared, *values = map(attrgetter(key), configs)
        for value in values:
            if value != shared:
                name, one, other = _first_difference(key, value, shared)
                expected = f"one value for the whole sweep, such as {other}"
                raise UserError(f"{name}={one}: expected {expected}")


def _first_difference(key: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """Return the key and both values of the first field in which two sections differ."""
    for item in fields(one) if is_dataclass(one) and type(one) is type(other) else ():
        values = getattr(one, item.name), getattr(other, item.name)
        if values[0] != values[1]:
            return (f"{key}.{item.name}", *values)
    return key, one, other


def _unique(runs: Iterable[Run]) -> list[Run]:
    """Return `runs` without repetitions; a UserError where two are one run although they differ."""
    unique: dict[Path, Run] = {}
    for run in runs:
        first = unique.setdefault(run.directory.path, run)
        if first.config == run.config:
            continue
        one, other = _values(first.config), _values(run.config)
        key = next(key for key in one if one[key] != other[key])
        expected = "one value, as it is no part of a run's identity: both are the same run"
        raise UserError(f"{key}={one[key]},{other[key]}: expected {expected}")
    return list(unique.values())


def _values(config: Config) -> dict[str, Any]:
    return dict(flat(config_dict(config)))


def _told(value: Any) -> Any:
    """Return a value as a label has it: a `_target_` as a call, all else as Python writes it."""
    items = value if isinstance(value, list) else [value]
    return brief(value) if any(isinstance(item, dict) for item in items) else value


def _disambiguate(runs: list[Run]) -> list[Run]:
    """Return `runs`, whose labels tell apart those of the same names and seed."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.label].append(run)
    differs: dict[Path, str] = {}
    for group in groups.values():
        recipes = [recipe_values(run.config) for run in group]
        keys = sorted(distinguishing_keys(recipes)) if len(group) > 1 else []
        if WEIGHTS in keys and "weights" not in keys:
            keys.insert(keys.index(WEIGHTS), "weights")  # a digest alone says little
        for run, recipe in zip(group, recipes, strict=True) if keys else ():
            values = _values(run.config) | recipe
            told = " ".join(f"{key}={_told(values.get(key))}" for key in keys)
            differs[run.directory.path] = told
    return [replace(run, differs=differs.get(run.directory.path, "")) for run in runs]
