"""Turn run directories into one DataFrame: a row per run, every value under one name. Imports no
torch.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from resnests.errors import UserError
from resnests.results.columns import COLUMNS as COLUMNS
from resnests.results.columns import Columns, Row, decode
from resnests.results.select import select
from resnests.runs.directory import ANALYSIS, RunDirectory, find_runs
from resnests.runs.record import BrokenRecord, Record
from resnests.runs.sweeps import Asked, find_asked, read_asked

_Stamp = tuple[tuple[int, ...] | None, ...]


def load_runs(
    root: Path | str = "runs", trials: bool = False, query: str | Sequence[str] = ()
) -> pd.DataFrame:
    """Return every run below `root`, one row each; warn of records that are broken, raise a
    UserError where there is no run.

    `query` chooses among them as the words of aggregate.py do, such as "arch=resnet20 seed=0,1"
    (see results/select.py). The `trials` of searches (docs/search.md) are no results, and come only
    where asked for, or where `root` is in the folder of a study.

    Its columns:

        path              the run directory
        dataset, arch, variant, seed
        recipe            eight hexadecimal digits that runs share whose numbers may be averaged
                          over seeds
        status            complete, diverged, failed, killed, interrupted or running; killed also
                          where a running process is gone
        weights           file that was evaluated instead of trained weights, and weights_sha256;
                          empty for a training
        parameters        number of trainable parameters; frozen_parameters, where init.freeze kept
                          some, counts those
        epochs            epochs completed
        epoch             the epoch that the metrics are of: the last one
        train_loss, test_loss
                          mean cross-entropy, in nats
        train_accuracy, test_accuracy
                          percent
        seconds           wall time of the training
        images_per_second training images per second
        error             why the run ended, where it failed
        recipe_values     JSON: every value that makes the recipe and is no default
        optimizer.lr, trainer.epochs, ...
                          the configuration under its dotted keys, lists as one would type them
        provenance.git_commit, provenance.started, ...
                          code, versions, device and times (Unix seconds) of the run
        val_loss, val_accuracy
                          where images were held out: of those, after the epoch that the other
                          metrics are of
        test_f1, val_f1, test_ema_accuracy, ...
                          what `metrics` and trainer.ema measured beside them
        analysis.status, analysis.bound, analysis.eps, ...
                          where runs were analysed: see runs.analysis.Analysis.summary
    """
    frame, broken = read_runs(root, trials)
    for line in broken:
        warnings.warn(line, stacklevel=2)
    return select(frame, query.split() if isinstance(query, str) else query)


def read_runs(
    root: Path | str, trials: bool = False, planned: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Return the frame of load_runs, and one line for each record that could not be used.

    With `planned` it has runs, too, that sweeps were asked for and that have not begun.
    """
    return Reader(root, trials, planned).read()


