"""Define what a tracker is, and read what it gets of a run from the run directory."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, Record
from resnests.text import as_typed, flat

TRACKERS = ("tensorboard", "wandb", "mlflow")  # ours; the names of their packages and extras
FINAL_METRICS = (
    "parameters", "epochs", *METRICS, "seconds", "images_per_second", "peak_memory_bytes",
    "peak_device_memory_bytes",
)  # fmt: skip
_NO_HYPERPARAMETERS = (
    "devices.", "sweep.", "analysis.", "tune.", "logger.", "cluster", "runs_dir", "seed",
)  # fmt: skip

Row = dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """Holds what a tracker needs to find the curve of a run, or to begin one."""

    id: str  # 16 hexadecimal digits: of one training from its start on, resumed or not
    name: str  # <dataset>/<arch>/<variant>/<recipe>/seed=<n>
    group: str  # what the seeds of a cell share: the name without the seed
    sweep: str  # the folder of runs
    tags: dict[str, str]
    hyperparameters: dict[str, bool | float | str]
    started: float  # Unix seconds


class Tracker(Protocol):
    """Describes what `_target_` of an entry of `logger` builds, from the other keys of that entry.

    Each run has a tracker of its own, and runs that are trained at the same time are open at the
    same time. All calls of a sweep come from one thread.
    """

    def start(self, run: TrackedRun) -> set[int]:
        """Go on with the curve of `run`, or begin it; return the epochs that it has already."""

    def epoch(self, epoch: int, values: Row, time: float) -> None:
        """Take a row of history.csv without what was not measured; `time` in Unix seconds."""

    def end(self, status: str, metrics: Row, figures: dict[str, bytes]) -> None:
        """Close the run; `metrics` and PNG `figures` are empty unless it is complete or diverged.

        A run that goes on after it comes again, in another tracker.
        """


def build_tracker(name: str, values: dict[str, Any]) -> Tracker:
    """Build the tracker of an entry of `logger`.

    Raises a UserError, also where its package is not installed.
    """
    from resnests.config.parts import Component
    from resnests.config.targets import build, locate

    require_installed(name, values)
    args = {key: value for key, value in values.items() if key != "_target_"}
    part = Component(name=name, _target_=values["_target_"], args=args)
    locate(f"logger.{name}", part)  # also where only the working directory has it
    return build(f"logger.{name}", part)


def require_installed(name: str, values: dict[str, Any]) -> None:
    """Raise a UserError where the package of one of our trackers is missing."""
    ours = name in TRACKERS and values["_target_"].startswith("resnests.")
    if ours and importlib.util.find_spec(name) is None:
        raise UserError(f"logger={name}: not installed: pip install 'resnests[{name}]'")


def describe(directory: RunDirectory, record: Record, rows: list[Row], id: str) -> TrackedRun:
    """Describe the run in `directory`, of which `rows` are the history so far."""
    group = f"{record.dataset}/{record.arch}/{record.variant}/{record.recipe}"
    keys = ("dataset", "arch", "variant", "recipe", "seed")
    values = {key: as_typed(value) for key, value in flat(record.config)}
    return TrackedRun(
        id=id,
        name=f"{group}/seed={record.seed}",
        group=group,
        sweep=directory.path.resolve().parents[4].name,
        tags={key: str(getattr(record, key)) for key in keys},
        hyperparameters={k: v for k, v in values.items() if not k.startswith(_NO_HYPERPARAMETERS)},
        started=_end(record) - sum(row["seconds"] for row in rows),
    )


def first_epoch_id(record: Record, rows: list[Row]) -> str:
    """Return the id of a training by its first epoch, with its times.

    A resumed run has the same, and one that was started afresh another. Where there is no epoch
    yet it is the same for all attempts, and sync.<name> holds it from then on (run_sync.py).
    """
    name = f"{record.dataset}/{record.arch}/{record.variant}/{record.recipe}/seed={record.seed}"
    mark = f"{name} {record.weights_sha256} {sorted(rows[0].items()) if rows else None}"
    return hashlib.sha256(mark.encode()).hexdigest()[:16]


def final_metrics(record: Record) -> Row:
    """Return what was measured of a run that has ended. An accuracy of 0.0% was."""
    values = {name: getattr(record, name) for name in FINAL_METRICS}
    if record.task == "evaluate":
        del values["epochs"]  # given weights have no training of ours
    for name, found in record.metrics.items():
        values |= {f"{k}_{name}": found[k] for k in ("val", "test") if k in found}
    return {name: value for name, value in values.items() if value is not None}


def figures_of(root: Path, query: Sequence[str] = ()) -> TrackedRun:
    """Describe the run as which the figures over the runs below `root` are sent that `query`
    chooses: those of all are another one.
    """
    folder = root.resolve().name
    name = "_".join(["figures", *(re.sub(r"[^\w.,=-]", "_", word) for word in query)])[:100]
    mark = hashlib.sha256(" ".join(["figures", folder, *query]).encode()).hexdigest()[:16]
    return TrackedRun(mark, name, "figures", folder, {}, {}, time.time())


def drawings(root: Path, query: Sequence[str] = ()) -> Iterator[Any]:
    """Yield the figures that aggregate.py makes of the runs below `root` that `query` chooses."""
    from resnests.results import plots
    from resnests.results.cells import drop_copies, label_rows
    from resnests.results.frame import read_runs
    from resnests.results.select import select

    runs, _ = drop_copies(label_rows(select(read_runs(root)[0], query)))
    return plots.drawings(runs, [])


def epoch_times(record: Record, rows: list[Row]) -> list[float]:
    """Return when each epoch was over, as near as its seconds tell."""
    when, times = _end(record), []
    for row in reversed(rows):
        times.append(when)
        when -= row["seconds"]
    return times[::-1]


def _end(record: Record) -> float:
    return record.provenance.ended or time.time()
