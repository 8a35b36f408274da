"""Print how far a grid is, read from its files at any time and from any machine that sees them:
aggregate.py --status.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from resnests.commands.queue import queue_lines, queued_runs
from resnests.commands.status_lines import CellTable, cell_table, run_line
from resnests.errors import UserError
from resnests.results import notes
from resnests.results.cells import drop_copies, label_rows
from resnests.results.columns import PLANNED
from resnests.results.frame import Reader
from resnests.results.select import select
from resnests.runs.directory import ANALYSIS, RunDirectory
from resnests.runs.record import FINAL
from resnests.runs.sweeps import Asked, epochs_left, seconds_left
from resnests.sweep.executors.slurm_commands import Seen
from resnests.sweep.scheduler import State
from resnests.text import duration, printable

POLL_SECONDS = 2.0  # seconds between two polls of --watch
MOST = 1e9  # epochs or seconds that anything takes: files may say what they like


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


@dataclass
class Sweep:
    """Holds a sweep that is not done, and what is left of it."""

    file: Path  # which says what it was asked for
    asked: Asked
    count: int  # of runs or trials that are not at their end
    left: set[str]  # the directories of the runs
    alive: bool

    def lines(self) -> list[str]:
        """Return what it is, and the command that goes on with it."""
        asked = self.asked
        elsewhere = asked.folder != os.getcwd()
        command = f"cd {shlex.quote(asked.folder)} && " * elsewhere + asked.command
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(asked.started))
        what = f"{self.count} of {asked.count()} runs" + " to analyse" * (asked.task == "analyze")
        if asked.study is not None:
            what = f"{self.count} of {asked.trials} trials of study-{asked.study}"
            if asked.pace:
                what += f", about {duration(asked.pace * self.count)}"
        at_work = f"at work on {asked.host}" if self.alive else "no process of it on this host"
        return [
            f"sweep since {since}: {what} left, {at_work}; this goes on with it:",
            f"  {command}",
            *([] if self.alive else [f"  (to forget what it was asked for: rm {self.file})"]),
        ]


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
            if not self.sweeps and not self.queue:
                raise
            none = [] if self.sweeps else [f"no run in {self.root} yet"]
            return Group(*map(printable, self.queue), *self._sweep_lines(), *none)
        lines = map(printable, [*map(run_line, self.unfinished), *self.queue])
        rest = map(printable, [*self.warnings, *self.copies])
        return Group(self.headline(), self.table or "", *lines, *self._sweep_lines(), *rest)

    def _sweep_lines(self) -> list[Text]:
        """Return the lines of sweeps; a command is one line, as it is copied from the terminal."""
        lines = [printable(line) for sweep in self.sweeps for line in sweep.lines()]
        return [
            Text(line, no_wrap=True, overflow="ignore") if line.startswith("  ") else Text(line)
            for line in lines
        ]

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
            self.sweeps = self._unfinished_sweeps({}, queue.keys())
            raise
        if frame is not self.frame:
            self.frame, self.statuses = frame, _statuses(frame)
        self.sweeps = self._unfinished_sweeps(self.statuses, queue.keys())
        waits = {path: j.reason for path, j in queue.items() if j.state is State.QUEUED}
        waiting = [(str(sweep.file), sweep.asked.waits_for) for sweep in self.sweeps if sweep.alive]
        if self.seen != (now := (id(frame), waits, waiting)):
            self._summarize(_with_queue(frame, waits, self.sweeps))
            self.seen = now

    def headline(self) -> str:
        """Return the counts of all runs, and how long those take yet that sweeps go on with."""
        left = self._seconds_left()
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
        for file, (_, asked, _) in self.reader.sweeps.items():
            below = f"/{ANALYSIS}" if asked.task == "analyze" else ""
            paths = [path for _, _, path in asked.directories(str(file.parent))]
            ended = [statuses.get(path + below) for path in paths]
            left = {path for path, status in zip(paths, ended, strict=True) if status not in FINAL}
            count = asked.trials - asked.ended + len(left)
            if count > 0:
                alive = asked.is_alive() or "running" in ended or not left.isdisjoint(queue)
                sweeps.append(Sweep(file, asked, count, left, alive))
        return sweeps

    def _seconds_left(self) -> float | None:
        """Return how long the runs at work and those that sweeps go on with take, as measured."""
        rates, running = [], []
        for run in self.unfinished:
            beat = RunDirectory(run["path"]).shown_progress() if run["status"] == "running" else {}
            if beat.get("seconds_left") is not None:
                running.append(beat["seconds_left"])
                rate = running[-1] / max(epochs_left(beat), 1e-6)
                rates.append(((run["dataset"], run["arch"]), rate))
        runs, ours = self.runs, set().union(*(sweep.left for sweep in self.sweeps))
        if not running and not ours:
            return None
        complete = runs[runs["status"] == "complete"]
        seconds = complete["seconds"].clip(0, MOST) / complete["epochs"].clip(1, MOST)
        rates += zip(_kinds(complete), seconds, strict=True)
        states = (notes.QUEUED, PLANNED, "interrupted", "killed")
        waiting = runs[runs["status"].isin(states) & runs["path"].isin(ours)]
        asked = waiting.reindex(columns=["trainer.epochs"])["trainer.epochs"]
        epochs = pd.to_numeric(asked, errors="coerce").fillna(0) - waiting["epochs"]
        epochs = epochs.clip(0, MOST).where(~waiting["given"], 1)
        total: Counter[Any] = Counter()
        for kind, count in zip(_kinds(waiting), epochs, strict=True):
            total[kind] += count
        return seconds_left(rates, running, total)


def _kinds(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield what tells how long an epoch takes."""
    return zip(runs["dataset"], runs["arch"], strict=True)


def _statuses(frame: pd.DataFrame) -> dict[str, str]:
    """Return the status of each run and each analysis by its path."""
    statuses = dict(zip(frame["path"], frame["status"], strict=True))
    if "analysis.status" in frame:
        known = frame[frame["analysis.status"].notna()]
        paths = known["path"] + f"/{ANALYSIS}"
        statuses |= dict(zip(paths, known["analysis.status"], strict=True))
    return statuses


def _with_queue(frame: pd.DataFrame, queue: dict[str, str], sweeps: list[Sweep]) -> pd.DataFrame:
    """Return `frame`, in which runs that wait are queued, and their error says what for.

    Those are the runs in the `queue`, and where the process of a sweep knows what its runs wait
    for, those that it has not begun.
    """
    begun = frame.loc[frame["status"] != PLANNED, "path"]
    waits = {
        path: sweep.asked.waits_for
        for sweep in sweeps
        if sweep.alive and sweep.asked.waits_for
        for path in sweep.left.difference(begun)
    }
    is_open = frame["status"].isin((PLANNED, "interrupted", "killed", "failed"))
    reasons = frame["path"].where(is_open).map(waits | queue)
    status = frame["status"].where(reasons.isna(), notes.QUEUED)
    return frame.assign(status=status, error=frame["error"].where(reasons.isna(), reasons))


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
