"""From run directories to one DataFrame: a row per run, every value under one name. Imports no
torch.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.record import METRICS, BrokenRecord, Record
from resnests.text import as_typed, flat

# What a run is, how it ended, and what it measured: the columns that every frame has, in this
# order.
COLUMNS = (
    "path", "dataset", "arch", "variant", "seed", "recipe", "status", "weights", "weights_sha256",
    "parameters", "epochs", "epoch", *METRICS, "seconds", "images_per_second", "error",
    "recipe_values",
)  # fmt: skip
# Keys of the configuration that are columns already.
_LABELS = ("dataset.name", "arch.name", "variant.name", "seed", "task", "weights")


def load_runs(root: Path | str = "runs", trials: bool = False) -> pd.DataFrame:
    """Every run below `root`, one row each; warns of records that are broken, raises UserError
    where there is no run. The `trials` of searches (docs/search.md) are no results, and come only
    where asked for, or where `root` is in the folder of a study.

    path              the run directory
    dataset, arch, variant, seed
    recipe            eight hexadecimal digits that runs share whose numbers may be averaged over
                      seeds
    status            complete, diverged, failed, killed, interrupted or running; killed also where
                      a running process is gone
    weights           file that was evaluated instead of trained weights, and weights_sha256; empty
                      for a training
    parameters        number of trainable parameters
    epochs            epochs completed
    epoch             the epoch that the metrics are of: the last one
    train_loss, test_loss          mean cross-entropy, in nats
    train_accuracy, test_accuracy  percent
    seconds           wall time of the training
    images_per_second training images per second
    error             why the run ended, where it failed
    recipe_values     JSON: every value that makes the recipe and is no default
    optimizer.lr, trainer.epochs, ...
                      the configuration under its dotted keys, lists as one would type them
    provenance.git_commit, provenance.started, ...
                      code, versions, device and times (Unix seconds) of the run
    val_accuracy      where images were held out: percent of those, after the epoch that the other
                      metrics are of
    analysis.status, analysis.bound, analysis.eps, ...
                      where runs were analysed: see runs.analysis.Analysis.summary
    """
    frame, broken = read_runs(root, trials)
    for line in broken:
        warnings.warn(line, stacklevel=2)
    return frame


def read_runs(root: Path | str, trials: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """The frame of load_runs, and one line for each record that could not be used."""
    return Reader(root, trials).read()


class Reader:
    """Reads the runs below `root`, again and again: only records that have changed are opened."""

    def __init__(self, root: Path | str, trials: bool = False) -> None:
        self.root, self.trials = root, trials
        self.known: dict[Path, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # stamp and row
        self.rows: list[dict[str, Any]] = []
        self.frame = pd.DataFrame()

    def read(self) -> tuple[pd.DataFrame, list[str]]:
        """See read_runs; the very frame of the last time where nothing has changed."""
        root = self.root
        if not Path(root).is_dir():
            expected = "expected one with runs, which run.py makes (default: runs)"
            raise UserError(f"{root}: no such directory; {expected}")
        rows, broken = [], []
        for run in find_runs(root, self.trials):
            try:
                if (row := self._row(run)) is not None:
                    rows.append(row)
            except (BrokenRecord, OSError) as error:
                broken.append(f"{run.record_file}: left out, {error}")
        if not rows:
            found = f"none of {len(broken)} records can be read" if broken else "no run in it"
            if not broken and next(find_runs(root, trials=True), None):
                found = "only trials of a search in it, which --trials shows"
            expected = f"{root}: {found}; expected a directory that run.py trained runs in"
            raise UserError("\n".join([*broken, expected]))
        if rows != self.rows:
            types = {"parameters": "Int64"} | dict.fromkeys(METRICS, float)
            self.rows, self.frame = rows, pd.DataFrame(rows).astype(types)
        return self.frame, broken

    def _row(self, run: RunDirectory) -> dict[str, Any] | None:
        analysis = run.analysis
        files = (run.record_file, analysis.record_file, analysis.analysis_file)
        stamp = tuple(map(_stamp, files))
        before, row = self.known.get(run.path, ((), {}))
        statuses = (row.get("status"), row.get("analysis.status"))
        if before == stamp and not {"running", "killed"} & {*statuses}:  # which ask a process
            return row
        record = run.read_record()
        if record is None:
            return None
        row = _row(run, record)
        self.known[run.path] = stamp, row
        return row


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return what changes with every new version of `file`, None where there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _row(run: RunDirectory, record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name, None) for name in COLUMNS}
    row["path"] = str(run.path)
    row["epoch"] = record.epochs
    row["recipe_values"] = json.dumps(record.recipe_values, sort_keys=True)
    row["status"] = _status(run, record)
    if record.task == "evaluate" and not record.weights:
        row["weights"] = "unnamed file"
    row |= {key: as_typed(value) for key, value in flat(record.config) if key not in _LABELS}
    for key, value in flat(dataclasses.asdict(record.provenance)):
        row[f"provenance.{key}"] = None if value is None else as_typed(value)
    if record.status == "complete" and record.config.get("dataset", {}).get("val_fraction"):
        row["val_accuracy"] = _val_accuracy(run)
    analysis = run.analysis.read_analysis()
    if analysis is not None:
        made_with = {"l2": analysis.l2, "tolerance": analysis.tolerance}
        found = run.analysis.sound_record()
        status = {"status": _status(run.analysis, found) if found else "killed"}
        values = made_with | status | analysis.summary()
        row |= {f"analysis.{key}": value for key, value in values.items()}
    return row


def _val_accuracy(run: RunDirectory) -> float | None:
    """Return the accuracy on the held-out images after the last epoch, None where it is unknown."""
    try:
        return run.read_history(("val_accuracy",))["val_accuracy"][-1]
    except (BrokenRecord, IndexError):
        return None


def _status(run: RunDirectory, record: Record) -> str:
    """Return the status on record, but "killed" where a running process is gone."""
    gone = record.status == "running" and not record.is_alive(run.read_progress())
    return "killed" if gone else record.status
