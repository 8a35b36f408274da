"""One page with tables, figures, and runs with configuration and provenance, that needs no
network and no script.
"""

from __future__ import annotations

import base64
import html

import pandas as pd

from resnests.paper import ARCHS, VARIANTS, dataset_label, in_order
from resnests.results import render
from resnests.results.cells import CELL, in_row_order
from resnests.results.frame import COLUMNS
from resnests.results.notes import cell_name
from resnests.results.tables import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
tbody th { font-weight: normal; }
.wide td, .wide th { white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
.notes { font-size: .875rem; overflow-wrap: anywhere; }
.warning { background: #fff3d6; padding: .5rem 1rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; max-width: 24rem; } figcaption { font-size: .8rem; color: #444; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .8rem; margin-left: 1rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .6rem; } dl { grid-template-columns: 1fr; } }
"""
# What the list of runs shows of each run: heading -> column
_RUN = {
    "Seed": "seed", "Status": "status", "Test accuracy, %": "test_accuracy", "Test loss": "test_loss",
    "Train accuracy, %": "train_accuracy", "Epochs": "epochs", "Seconds": "seconds", "Images/s": "images_per_second",
    "Started": "provenance.started", "Device": "provenance.device_name", "Host": "provenance.host",
    "Commit": "provenance.git_commit", "Uncommitted": "provenance.git_dirty", "Torch": "provenance.versions.torch",
    "Weights": "weights", "Directory": "path", "Error": "error",
}  # fmt: skip


def page(
    runs: pd.DataFrame, tables: list[Table], figures: list[tuple[str, bytes]], warnings: list[str]
) -> str:
    """The page of labelled `runs`; `figures` are pairs of caption and PNG."""
    counts = runs["status"].value_counts()
    summary = (
        f"{len(runs)} runs: "
        + ", ".join(f"{count} {status}" for status, count in counts.items())
        + "."
    )
    sections = [
        f"<section><h2>{html.escape(t.title)}</h2>\n{render.html_table(t)}</section>"
        for t in tables
    ]
    pictures = "\n".join(map(_figure, figures))
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in warnings)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>resnests: results</title><style>{_STYLE}</style></head><body>",
            f"<h1>Results</h1><p>{html.escape(summary)}</p>",
            f'<div class="warning"><p>Left out:</p><ul>{shown}</ul></div>' if warnings else "",
            *sections,
            f'<section><h2>Figures</h2><div class="figures">{pictures}</div></section>'
            if figures
            else "",
            f"<section><h2>Runs</h2>{_cells(runs)}</section>",
            "</body></html>\n",
        ]
    )


def _figure(picture: tuple[str, bytes]) -> str:
    caption, png = picture
    text, data = html.escape(caption), base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _cells(runs: pd.DataFrame) -> str:
    """The runs of each cell, folded: a table of them, and what their configuration and
    provenance share.
    """
    ranks = {"dataset": {}, "arch": ARCHS, "variant": VARIANTS}
    orders = {name: in_order(list(runs[name].unique()), first) for name, first in ranks.items()}
    orders["row"] = in_row_order(set(runs["row"]))
    parts = []
    groups = dict(list(runs.groupby(CELL, sort=False)))
    for key in sorted(
        groups,
        key=lambda key: [orders[name].index(part) for name, part in zip(CELL, key, strict=True)],
    ):
        cell = groups[key].sort_values("seed")
        name = html.escape(f"{dataset_label(key[0])}, {cell_name(key)}")
        number = f"{len(cell)} run" + "s" * (len(cell) != 1)
        parts.append(
            f"<details><summary>{name}: {number}</summary>{_run_table(cell)}{_shared(cell)}</details>"
        )
    return "\n".join(parts)


def _run_table(cell: pd.DataFrame) -> str:
    columns = {
        name: column
        for name, column in _RUN.items()
        if column in cell and cell[column].notna().any()
    }
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = []
    for run in cell[list(columns.values())].itertuples(index=False):
        body.append("<tr>" + "".join(map(_value, run, columns.values())) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _value(value: object, column: str) -> str:
    if pd.isna(value):
        return "<td></td>"
    if column in ("seconds", "images_per_second"):
        value = f"{value:,.0f}"
    elif isinstance(value, float):
        value = f"{value:.4f}" if column.endswith("loss") else f"{value:.2f}"
    elif column == "provenance.git_commit":
        value = str(value)[:10]
    long = ' class="long"' if column in ("error", "path", "weights") else ""
    return f"<td{long}>{html.escape(str(value))}</td>"


def _shared(cell: pd.DataFrame) -> str:
    """Configuration and provenance of a cell: the value all runs share, or all values there are."""
    entries = []
    for column in cell.columns.drop([*COLUMNS, "given", "row"]):
        values = cell[column].dropna().astype(str).unique()
        if len(values) and column not in _RUN.values():
            shown = ", ".join(values[:8]) + (
                f", ... ({len(values)} values)" if len(values) > 8 else ""
            )
            entries.append(f"<dt>{html.escape(column)}</dt><dd>{html.escape(shown)}</dd>")
    return f"<details><summary>Configuration and provenance</summary><dl>{''.join(entries)}</dl></details>"
