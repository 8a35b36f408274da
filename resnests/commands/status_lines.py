"""Put how far cells and runs are into the lines and tables of a terminal."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from resnests.paper import dataset_label, variant_label
from resnests.results import notes
from resnests.results.cells import CELL, ROW, Cell, names, row_name
from resnests.runs.directory import RunDirectory
from resnests.text import duration


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


def cell_table(runs: pd.DataFrame, troubles: dict[Cell, notes.Troubles]) -> CellTable:
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


def run_line(run: dict[str, Any]) -> str:
    """Return one run that is not complete: how far it is, or why it ended."""
    label = f"{run['status']}: {run_label(run)}"
    if not run["status"].endswith("running"):
        reason = "" if pd.isna(run["error"]) else f": {run['error']}"
        return f"{label}{reason}; see {RunDirectory(run['path']).log_file}"
    return f"{label} {', '.join(run_progress(run))}"


def run_label(run: dict[str, Any]) -> str:
    """Return the name of a run, with what tells it from the other recipes of its data set."""
    label = f"{run['dataset']}/{run['arch']}/{run['variant']} seed={run['seed']}"
    return label + (f", {run['row']}" if run["row"] else "")


def run_progress(run: dict[str, Any]) -> list[str]:
    """Return where a run is trained and how far it is, in words."""
    progress = RunDirectory(run["path"]).shown_progress()
    host = run.get("provenance.host")
    where = f"{host} " if host != socket.gethostname() else ""
    parts = [f"on {where}{progress.get('device', run.get('provenance.device'))}"]
    if progress.get("job"):
        parts.append(f"job {progress['job']}")
    if "epoch" in progress:
        parts.append(f"epoch {progress['epoch']}/{progress['epochs']}, loss {progress['loss']:.4f}")
        parts.append(f"{progress['images_per_second']:.0f} images/s")
        if progress.get("seconds_left") is not None:
            parts.append(f"{duration(progress['seconds_left'])} left")
    if "time" in progress:
        parts.append(f"last heartbeat {duration(max(0.0, time.time() - progress['time']))} ago")
    return parts