class Reader:
    """Reads the runs below `root`, again and again: only records that have changed are opened."""

    def __init__(self, root: Path | str, trials: bool = False, planned: bool = False) -> None:
        self.root, self.trials, self.planned = root, trials, planned
        self.columns = Columns()
        self.known: dict[str, tuple[_Stamp, Row]] = {}
        self.sweeps: dict[Path, tuple[_Stamp, Asked, list[Row]]] = {}  # by their files
        self.rows: list[Row] = []
        self.frame = pd.DataFrame()

    def read(self) -> tuple[pd.DataFrame, list[str]]:
        """Return what read_runs does: the very frame of the last time where nothing has changed."""
        root = self.root
        if not Path(root).is_dir():
            expected = "expected one with runs, which run.py makes (default: runs)"
            raise UserError(f"{root}: no such directory; {expected}")
        rows, broken = [], []
        for run in find_runs(root, self.trials):
            try:
                rows.append(self._row(run))
            except FileNotFoundError:  # it was removed meanwhile
                continue
            except (BrokenRecord, OSError) as error:
                broken.append(f"{run.record_file}: left out, {error}")
        if self.planned:
            rows += self._planned([row.own[0] for row in rows], broken)
        if not rows:
            found = f"none of {len(broken)} records can be read" if broken else "no run in it"
            if not broken and next(find_runs(root, trials=True), None):
                found = "only trials of a search in it, which aggregate.py --trials shows"
            expected = f"{root}: {found}; expected a directory that run.py trained runs in"
            raise UserError("\n".join([*broken, expected]))
        if rows != self.rows:
            self.rows, self.frame = rows, self.columns.frame(rows)
        return self.frame, broken

    def _planned(self, there: list[str], broken: list[str]) -> list[Row]:
        """Return the rows of runs that sweeps were asked for and that are not `there`; add a line
        to `broken` for each file that is no sweep's.

        A tree may be several that were put side by side: the files are where runs say that their
        runs_dir is, which may be above the root, too.
        """
        homes = {str(Path(self.root))}
        homes |= {p.rsplit("/", 5)[0] or "/" if p.count("/") >= 5 else "." for p in there}
        before, self.sweeps = self.sweeps, {}
        for file in [file for home in sorted(homes) for file in find_asked(home)]:
            try:
                stamp = (_stamp(str(file)),)
                known = before.get(file)
                if known is None or known[0] != stamp:
                    asked = read_asked(file)
                    known = stamp, asked, self._rows_of(asked, str(file.parent))
                self.sweeps[file] = known
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                broken.append(f"{file}: passed over, {error}")
        root, taken = os.path.join(Path(self.root), ""), {*there}
        rows = []
        for _, _, planned in self.sweeps.values():
            for row in planned:
                path = row.own[0]
                if path not in taken and (path.startswith(root) or root == "./"):
                    taken.add(path)
                    rows.append(row)
        return rows

    def _rows_of(self, asked: Asked, home: str) -> list[Row]:
        """Return the rows of a sweep whose file is in `home`, as if none of its runs was there."""
        rows: list[Row] = []
        for cell in asked.cells:
            names = ("dataset", "arch", "variant", "recipe")
            given: dict[str, Any] = dict(zip(names, cell.place.split("/"), strict=True))
            paths = [str(Path(home, cell.place, f"seed={seed}")) for seed in cell.seeds]
            recipe = json.dumps(asked.recipe | cell.recipe, sort_keys=True)
            more = {"path": paths, "seed": cell.seeds, "weights": cell.weights}
            given |= more | {"recipe_values": recipe}
            rows += self.columns.planned(given, asked.config | cell.config)
        return rows

    def _row(self, run: RunDirectory) -> Row:
        """Return the row of `run`, that of the last time where nothing has changed since."""
        path = str(run.path)
        # A file that is replaced changes its folder too: so does each step of an analysis.
        stamp = _stamp(f"{path}/record.json"), _stamp(f"{path}/{ANALYSIS}")
        before, row = self.known.get(path, (None, None))
        if row is None or before != stamp or _asks_a_process(row):
            row = self._read(run, path, analysed=stamp[1] is not None)
            self.known[path] = stamp, row
        return row

    def _read(self, run: RunDirectory, path: str, analysed: bool) -> Row:
        """Return the row of `run` as its files have it; raise BrokenRecord."""
        with open(f"{path}/record.json", "rb") as file:
            text = file.read()
        record = decode(text)
        status = record.status
        if status == "running":
            status = _status(run, Record.from_json(text))
        row = self.columns.row(record, path, status, _analysis(run) if analysed else {})
        if status == "complete" and self.columns.config(row).get("dataset.val_fraction"):
            row = row._replace(more=row.more | _validation(run))
        metrics = {
            f"{split}_{name}": found[split]
            for name, found in record.metrics.items()
            for split in ("val", "test")
            if split in found
        }
        if metrics:
            row = row._replace(more=row.more | metrics)
        return row


def _stamp(file: str) -> tuple[int, ...] | None:
    """Return what changes with every new version of `file`, None where there is none."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _asks_a_process(row: Row) -> bool:
    """Return whether a status depends on a process, beside what is on disk."""
    return bool({row.status, row.more.get("analysis.status")} & {"running", "killed"})


def _analysis(run: RunDirectory) -> dict[str, Any]:
    """Return the columns of the analysis of `run`, none where there is no sound one."""
    analysis = run.analysis.read_analysis()
    if analysis is None:
        return {}
    found = run.analysis.record_or_none()
    status = _status(run.analysis, found) if found else "killed"
    values = {"status": status} | analysis.summary()
    return {f"analysis.{key}": value for key, value in values.items()}


def _validation(run: RunDirectory) -> dict[str, float | None]:
    """Return what was measured on the held-out images after the last epoch, None where it is
    unknown.
    """
    columns = ("val_loss", "val_accuracy")
    try:
        return {name: values[-1] for name, values in run.read_history(columns).items()}
    except (BrokenRecord, IndexError):
        return dict.fromkeys(columns)


def _status(run: RunDirectory, record: Record) -> str:
    """Return the status on record, but "killed" where a running process is gone."""
    gone = record.status == "running" and not record.is_alive(run.read_progress())
    return "killed" if gone else record.status
