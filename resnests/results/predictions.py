"""Make confusion matrices: what networks take the test images of each class for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resnests.errors import UserError
from resnests.results import notes
from resnests.results.cells import CELL, Cell
from resnests.results.paired import read_predictions
from resnests.results.style import STYLE, WIDTH, Drawing, figure_key, figure_name
from resnests.results.tables import Table


def confusions(runs: pd.DataFrame) -> Iterator[tuple[Cell, pd.DataFrame, int]]:
    """Yield of each cell how many percent of a class (rows) are taken for another (columns), mean
    over seeds, and the number of seeds; raise a UserError where no run has predictions.
    """
    none = True
    complete = runs[runs["status"] == "complete"]
    for key, cell in complete.groupby(CELL, observed=True):
        found = [p for p in map(read_predictions, cell["path"]) if p is not None]
        if not found:
            continue
        none = False
        shares = []
        for each in found:
            counts = np.zeros((len(each.classes),) * 2)
            np.add.at(counts, (each.labels, each.predicted), 1)
            shares.append(100 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
        names = found[0].classes
        if any(each.classes != names for each in found):
            raise UserError(f"--confusion: the runs of {Cell(*key)} have other classes")
        yield Cell(*key), pd.DataFrame(np.mean(shares, 0), names, names), len(found)
    if none:
        mend = "the same run.py command with predictions=true writes them, of finished runs too"
        raise UserError(f"--confusion: no complete run has predictions; {mend}")


def confusion_tables(runs: pd.DataFrame, lines: Sequence[str] = ()) -> list[Table]:
    """Return a table per cell, with `lines` below the last."""
    tables = [
        Table(
            figure_key("confusion", *cell),
            f"Confusion of {notes.cell_name(cell)}",
            f"Percent of each class (rows) that is taken for another, mean over {n} seed(s).",
            ["", *shares.columns],
            [[name, *(f"{value:.1f}" for value in row)] for name, row in shares.iterrows()],
        )
        for cell, shares, n in confusions(runs)
    ]
    tables[-1].notes += lines
    return tables


def confusion_drawings(runs: pd.DataFrame) -> Iterator[Drawing]:
    """Draw a matrix per cell."""
    for cell, shares, n in confusions(runs):
        with mpl.rc_context(STYLE):
            yield _drawing(cell, shares, n)


def _drawing(cell: Cell, shares: pd.DataFrame, n: int) -> Drawing:
    side = min(WIDTH, 1.6 + 0.35 * len(shares))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.grid(visible=False)
    places = range(len(shares))
    axes.set_xticks(places, shares.columns, rotation=45, ha="right")
    axes.set_yticks(places, shares.index)
    axes.set(xlabel="Predicted", ylabel="Class")
    for (row, column), share in np.ndenumerate(shares.to_numpy()) if len(shares) <= 20 else ():
        colour = "white" if share > 50 else "black"
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=6)
    name = figure_name(cell.dataset, notes.cell_name(cell))
    figure.suptitle("\n".join(textwrap.wrap(name, int(14 * side))), fontsize=8)
    title = f"Confusion, {name}: percent of each class, mean over {n} seed(s)"
    return Drawing(figure_key("confusion", *cell), title, figure, shares.reset_index(names="class"))
