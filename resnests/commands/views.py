"""Read the runs that the live page shows: those below a folder, chosen by words, with their tables.

Reading takes at most a twenty-fifth of the time.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from resnests.commands.queue import QueueWatch
from resnests.commands.status import Status
from resnests.errors import UserError
from resnests.results.cells import CELL, Cell
from resnests.results.columns import Row
from resnests.results.frame import Reader
from resnests.results.output import COMPARISONS, Plan, Results
from resnests.results.report import cell_key
from resnests.results.stats import at_best_epoch
from resnests.results.tables import Table
from resnests.runs.directory import ANALYSIS, RunDirectory
from resnests.runs.files import leads_out, only_below
from resnests.runs.record import BrokenRecord

SHARE = 0.04  # of the time that reading may take
POLL_SECONDS = 1.5  # between two polls, at least


class InsideReader(Reader):
    """Reads the runs below a folder, none that links lead to elsewhere, and only as often as that
    costs little.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root, planned=True)
        self.queue = QueueWatch(str(Path(root)))
        self.due = 0.0
        self.last: tuple[pd.DataFrame, list[str]] | UserError | None = None

    def read(self) -> tuple[pd.DataFrame, list[str]]:
        """Return what the last poll found, or the next one where it is due."""
        if self.last is None or time.monotonic() >= self.due:
            is_first, started = self.last is None, time.thread_time()
            try:
                with only_below(self.root):
                    self.last = super().read()
            except UserError as error:
                self.last = error
            cost = 0.0 if is_first else time.thread_time() - started  # the next one costs less
            self.due = time.monotonic() + max(POLL_SECONDS, cost / SHARE)
        if isinstance(self.last, UserError):
            raise self.last
        return self.last

    def _read(self, run: RunDirectory, path: str, analysed: bool) -> Row:
        if leads_out(path):
            raise BrokenRecord(f"a link leads to it, which is not below {self.root}")
        for folder in (path, *[f"{path}/{ANALYSIS}"] * analysed):
            with os.scandir(folder) as entries:
                links = [e for e in entries if e.is_symlink() and leads_out(e.path)]
            if links:
                raise BrokenRecord(f"{links[0].name} is a link to what is not below {self.root}")
        return super()._read(run, path, analysed)


class View:
    """Holds the runs that some words choose, and their tables."""

    def __init__(self, reader: InsideReader, root: str, words: list[str], plan: Plan) -> None:
        self.status, self.plan = (
            Status(root, query=words, reader=reader, queued=reader.queue.queued_runs),
            plan,
        )
        self.seen: pd.DataFrame | None = None
        self.version = 0  # another one whenever anything of it is
        self.tables: list[Table] = []
        self.cells: dict[str, tuple[Cell, pd.DataFrame]] = {}
        self.problems: list[str] = []

    def poll(self) -> None:
        """Bring all up to date; raise a UserError where there is no such run."""
        self.status.read()
        runs = self.status.runs
        if runs is self.seen:
            return
        self.tables, self.problems = self._tables(runs)
        self.cells = {
            cell_key(Cell(*key)): (Cell(*key), mine)
            for key, mine in runs.groupby(CELL, observed=True)
        }
        self.seen, self.version = runs, time.time_ns()

    def _tables(self, runs: pd.DataFrame) -> tuple[list[Table], list[str]]:
        """Return the tables of `runs`, and a line for what cannot be shown of them.

        When a sweep begins no run may have what --compare or --epoch best need: that must not hide
        the rest of the page.
        """
        try:
            shown = at_best_epoch(runs) if self.plan.what.epoch == "best" else runs
        except UserError as error:
            return [], [str(error)]
        results = Results(shown, [], self.plan)
        try:
            return results.tables(), results.problems
        except UserError as error:
            compare = [one for one in self.plan.compare if one in COMPARISONS]
            results = Results(shown, [str(error)], replace(self.plan, compare=compare))
            return results.tables(), results.problems
