"""Print how far a grid is, read from its files at any time and from any machine that sees them:
aggregate.py --status.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table

from resnests.commands.queue import queue_lines
from resnests.errors import UserError
from resnests.paper import dataset_label, variant_label
from resnests.results import notes
from resnests.results.cells import CELL, ROW, Cell, drop_copies, label_rows, names, row_name
from resnests.results.frame import Reader
from resnests.results.select import select
from resnests.runs.directory import RunDirectory
from resnests.text import duration

POLL_SECONDS = 2.0  # seconds between two polls of --watch


def show(root: str, watch: bool = False, trials: bool = False, query: Sequence[str] = ()) -> None:
    """Print the status of the runs below `root` that `query` chooses, and with `watch` again and
    again until interrupted.
    """
    console = Console(highlight=False, markup=False, emoji=False)  # errors are shown as they are
    if not console.is_terminal:
        console.width = 200
    status = Status(root, trials, query)
    if not watch:
        console.print(status.poll())
        return
    with Live(status.poll(), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(POLL_SECONDS)
                live.update(_when_there_are_runs(status), refresh=True)
        except KeyboardInterrupt:
            pass


def _when_there_are_runs(status: Status) -> Group | str:
    """Return what there is to show, or, where there are no runs yet, a line that says so."""
    try:
        return status.poll()
    except UserError as error:  # a sweep may just be starting
        return str(error)


class Status:
    """Reads how far the runs below `root` are, again and again."""

    def __init__(self, root: str, trials: bool = False, query: Sequence[str] = ()) -> None:
        self.root, self.reader, self.query = root, Reader(root, trials), query
        self.frame: pd.DataFrame | None = None  # of which there are:
        self.parts: list[str | CellTable] = []
        self.unfinished: list[dict] = []
        self.copies: list[str] = []

    def poll(self) -> Group:
        """Return counts of all runs, a table of them by cell, and a line for each that runs or did
        not finish.
        """
        queued = queue_lines(self.root)
        try:
            frame, warnings = self.reader.read()
        except UserError:
            if not queued:
                raise
            return Group(f"no run in {self.root} yet", *queued)
        if frame is not self.frame:
            self._summarize(frame)
        lines = [*map(_line, self.unfinished), *queued]
        return Group(*self.parts, *lines, *warnings, *self.copies)

    def _summarize(self, frame: pd.DataFrame) -> None:
        """Keep what a poll shows of `frame`, but for what changes without a new record."""
        runs, self.copies = drop_copies(label_rows(select(frame, self.query)))
        troubles = notes.troubles(runs)
        counts = runs["status"].value_counts().to_dict()
        missing = sum(len(trouble.get("missing", {})) for trouble in troubles.values())
        parts = [f"{counts.get('complete', 0)} of {len(runs) + missing} done"]
        parts += [f"{counts[name]} {name}" for name in notes.UNFINISHED if counts.get(name)]
        parts += [f"{missing} missing"] if missing else []
        analyses = _unfinished_analyses(runs)
        what = "analysis" if len(analyses) == 1 else "analyses"
        parts += [f"{len(analyses)} {what} not done"] if analyses else []
        self.parts = [", ".join(parts), _table(runs, troubles)]
        self.unfinished = [
            run
            for name in notes.UNFINISHED
            for run in runs[runs["status"] == name].to_dict("records")
        ]
        self.unfinished += analyses
        self.frame = frame


@dataclass
class CellTable:
    """Shows the cells as a table, or on a narrow terminal, where it would be cut, as lines."""

    header: list[str]
    rows: list[list[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = zip(self.header, *self.rows, strict=True)
        if sum(max(map(cell_len, column)) + 2 for column in columns) <= options.max_width:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for name in self.header:
                table.add_column(name, no_wrap=True)
            for row in self.rows:
                table.add_row(*row)
            yield table
            return
        for label, *texts in self.rows:
            yield label
            for name, text in zip(self.header[1:], texts, strict=True):
                yield f"  {name}: {text}"


def _table(runs: pd.DataFrame, troubles: dict[Cell, notes.Troubles]) -> CellTable:
    """Return how many runs of each cell are done, and how many are not, for what reason."""
    variants = names(runs["variant"])
    complete = runs[runs["status"] == "complete"]
    done = complete.groupby(CELL, observed=True).size().to_dict()
    rows = []
    for (dataset, arch, row), _ in runs.groupby(ROW, observed=True):
        cells = [Cell(dataset, arch, row, variant) for variant in variants]
        texts = [_cell(done.get(cell, 0), troubles.get(cell, {})) for cell in cells]
        rows.append([f"{dataset_label(dataset)} {row_name(arch, row)}", *texts])
    return CellTable(["", *map(variant_label, variants)], rows)


def _cell(done: int, trouble: notes.Troubles) -> str:
    parts = [f"{done} done"] if done else []
    parts += [f"{len(trouble[name])} {name}" for name in notes.UNFINISHED if name in trouble]
    return ", ".join(parts) or "—"


def _unfinished_analyses(runs: pd.DataFrame) -> list[dict]:
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


def _line(run: dict) -> str:
    """Return one run that is not complete: how far it is, or why it ended."""
    label = f"{run['status']}: {run['dataset']}/{run['arch']}/{run['variant']} seed={run['seed']}"
    if not run["status"].endswith("running"):
        reason = "" if pd.isna(run["error"]) else f": {run['error']}"
        return f"{label}{reason}; see {RunDirectory(run['path']).log_file}"
    progress = RunDirectory(run["path"]).read_progress()
    host = run.get("provenance.host")
    where = f"{host} " if host != socket.gethostname() else ""
    parts = [f"on {where}{progress.get('device', run.get('provenance.device'))}"]
    if progress.get("job"):
        parts.append(f"job {progress['job']}")
    if "epoch" in progress:
        parts.append(f"epoch {progress['epoch']}/{progress['epochs']}, loss {progress['loss']:.4f}")
        parts.append(f"{progress['images_per_second']:.0f} images/s")
        if progress["seconds_left"] is not None:
            parts.append(f"{duration(progress['seconds_left'])} left")
    if "time" in progress:
        parts.append(f"last heartbeat {duration(max(0.0, time.time() - progress['time']))} ago")
    return f"{label} {', '.join(parts)}"
