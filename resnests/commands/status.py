"""Print how far a grid is, read from its files at any time and from any machine that sees them:
aggregate.py --status.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from resnests.commands.queue import queue_lines, queued_runs
from resnests.commands.status_lines import CellTable, cell_table, run_line
from resnests.commands.waiting import Sweep, study_lines, time_left, with_queue
from resnests.errors import UserError
from resnests.results import notes
from resnests.results.cells import drop_copies, label_rows
from resnests.results.columns import PLANNED
from resnests.results.frame import Reader
from resnests.results.select import select
from resnests.runs.directory import ANALYSIS, RunDirectory
from resnests.runs.record import FINAL
from resnests.runs.sweeps import Asked
from resnests.sweep.executors.slurm_commands import Seen
from resnests.sweep.scheduler import State
from resnests.text import duration, printable

POLL_SECONDS = 2.0  # seconds between two polls of --watch


def show(root: str, watch: bool = False, trials: bool = False, query: Sequence[str] = ()) -> None:
    """Print the status of the runs below `root` that `query` chooses, and with `watch` again and
    again until interrupted.
    """
    console = Console(highlight=False, markup=False, emoji=False)  # errors are shown as they are
    can_draw = console.is_terminal and not console.is_dumb_terminal
    if not console.is_terminal:
        console.width = 10_000  # whatever reads it wants whole lines
    status = Status(root, trials, query)
    shown = status.poll()
    if not watch:
        return _print(console, shown)
    try:
        if can_draw:
            with Live(_table_last(shown), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(POLL_SECONDS)
                    live.update(_table_last(_when_there_are_runs(status)), refresh=True)
        before = None
        while True:  # nothing can be drawn over: whatever is new is printed below
            now = status.seen, len(status.sweeps), len(shown.renderables)
            if now != before:
                _print(console, shown)
            before = now
            time.sleep(POLL_SECONDS)
            shown = _when_there_are_runs(status)
    except KeyboardInterrupt:
        pass


def _print(console: Console, shown: Group) -> None:
    for part in shown.renderables:
        console.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))


def _table_last(shown: Group) -> Group:
    """Return what is drawn on a terminal, which is cut off at its lower end: the table of cells
    stands there, as it may be long and changes least.
    """
    return Group(*sorted(shown.renderables, key=lambda part: isinstance(part, CellTable)))


def _when_there_are_runs(status: Status) -> Group:
    """Return what there is to show, or, where there are no runs yet, a line that says so."""
    try:
        return status.poll()
    except UserError as error:  # a sweep may just be starting
        return Group(str(error))


class Status:
    """Reads how far the runs below `root` are, again and again."""

    def __init__(
        self,
        root: str,
        trials: bool = False,
        query: Sequence[str] = (),
        reader: Reader | None = None,
        queued: Callable[[], dict[str, Seen]] | None = None,
    ) -> None:
        self.root, self.query = str(Path(root)), query
        self.reader = reader or Reader(root, trials, planned=True)
        self.queued = queued or (lambda: queued_runs(self.root))
        self.seen: tuple[Any, ...] = ()
        self.queue: list[str] = []  # lines
        self.sweeps: list[Sweep] = []
        self.warnings: list[str] = []
        self.frame: pd.DataFrame | None = None  # as it was read, and the statuses by path in it:
        self.statuses: dict[str, str] = {}
        self.digests: dict[Path, tuple[Any, str]] = {}  # of records, as they were read
        self.runs = pd.DataFrame()  # labelled, each seed once; of which there are:
        self.counts: list[str] = []
        self.table: CellTable | None = None
        self.unfinished: list[dict[str, Any]] = []
        self.copies: list[str] = []

    def poll(self) -> Group:
        """Return counts of all runs, a table of them by cell, a line for each that runs, waits in a
        queue or did not finish, and what sweeps are to do.
        """
        try:
            self.read()
        except UserError:
            is_of_query = self.frame is not None  # there are runs, and none that fits
            if is_of_query or not (self.sweeps or self.queue or self._study_lines()):
                raise
            none = [] if self.sweeps or not self.queue else [f"no run in {self.root} yet"]
            return Group(*map(printable, self.queue), *self._sweep_lines(), *none)
        lines = map(printable, [*map(run_line, self.unfinished), *self.queue])
        rest = map(printable, [*self.warnings, *self.copies])
        return Group(self.headline(), self.table or "", *lines, *self._sweep_lines(), *rest)

    def _sweep_lines(self) -> list[Text]:
        """Return the lines of sweeps, and of studies that have ended; a command is one line, as it
        is copied from the terminal.
        """
        lines = [printable(line) for sweep in self.sweeps for line in sweep.lines()]
        lines += map(printable, self._study_lines())
        return [
            Text(line, no_wrap=True, overflow="ignore") if line.startswith("  ") else Text(line)
            for line in lines
        ]

    def _study_lines(self) -> list[str]:
        return [] if self.query else study_lines(self.root, self.sweeps)

    def read(self) -> None:
        """Bring all that is shown up to date; raise a UserError where there is no run."""
        try:
            queue = self.queued()
            self.queue = queue_lines(queue)
        except UserError as error:
            queue, self.queue = {}, [str(error)]
        try:
            frame, self.warnings = self.reader.read()
        except UserError:
            self.frame, self.sweeps = None, self._unfinished_sweeps({}, queue.keys())
            raise
        if frame is not self.frame:
            self.frame, self.statuses = frame, _statuses(frame)
        self.sweeps = self._unfinished_sweeps(self.statuses, queue.keys())
        waits = {  # a run that its analysis trains waits with it
            path.removesuffix(f"/{ANALYSIS}"): job.reason
            for path, job in queue.items()
            if job.state is State.QUEUED
        }
        waiting = [
            (str(sweep.file), sweep.asked.started, sweep.asked.waits_for, sweep.alive, sweep.old)
            for sweep in self.sweeps
        ]
        if self.seen != (now := (id(frame), waits, waiting)):
            self._summarize(with_queue(frame, waits, self.sweeps))
            self.seen = now
        if self.query:
            self._drop_others(queue, set(self.runs["path"]))

    def _drop_others(self, queue: dict[str, Seen], chosen: set[str]) -> None:
        """Leave only sweeps and jobs that have `chosen` runs, or of which that is not known: which
        runs a search has is open.
        """
        self.sweeps = [one for one in self.sweeps if one.asked.study or one.left & chosen]
        others = self.statuses.keys() - chosen
        if queue:
            run = {path: path.removesuffix(f"/{ANALYSIS}") for path in queue}
            self.queue = queue_lines({p: queue[p] for p in queue if run[p] not in others})

    def headline(self) -> str:
        """Return the counts of all runs, and how long those take yet that sweeps go on with."""
        left = time_left(self.runs, self.unfinished, self.sweeps)
        running = any(run["status"] == "running" for run in self.unfinished)
        one_by_one = "" if running else ", one at a time"
        return ", ".join(self.counts) + (
            f"; about {duration(left)} left{one_by_one}" if left else ""
        )

    def _summarize(self, frame: pd.DataFrame) -> None:
        """Keep what a poll shows of `frame`, but for what changes without a new record."""
        runs, self.copies = drop_copies(label_rows(select(frame, self.query)))
        troubles = notes.troubles(runs)
        counts = runs["status"].value_counts().to_dict()
        missing = sum(len(trouble.get("missing", {})) for trouble in troubles.values())
        parts = [f"{counts.get('complete', 0)} of {len(runs) + missing} done"]
        parts += [f"{counts[name]} {name}" for name in notes.UNFINISHED if counts.get(name)]
        reasons = Counter(runs.loc[runs["status"] == notes.QUEUED, "error"]).most_common()
        why = ", ".join(reason if len(reasons) == 1 else f"{n} {reason}" for reason, n in reasons)
        parts = [f"{part} ({why})" if part.endswith(notes.QUEUED) else part for part in parts]
        parts += [f"{missing} missing"] if missing else []
        analyses = _unfinished_analyses(runs)
        what = "analysis" if len(analyses) == 1 else "analyses"
        parts += [f"{len(analyses)} {what} not done"] if analyses else []
        self.runs, self.counts, self.table = runs, parts, cell_table(runs, troubles)
        named = [name for name in notes.UNFINISHED if name not in (notes.QUEUED, PLANNED)]
        some = (runs[runs["status"] == name] for name in named)
        self.unfinished = [run for these in some for run in these.to_dict("records")] + analyses

    def _unfinished_sweeps(self, statuses: dict[str, str], queue: AbstractSet[str]) -> list[Sweep]:
        """Return the sweeps of which runs, with these statuses by path, are not at their end."""
        sweeps = []
        # A run at work tells of a sweep that is not alive here that its jobs, or those of another
        # host, are; unless one that is alive here was asked for that run, too.
        running = {path for path, status in statuses.items() if status == "running"}
        asked_for = [
            (file, asked, _records(asked, str(file.parent)))
            for file, (_, asked, _) in self.reader.sweeps.items()
        ]
        for _, asked, records in asked_for:
            if asked.is_alive():
                running.difference_update(records.values())
        for file, asked, records in asked_for:
            left = {path for path, record in records.items() if statuses.get(record) not in FINAL}
            old = self._old(asked, str(file.parent))
            begun = asked.is_alive() or not running.isdisjoint(records.values())
            alive = begun or not queue.isdisjoint(records[path] for path in left | old)
            if asked.overwrite and not alive:  # its command would leave them as they are
                old = set()
            count = asked.trials - asked.ended + len(left | old)
            if count > 0:
                redone = old if asked.task != "analyze" else set()
                sweeps.append(Sweep(file, asked, count, left | old, redone, alive))
        return sweeps

    def _old(self, asked: Asked, home: str) -> set[str]:
        """Return the runs that are on record as they were when the sweep began, which makes them
        again.
        """
        found = set()
        for cell, seed, path in asked.directories(home):
            if cell.replaces.get(seed):
                stamp, _ = self.reader.known.get(path, (None, None))
                run = asked.run(path)  # which is another one where it is the analysis of that
                if self.digests.get(run.path, (None,))[0] != stamp or stamp is None:
                    self.digests[run.path] = stamp, _digest(run)
                if self.digests[run.path][1] == cell.replaces[seed]:
                    found.add(path)
        return found


def _records(asked: Asked, home: str) -> dict[str, str]:
    """Return directory -> that of its record for each run of a sweep: an analysis has its own."""
    below = f"/{ANALYSIS}" if asked.task == "analyze" else ""
    return {path: path + below for _, _, path in asked.directories(home)}


def _statuses(frame: pd.DataFrame) -> dict[str, str]:
    """Return the status of each run and each analysis by its path."""
    statuses = dict(zip(frame["path"], frame["status"], strict=True))
    if "analysis.status" in frame:
        known = frame[frame["analysis.status"].notna()]
        paths = known["path"] + f"/{ANALYSIS}"
        statuses |= dict(zip(paths, known["analysis.status"], strict=True))
    return statuses


def _digest(run: RunDirectory) -> str:
    try:
        return run.record_digest()
    except OSError:  # another user's
        return ""


def _unfinished_analyses(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the analyses that are not complete, as runs whose status says so."""
    if "analysis.status" not in runs:
        return []
    left = runs[runs["analysis.status"].isin(notes.UNFINISHED)]
    return [
        run
        | {"status": f"analysis {run['analysis.status']}", "error": None}
        | {"path": str(RunDirectory(run["path"]).analysis.path)}
        for run in left.to_dict("records")
    ]
