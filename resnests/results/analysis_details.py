"""Make detailed tables of an analysis: second order, blocks, other penalties, epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from resnests.paper import dataset_label, variant_label
from resnests.results.analyses import (
    INTERVALS,
    Analyses,
    informative,
    interval,
    open_notes,
    scientific,
    shown,
    spread,
)
from resnests.results.cells import CELL, Cell, row_name
from resnests.results.tables import NONE, Table
from resnests.runs.analysis import PREFIX
from resnests.text import at_least, at_most, digits_of

_SECOND = (
    "The training risk with penalty over (W_L, W_{L+1}) and a bias, the features fixed. At the "
    "trained point: the norm of the gradient, the least eigenvalue of the Hessian, and the share "
    "of its eigenvalues that are negative. Then the least eigenvalue at a saddle (W_{L+1} = 0) and "
    "at an optimum, which are both constructed, and how far above (b) L-BFGS ended from the "
    "trained point, from the saddle and from random maps."
)
_SECOND_KINDS = (
    "A theorem: where M >= K, every critical point that is no global minimum has a negative "
    "eigenvalue. By construction: none is negative at the optimum, up to what is left of its "
    "gradient, which is rounding up to 2,000 unknowns. Measured: all else, as mean and [least to "
    "largest] over seeds. Up to 2,000 unknowns all eigenvalues are known, beyond that the least is "
    "by Lanczos: never below the true one, with an eigenvalue of the Hessian within the residual "
    "of it, and no digits beyond that."
)
_SECOND_COLUMNS = {
    "unknowns": "unknowns",
    "gradient": "gradient",
    "least eigenvalue": "least",
    "% negative": "negative",
    "at the saddle": "saddle.least",
    "at the optimum": "optimum.least",
    "trained, above (b)": "above.trained",
    "saddle, above (b)": "above.saddle",
    "random, above (b)": "above.random",
}
_BLOCKS = (
    "By how much each group of exact features lowers the least training risk with penalty, and "
    "from the gradient without that group alone: by how much it certainly does, and at most, in "
    "every seed."
)
_BLOCKS_KINDS = (
    "By construction: no drop is negative. A theorem: the two bounds. Measured: the drops, each "
    "known to the digits shown."
)
_OVER_KINDS = (
    "By construction: (c) <= (b) <= (a) on the training images with penalty, so that ε and slack "
    "are not negative there. A theorem: (c) bounds every network with these features. Measured: "
    "all sizes."
)


def detail_tables(analyses: Analyses, dataset: str) -> list[Table]:
    """Return the tables of one data set for which there is something to show."""
    tables = [
        _second_order(_of(analyses.runs, dataset), dataset),
        _blocks(_of(analyses.solves, dataset), dataset),
        _over(
            _of(analyses.penalties, dataset),
            f"analysis_l2_{dataset}",
            f"{dataset_label(dataset)}: the gap over penalties",
            "(b), (c) and ε = (b) - (c) of the training risk with the penalty l2/2 |map|², of the "
            "training loss alone, and of the test loss, all in nats.",
            "penalty",
            {
                "(b)": "last_maps", "(c)": "bound", "ε": "eps", "ε, loss alone": "eps.train_loss",
                "ε, test": "eps.test_loss",
            },
        ),
        _over(
            _of(analyses.epochs, dataset),
            f"analysis_epochs_{dataset}",
            f"{dataset_label(dataset)}: the gap over epochs",
            "Of the weights after some epochs: training risk with penalty of (a), (b) and (c), "
            "ε = (b) - (c), slack = (a) - (b); ε of squared error, selectivity and floor as above.",
            "epoch",
            {
                "(a)": "trained", "(b)": "last_maps", "(c)": "bound", "ε": "eps",
                "slack": "slack", "ε, squared": "squared_eps", "selectivity": "rho",
                "floor of ε": "floor",
            },
        ),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _of(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["dataset"] == dataset]


def row_labels(name: tuple) -> list[str]:
    """Return the architecture and the variant of a cell as rows begin with them."""
    where = Cell(*name)
    return [row_name(where.arch, where.row), variant_label(where.variant)]


def cells_of(groups: Sequence[tuple[Any, pd.DataFrame]]) -> dict[tuple[int, int], Cell]:
    """Return the cells of training that a table's rows lead to, one for each of the `groups` of
    analyses by cell and setting.
    """
    cells = {}
    for y, (_, analysed) in enumerate(groups):
        name, setting = Cell(*analysed.iloc[0][CELL]), analysed.iloc[0]["setting"]
        cells[y, 1] = name._replace(row=name.row.removesuffix(setting).removesuffix(", "))
    return cells


def _second_order(runs: pd.DataFrame, dataset: str) -> Table:
    rows = []
    looked = runs.reindex(columns=runs.columns.union(list(_SECOND_COLUMNS.values())))
    looked = looked[looked["gradient"].notna()]
    looked = looked.assign(negative=100 * looked["negative"].astype(float))
    groups = list(looked.groupby(CELL, observed=True))
    for name, cell in groups:
        plain = {"unknowns": 0, "negative": 1}
        cells = [
            spread(cell, c, plain[c]) if c in plain else scientific(cell, c)
            for c in _SECOND_COLUMNS.values()
        ]
        rows.append([*row_labels(name), f"{len(cell)}", *cells])
    title = f"{dataset_label(dataset)}: second order over the last two maps"
    header = ["Architecture", "Variant", "n", *_SECOND_COLUMNS]
    notes = [_SECOND_KINDS]
    key = f"analysis_second_{dataset}"
    return Table(key, title, _SECOND, header, rows, notes, cells_of(groups))


def drops(solves: pd.DataFrame) -> pd.DataFrame:
    """Return the prefixes of `solves` with `drop`, by how much each lowers the least risk, and
    `drop_error`: a value is at most its gap above the least one.
    """
    prefixes = solves[(solves["quantity"] == PREFIX) & solves["value"].notna()]
    ordered = prefixes.sort_values(["path", "family", "position"], kind="stable")
    groups = ordered.groupby(["path", "family"])
    before = groups["gap"].shift()
    error = pd.concat([ordered["gap"], before], axis=1).max(axis=1)
    follows = groups["position"].diff() == 1  # else one between them has no result
    ordered = ordered.assign(drop=-groups["value"].diff().where(follows), drop_error=error)
    return ordered.dropna(subset=["drop"])


def _blocks(solves: pd.DataFrame, dataset: str) -> Table:
    rows = []
    found = drops(informative(solves[solves["family"] == "exact"]))
    groups = list(found.groupby([*CELL, "group"], observed=True, sort=False))
    for (*name, group), cell in groups:
        digits = digits_of(cell["drop_error"].max())
        least, most = cell["drop_at_least"].min(), cell["drop_at_most"].max()
        bounds = [
            NONE if pd.isna(bound) else f"{outward(bound, 2):.1e}"
            for bound, outward in ((least, at_least), (most, at_most))
        ]
        cells = [interval(cell, "drop", digits), *bounds]
        rows.append([*row_labels(tuple(name)), group, f"{len(cell)}", *cells])
    title = f"{dataset_label(dataset)}: what each block adds"
    header = ["Architecture", "Variant", "Block", "n", "drop", "at least", "at most"]
    notes = [INTERVALS, _BLOCKS_KINDS]
    key = f"analysis_blocks_{dataset}"
    return Table(key, title, _BLOCKS, header, rows, notes, cells_of(groups))


def _over(
    frame: pd.DataFrame, key: str, title: str, caption: str, by: str, columns: dict[str, str]
) -> Table:
    """Return a table with a row per cell and value of `by`."""
    rows = []
    groups = list(frame.groupby([*CELL, by], observed=True)) if len(frame) else []
    for (*name, value), cell in groups:
        cells = [shown(cell, column) for column in columns.values()]
        rows.append([*row_labels(tuple(name)), f"{value:g}", f"{len(cell)}", *cells])
    header = ["Architecture", "Variant", {"penalty": "l2"}.get(by, by), "n", *columns]
    notes = [INTERVALS, _OVER_KINDS, *open_notes(frame, columns)]
    return Table(key, title, caption, header, rows, notes, cells_of(groups))
