"""Make one page with tables, figures, and runs with configuration and provenance. Frozen it needs
no network and no script; alive, a server shows the same template.
"""

from __future__ import annotations

import base64
import hashlib
import time
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from resnests.paper import dataset_label
from resnests.results.cells import CELL, Cell
from resnests.results.columns import COLUMNS, TIMES
from resnests.results.notes import cell_name
from resnests.results.render import pieces
from resnests.results.tables import Table

# What the list of runs shows of each run: heading -> column
_RUN = {
    "Seed": "seed", "Status": "status", "Test accuracy, %": "test_accuracy",
    "Test loss": "test_loss", "Train accuracy, %": "train_accuracy", "Epochs": "epochs",
    "Seconds": "seconds", "Images/s": "images_per_second", "Started": "provenance.started",
    "Device": "provenance.device_name", "Host": "provenance.host",
    "Commit": "provenance.git_commit", "Uncommitted": "provenance.git_dirty",
    "Torch": "provenance.versions.torch", "Weights": "weights", "Directory": "path",
    "Error": "error",
}  # fmt: skip
_LONG = ("Weights", "Directory", "Error")  # columns that are wrapped


def page(
    runs: pd.DataFrame, tables: list[Table], figures: list[tuple[str, bytes]], warnings: list[str]
) -> str:
    """Return the frozen page of labelled `runs`; `figures` are pairs of caption and PNG."""
    counts = runs["status"].value_counts()
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    cells = [cell_of(Cell(*key), mine) for key, mine in runs.groupby(CELL, observed=True)]
    return render(
        summary=f"{len(runs)} runs: {summary}.",
        tables=tables,
        figures=[(caption, base64.b64encode(png).decode()) for caption, png in figures],
        warnings=warnings,
        cells=cells,
    )


def render(**parts: Any) -> str:
    """Return the page of the one template. Text of any kind is escaped; what is `live` is only on
    the page that aggregate.py --serve shows (commands/serve.py).
    """
    return _template().render(
        long=_LONG, style=Markup(resource("page.css")), script=Markup(resource("page.js")), **parts
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnests.results"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["lines"] = lambda cell: Markup("<br>").join(pieces(cell))
    environment.filters["key"] = cell_key
    return environment.get_template("report.html.jinja")


@cache
def resource(name: str) -> str:
    """Return the text of a file beside the template."""
    return files("resnests.results").joinpath("templates", name).read_text(encoding="utf-8")


def cell_key(cell: Cell) -> str:
    """Return what names a cell in addresses of the page."""
    return "c" + hashlib.sha256(repr(tuple(cell)).encode()).hexdigest()[:10]


def title(cell: Cell) -> str:
    """Return the name of a cell where no data set is named beside it."""
    return f"{dataset_label(cell.dataset)}, {cell_name(cell)}"


def cell_of(cell: Cell, runs: pd.DataFrame) -> dict[str, Any]:
    """Return the runs of a cell by seed, and what their configuration and provenance share."""
    known = runs.columns[runs.notna().any()]
    columns = {name: column for name, column in _RUN.items() if column in known}
    return {
        "id": cell_key(cell),
        "count": len(runs),
        "name": title(cell),
        "columns": list(columns),
        "runs": [
            {name: _text(run[column], column) for name, column in columns.items()}
            for run in runs.sort_values("seed").to_dict("records")
        ],
        "shared": {
            column: _values(runs[column])
            for column in known.drop([*COLUMNS, "given", "row", *_RUN.values()], errors="ignore")
        },
    }


def _text(value: Any, column: str) -> str:
    """Return a value as the page shows those of its column."""
    if pd.isna(value):
        return ""
    if column in TIMES:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(value))
    if column in ("seconds", "images_per_second"):
        return f"{value:,.0f}"
    if column == "provenance.git_commit":
        return value[:10]
    if column in ("test_loss", "train_loss"):
        return f"{value:.4f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _values(column: pd.Series) -> str:
    """Return the value that all runs share, or all values there are."""
    known = column.dropna().unique()
    values = [_text(v, column.name) if column.name in TIMES else str(v) for v in known]
    more = f", ... ({len(values)} values)" if len(values) > 8 else ""
    return ", ".join(values[:8]) + more
