"""Make tables of what task=analyze measured: least risks of maps of features, and their gaps."""

from __future__ import annotations

import pandas as pd

from resnests.paper import dataset_label, variant_label
from resnests.results.analyses import INTERVALS, Analyses, open_notes, shown
from resnests.results.analysis_details import cells_of, detail_tables, row_labels
from resnests.results.cells import CELL, Cell, names
from resnests.results.notes import cell_name, seed_list
from resnests.results.tables import NONE, Table

_DEFINITIONS = (
    "(a) the trained network; (b) the least over its last two maps W_L and W_{L+1}, its features "
    "fixed; (c) the bound: the least over all linear maps of its exact features; ε = (b) - (c); "
    "slack = (a) - (b); (e) the best linear predictor from its input."
)
_KINDS = (
    "By construction: (c) <= (b) <= (a), and ε = 0 for A-ResNEst and DenseNEst, whose last maps "
    "are free, and wherever the last maps reach all that the features span. A theorem: (c) bounds "
    "every network with these features. Measured: all sizes."
)
_SQUARED = (
    "Selectivity is ε over what x_{L-1} would lose in the mean if it kept as many directions of "
    "the features before the last block at random (in coordinates in which they are white): 0 "
    "where training kept the best, 1 where it kept no better than chance. The floor is what the k "
    "lost directions would seem to be worth had they nothing to do with the labels, "
    "R(b) k/(N - 1 - the rank of (b))."
)
_RISKS = {
    "(a) loss alone": "trained.train_loss",
    "(a) trained": "trained",
    "(b) best last maps": "last_maps",
    "(c) bound": "bound",
    "ε": "eps",
    "ε, loss alone": "eps.train_loss",
    "slack": "slack",
    "(e) linear": "linear",
}
_TEST = {
    "(a) loss": "trained.test_loss",
    "(b) loss": "last_maps.test_loss",
    "(c) loss": "bound.test_loss",
    "ε": "eps.test_loss",
    "(a) %": "trained.test_accuracy",
    "(b) %": "last_maps.test_accuracy",
    "(c) %": "bound.test_accuracy",
}
_ERRORS = {
    "(b) best last maps": "squared_last_maps",
    "(c) bound": "squared_bound",
    "ε": "squared_eps",
    "ε by chance": "random_eps",
    "selectivity": "rho",
    "floor of ε": "floor",
    "k": "lost",
}


def analysis_tables(analyses: Analyses) -> list[Table]:
    """Return per data set the tables of training risk with penalty and its gaps, of the test set,
    of squared error, and of what detail_tables has.
    """
    tables = []
    for dataset, mine in analyses.runs.groupby("dataset", observed=True):
        lacking = _lacking(analyses, str(dataset))
        (l2,) = mine["l2"].unique() if mine["l2"].nunique() == 1 else ("l2",)
        penalised = f"mean cross-entropy + {l2}/2 |map|² over standardised features, bias included"
        label = dataset_label(str(dataset))
        tables += [
            _table(
                mine,
                f"analysis_{dataset}",
                f"{label}: least risks on the training images",
                f"Training images without augmentation: {penalised}, in nats. {_DEFINITIONS}",
                _RISKS,
                lacking,
            ),
            _table(
                mine,
                f"analysis_test_{dataset}",
                f"{label}: the same maps on the test set",
                "Test cross-entropy in nats and accuracy in % of the network and of the maps that "
                "were fitted to the training images; what is least there need not be here. "
                "Accuracies are counted, of the maps that were found: no certificate reaches them.",
                _TEST,
                lacking,
            ),
            _table(
                mine,
                f"analysis_squared_{dataset}",
                f"{label}: squared error",
                "Least mean squared error of one-hot labels (summed over classes) on the training "
                "images, without penalty and exact up to rounding: (b), (c) and ε as before. The "
                f"networks were trained for another loss, so (a) has no place here. {_SQUARED}",
                _ERRORS,
                lacking,
            ),
        ]
        tables += detail_tables(analyses, str(dataset))
    return tables


def _table(
    runs: pd.DataFrame,
    key: str,
    title: str,
    caption: str,
    columns: dict[str, str],
    lacking: list[str],
) -> Table:
    """Return a table with a row per cell; `columns` gives each heading its column of `runs`, and
    `lacking` are notes on those that are in no row.
    """
    rows = []
    groups = list(runs.groupby(CELL, observed=True))
    for name, cell in groups:
        cells = [shown(cell, column) for column in columns.values()]
        rows.append([*row_labels(name), f"{len(cell)}", *cells])
    notes = [INTERVALS, _KINDS, *_unfinished(runs), *lacking, *_crowded(runs)]
    notes += open_notes(runs, columns) + _learning_rates(runs)
    narrow = runs["coupled"].eq(True) & runs["status"].eq("complete") & ~runs["crowded"].eq(True)
    if (narrow & runs["squared_bound"].notna() & runs["squared_last_maps"].isna()).any():
        notes.append(
            f"{NONE} for (b) and what follows from it: a last stage that is narrower than the "
            "number of classes leaves no convex problem over its two last maps."
        )
    if runs["coupled"].isna().any():
        notes.append(f"{NONE} for Standard: its relu before the pooling leaves no exact features.")
    header = ["Architecture", "Variant", "n", *columns]
    return Table(key, title, caption, header, rows, notes, cells_of(groups))


def _lacking(analyses: Analyses, dataset: str) -> list[str]:
    """Name the complete runs of a data set that are in no row, as there is no analysis of them."""
    left = analyses.lacking
    if left.empty:
        return []
    notes = []
    of_cells = left[left["dataset"] == dataset].groupby([*CELL, "why"], observed=True)
    for (*name, why), some in of_cells:
        reason = f" ({' '.join(why.split())})" if why else ""
        notes.append(
            f"Not analysed{reason}: {seed_list(some['seed'])} of {cell_name(Cell(*name))}."
        )
    return notes


def _crowded(runs: pd.DataFrame) -> list[str]:
    """Name the analyses that have about as many features as images."""
    left = runs[runs["crowded"].eq(True)]
    return [
        f"{NONE} for {seed_list(some['seed'])} of {cell_name(Cell(*name))}: the features are about "
        "as many as the images, and can fit whatever labels there are; ε would be nothing but "
        "penalty. More images would give a bound."
        for name, some in left.groupby(CELL, observed=True)
    ]


def _learning_rates(runs: pd.DataFrame) -> list[str]:
    """Name the learning rates of the variants of one row where they differ."""
    notes = []
    for row, some in runs.groupby("row", observed=True):
        rates = some.groupby("optimizer.lr")["variant"].agg(names)
        if len(rates) > 1:
            words = [f"{rate:g} ({', '.join(map(variant_label, v))})" for rate, v in rates.items()]
            what = f"Learning rates{f' of {row}' if row else ''}: {', '.join(words)}"
            notes.append(f"{what}; differences between those variants are of both.")
    return notes


def _unfinished(runs: pd.DataFrame) -> list[str]:
    """Name the analyses that are not complete, which have no bound yet."""
    left = runs[runs["status"] != "complete"]
    return [
        f"Not analysed to the end ({why}): {seed_list(some['seed'])} of {cell_name(Cell(*name))}."
        for (*name, why), some in left.groupby([*CELL, "status"], observed=True)
    ]
