"""Make the tables: accuracies and parameters as in the paper, differences to Standard, and ours
beside the published.

A Table is text only; render.py writes it as markdown or LaTeX, report.py as HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from resnests.paper import PUBLISHED, VARIANTS, dataset_label, variant_label
from resnests.results import notes
from resnests.results.cells import CELL, ROW, Cell, names, row_name
from resnests.results.stats import (
    against_baseline,
    against_paper,
    cell_statistics,
    millions,
    with_interval,
)

# --statistic -> what a cell shows
STATISTICS = {
    "mean": "mean ± sample standard deviation",
    "median": "median [minimum to maximum]",
    "ci": "mean [95% confidence interval, Student's t, cut at 0 and 100%]",
}
_SPREADS = {
    "mean": "± {std:.2f}",
    "median": "[{min:.2f} to {max:.2f}]",
    "ci": "[{low:.2f} to {high:.2f}]",
}
NONE = "—"


@dataclass
class Table:
    """Holds a table to write: `rows` of as many cells as `header`, and `notes` of a line each."""

    key: str  # for file names and labels
    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)  # what rows, columns show


def accuracy_tables(
    runs: pd.DataFrame, statistic: str = "mean", epoch: str = "last"
) -> list[Table]:
    """Return one table per data set of labelled `runs`: architectures and recipes by variants."""
    datasets = runs.groupby("dataset", observed=True)
    return [_accuracy_table(name, mine, statistic, epoch) for name, mine in datasets]


def comparison_table(runs: pd.DataFrame, epoch: str = "last") -> Table:
    """Return every variant's difference to Standard, paired by seed."""
    differences = against_baseline(runs)
    rows = [
        [
            *_name(d), f"{d['n']}", f"{d['delta']:+.2f}",
            NONE if pd.isna(d["low"]) else f"{d['low']:+.2f} to {d['high']:+.2f}",
            _p(d["p"]), _p(d["p_holm"]),
        ]
        for d in differences.to_dict("records")
    ]  # fmt: skip
    header = [
        "Data set", "Architecture", "Variant", "Pairs", "Δ to Standard", "95% interval",
        "p", "p (Holm)",
    ]  # fmt: skip
    caption = (
        f"Difference of test accuracy {notes.of_epoch(epoch)} to Standard in percentage points, "
        "paired by seed: mean, 95% interval, two-sided p of a paired t test, and p corrected for "
        f"the number of tests here, {differences['p'].notna().sum()} (Holm)."
    )
    title = "Differences to Standard"
    cells = _variants(differences)
    return Table("differences", title, caption, header, rows, notes.power(differences), cells)


def paper_table(runs: pd.DataFrame, epoch: str = "last") -> Table:
    """Return our numbers beside the published ones, for every cell that the paper has."""
    cells = against_paper(runs)
    rows = []
    for c in cells.to_dict("records"):
        interval, inside = NONE, "one seed" if c["n"] == 1 else "no spread"
        if not pd.isna(c["predicted_low"]):
            interval = f"{c['predicted_low']:.2f} to {c['predicted_high']:.2f}"
        if c["deviations"]:
            inside = "no reproduction"
        elif not pd.isna(c["inside"]):
            inside = "inside" if c["inside"] else "outside"
        numbers = [f"{c['n']}", f"{c['mean']:.2f}", f"{c['median']:.2f}", interval]
        theirs = [f"{c['published']:.2f}", f"{c['difference']:+.2f}", inside]
        equal = "=" if c["same_parameters"] else "≠"
        sizes = f"{millions(c['parameters'])} {equal} {c['published_parameters']}"
        rows.append([*_name(c), *numbers, *theirs, sizes])
    header = [
        "Data set", "Architecture", "Variant", "n", "Mean", "Median", "95% prediction",
        "Paper", "Difference", "Paper in prediction", "Parameters",
    ]  # fmt: skip
    caption = (
        f"Test accuracy {notes.of_epoch(epoch)} in % beside the paper's, which does not say "
        "whether it is a mean or a median over seven seeds. The prediction is the 95% interval in "
        "which, from our seeds, the mean of seven others lies (Student's t, the same spread, cut "
        "at 0 and 100%): of an exact reproduction one cell in 20 is outside, and a few more if the "
        "paper's are medians. The last column says whether the numbers of parameters agree."
    )
    published = {dataset for dataset, _, _ in PUBLISHED}
    absent = [dataset_label(name) for name in names(runs["dataset"]) if name not in published]
    lines = [f"The paper has no table for {', '.join(absent)}."] if absent else []
    lines += [*notes.deviations(cells), *notes.intervals(cells)]
    return Table("paper", "Beside the paper", caption, header, rows, lines, _variants(cells))


