"""What a tracker is told of a run, all of it read from the run directory."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnests.errors import UserError
from resnests.results.frame import flat, text
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL, METRICS, Record

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
    """What a tracker needs to find the curve of a run, or to begin one."""

    id: str  # 16 hexadecimal digits: of one training from its first epoch on, resumed or not
    name: str  # <dataset>/<arch>/<variant>/<recipe>/seed=<n>
    group: str  # what the seeds of a cell share: the name without the seed
    sweep: str  # the folder of runs
    tags: dict[str, str]
    hyperparameters: dict[str, bool | float | str]
    started: float  # Unix seconds


class Tracker(Protocol):
    """What `_target_` of an entry of `logger` builds, from the other keys of that entry."""

    def start(self, run: TrackedRun) -> set[int]:
        """Go on with the curve of `run`, or begin it; the epochs that it has already."""

    def epoch(self, epoch: int, values: Row, time: float) -> None:
        """A row of history.csv without what was not measured; `time` in Unix seconds."""

    def end(self, status: str, metrics: Row, figures: dict[str, bytes]) -> None:
        """The run ended; `metrics` and PNG `figures` are empty unless it is complete or diverged.
        May come again, for a run that was resumed.
        """


class Echo:
    """A run in one tracker. Every method may raise whatever the tracker raises."""

    def __init__(self, directory: RunDirectory, tracker: Tracker) -> None:
        self.directory, self.tracker = directory, tracker
        self.sent: set[int] | None = None

    def catch_up(self, record: Record) -> None:
        """Send every epoch that the tracker has not."""
        rows = self.directory.history_rows()
        if self.sent is None:
            self.sent = set(self.tracker.start(describe(self.directory, record, rows)))
        for row, when in zip(rows, _times(record, rows), strict=True):
            epoch = int(row["epoch"])
            if epoch not in self.sent:
                measured = {name: v for name, v in row.items() if math.isfinite(v)}
                del measured["epoch"]
                self.tracker.epoch(epoch, measured, when)
                self.sent.add(epoch)

    def end(self, record: Record) -> None:
        """Send what is missing, and how the run ended."""
        self.catch_up(record)
        final = record.status in FINAL
        measured = {name: getattr(record, name) for name in FINAL_METRICS}
        values = {name: value for name, value in measured.items() if value is not None}
        status = "killed" if record.status == "running" else record.status
        self.tracker.end(status, values if final else {}, self._figures() if final else {})

    def _figures(self) -> dict[str, bytes]:
        """The learning curves of a complete run that has some."""
        found = [d for d in drawings(self.directory.path) if d.key.startswith("curves")]
        return {"curves": found[0].render("png")} if found else {}


def drawings(root: Path) -> Iterator[Any]:
    """The figures that aggregate.py makes of the runs below `root`."""
    from resnests.results import plots
    from resnests.results.cells import drop_copies, label_rows
    from resnests.results.frame import read_runs

    runs, _ = drop_copies(label_rows(read_runs(root)[0]))
    return plots.drawings(runs, [])


def build_tracker(name: str, values: dict[str, Any]) -> Tracker:
    """The tracker of an entry of `logger`; raises a UserError, also where it is not installed."""
    from resnests.config.parts import Part
    from resnests.config.targets import build, find

    require_installed(name, values)
    args = {key: value for key, value in values.items() if key != "_target_"}
    part = Part(name=name, _target_=values["_target_"], args=args)
    find(f"logger.{name}", part)  # also where only the working directory has it
    return build(f"logger.{name}", part)


def require_installed(name: str, values: dict[str, Any]) -> None:
    """Raises a UserError where the package of one of our trackers is missing."""
    ours = name in TRACKERS and values["_target_"].startswith("resnests.")
    if ours and importlib.util.find_spec(name) is None:
        raise UserError(f"logger={name}: not installed: pip install 'resnests[{name}]'")


def describe(directory: RunDirectory, record: Record, rows: list[Row]) -> TrackedRun:
    """Of the run in `directory`, of which `rows` are the history so far.

    The first epoch with its times marks one training: a resumed run has the same, and one that
    was started afresh another.
    """
    group = f"{record.dataset}/{record.arch}/{record.variant}/{record.recipe}"
    name = f"{group}/seed={record.seed}"
    mark = f"{name} {record.weights_sha256} {sorted(rows[0].items()) if rows else None}"
    keys = ("dataset", "arch", "variant", "recipe", "seed")
    values = {key: text(value) for key, value in flat(record.config)}
    return TrackedRun(
        id=hashlib.sha256(mark.encode()).hexdigest()[:16],
        name=name,
        group=group,
        sweep=directory.path.resolve().parents[4].name,
        tags={key: str(getattr(record, key)) for key in keys},
        hyperparameters={k: v for k, v in values.items() if not k.startswith(_NO_HYPERPARAMETERS)},
        started=_end(record) - sum(row["seconds"] for row in rows),
    )


def figures_of(root: Path) -> TrackedRun:
    """What the figures over all runs below `root` are sent as."""
    name = root.resolve().name
    mark = hashlib.sha256(f"figures {name}".encode()).hexdigest()[:16]
    return TrackedRun(mark, "figures", "figures", name, {}, {}, time.time())


def _times(record: Record, rows: list[Row]) -> list[float]:
    """When each epoch was over, as near as its seconds tell."""
    when, times = _end(record), []
    for row in reversed(rows):
        times.append(when)
        when -= row["seconds"]
    return times[::-1]


def _end(record: Record) -> float:
    return record.provenance.ended or time.time()