def _accuracy_table(dataset: str, runs: pd.DataFrame, statistic: str, epoch: str) -> Table:
    """Return the table of a data set: a row per architecture and recipe, a column per variant."""
    present = names(runs["variant"])
    variants = [v for v in runs["variant"].cat.categories if v in VARIANTS or v in present]
    cells = cell_statistics(runs)
    if statistic == "ci":
        cells = with_interval(cells)
    texts = {
        Cell(*key): _cell(cell, statistic, cells["n"].nunique() == 1)
        for key, cell in cells.to_dict("index").items()
    }
    troubles, mixed = notes.troubles(runs), notes.mixed(runs, epoch)
    given = {Cell(*key) for key, _ in runs[runs["given"]].groupby(CELL, observed=True)}

    def shown(cell: Cell) -> str:
        marks = "†" * (cell in given) + "‡" * (cell in mixed)
        return texts.get(cell, NONE) + marks + notes.marker(troubles.get(cell, {}))

    places = [(arch, row) for (_, arch, row), _ in runs.groupby(ROW, observed=True)]
    grid = [[Cell(dataset, arch, row, v) for v in variants] for arch, row in places]
    rows = [[row_name(*place), *map(shown, line)] for place, line in zip(places, grid, strict=True)]
    there = {Cell(*key) for key, _ in runs.groupby(CELL, observed=True)}
    caption = (
        f"{dataset_label(dataset)}: test accuracy {notes.of_epoch(epoch)}, "
        f"{_seeds(cells, statistic)} (number of parameters)."
    )
    lines = notes.lines(runs, troubles, mixed)
    lines += notes.intervals(cells) if statistic == "ci" else []
    header = ["Architecture", *map(variant_label, variants)]
    linked = {
        (y, x): cell
        for y, line in enumerate(grid)
        for x, cell in enumerate(line, start=1)
        if cell in there
    }
    return Table(
        f"accuracy_{dataset}", dataset_label(dataset), caption, header, rows, lines, linked
    )


def _variants(frame: pd.DataFrame) -> dict[tuple[int, int], Cell]:
    """Return the cells of a table whose rows are one each, and whose third column names it."""
    return {(y, 2): Cell(*key) for y, key in enumerate(frame[CELL].itertuples(index=False))}


def _seeds(cells: pd.DataFrame, statistic: str) -> str:
    """Return what a caption says of the numbers of seeds."""
    counts = cells["n"].unique()
    if len(counts) == 0:
        return "no run is complete"
    if len(counts) > 1:
        return f"{STATISTICS[statistic]} of n seeds"
    return f"{STATISTICS[statistic]} of {counts[0]} seeds" if counts[0] > 1 else "one seed per cell"


def _cell(cell: dict[str, Any], statistic: str, same_n: bool) -> str:
    """Return one cell's text, such as "95.56% ± 0.12 (11M)"."""
    text = f"{cell['median' if statistic == 'median' else 'mean']:.2f}%"
    if cell["n"] > 1:
        known = statistic != "ci" or not pd.isna(cell["low"])
        text += " " + (_SPREADS[statistic].format(**cell) if known else f"[{NONE}]")
    return f"{text} ({millions(cell['parameters'])})" + ("" if same_n else f" n={cell['n']}")


def _name(cell: dict[str, Any]) -> list[str]:
    """Return data set, architecture and variant of a row that is one cell."""
    row = row_name(cell["arch"], cell["row"])
    return [dataset_label(cell["dataset"]), row, variant_label(cell["variant"])]


def _p(value: float) -> str:
    if pd.isna(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"
