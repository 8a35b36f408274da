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
from resnests.results.axes import against_value
from resnests.results.cells import CELL, ROW, Cell, names, row_name
from resnests.results.measured import ACCURACY, Measured
from resnests.results.paired import mcnemar, read_predictions
from resnests.results.stats import (
    BASELINE,
    against_baseline,
    against_paper,
    cell_statistics,
    millions,
    sizes,
    with_interval,
)
from resnests.text import fixed

# --statistic -> what a cell shows
STATISTICS = {
    "mean": "mean ± sample standard deviation",
    "median": "median [minimum to maximum]",
    "ci": "mean [95% confidence interval, Student's t{cut}]",
}
_SPREADS = {
    "mean": "± {std:.{digits}f}",
    "median": "[{min:.{digits}f} to {max:.{digits}f}]",
    "ci": "[{low:.{digits}f} to {high:.{digits}f}]",
}
NONE = "—"
MCNEMAR = "Seed: McNemar's p"
_OF_MCNEMAR = (
    "McNemar's p is exact and not corrected, of the test images of each pair of runs with "
    "predictions=true."
)


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
    runs: pd.DataFrame, statistic: str = "mean", what: Measured = ACCURACY
) -> list[Table]:
    """Return one table per data set of labelled `runs`: architectures and recipes by variants."""
    datasets = runs.groupby("dataset", observed=True)
    return [_accuracy_table(name, mine, statistic, what) for name, mine in datasets]


def comparison_table(
    runs: pd.DataFrame, what: Measured = ACCURACY, by_image: bool = False
) -> Table:
    """Return every variant's difference to Standard, paired by seed; with `by_image` McNemar's
    test, too, where the predictions of a pair are there and tell what is compared.
    """
    differences, digits = against_baseline(runs, what), what.digits
    by_image = by_image and what.is_of_predictions
    exact = [_mcnemar(pairs) for pairs in differences["pairs"]] if by_image else []
    rows = [[*_name(d), *_tested(d, digits)] for d in differences.to_dict("records")]
    header = [
        "Data set", "Architecture", "Variant", "Pairs", "Δ to Standard", "95% interval",
        "p", "p (Holm)",
    ]  # fmt: skip
    caption = (
        f"Difference of {what.words} {notes.of_epoch(what.epoch)} to Standard in {what.points}, "
        "paired by seed: mean, 95% interval, two-sided p of a paired t test, and p corrected for "
        f"the number of tests here, {differences['p'].notna().sum()} (Holm)."
    )
    if {*exact} - {NONE}:
        rows = [[*row, p] for row, p in zip(rows, exact, strict=True)]
        header.append(MCNEMAR)
        caption += f" {_OF_MCNEMAR}"
    title = "Differences to Standard"
    lines = [*what.notes, *notes.power(differences, what)]
    return Table("differences", title, caption, header, rows, lines, _variants(differences))


def axis_table(runs: pd.DataFrame, key: str, value: str, what: Measured = ACCURACY) -> Table:
    """Return the difference of every other value of `key` to `value`, paired by seed, and of what
    predictions tell McNemar's test on the same images; raise a UserError.
    """
    (differences, lone), digits = against_value(runs, key, value, what), what.digits
    rows = [
        [
            *_name(d), str(d["value"]), *_tested(d, digits),
            *[_mcnemar(d["pairs"])] * what.is_of_predictions,
        ]
        for d in differences.to_dict("records")
    ]  # fmt: skip
    header = [
        "Data set", "Architecture", "Variant", key, "Pairs", f"Δ to {value}", "95% interval",
        "p", "p (Holm)", *[MCNEMAR] * what.is_of_predictions,
    ]  # fmt: skip
    title = f"Differences to {key}={value}"
    caption = (
        f"Difference of {what.words} {notes.of_epoch(what.epoch)} to {key}={value} in "
        f"{what.points}, paired by seed: mean, 95% interval, two-sided p of a paired t test over "
        f"seeds, and p corrected for the {differences['p'].notna().sum()} tests here (Holm)."
    )
    caption += f" {_OF_MCNEMAR}" * what.is_of_predictions
    lines = [*what.notes, *lone]
    if len(differences):
        lines += notes.power(differences, what)
    elif not lone:
        lines.append(f"No complete run has another value of {key}.")
    linked = _variants(differences)
    return Table(f"differences_{key}_{value}", title, caption, header, rows, lines, linked)


def _mcnemar(pairs: list[tuple[int, str, str]]) -> str:
    """Return the seed and p of each pair of runs that have predictions of the same images."""
    found = []
    for seed, *paths in pairs:
        one, other = map(read_predictions, paths)
        if one and other and one.is_of_same_images(other):
            found.append(f"{seed}: {_p(mcnemar(one, other))}")
    return ", ".join(found) or NONE


def paper_table(runs: pd.DataFrame, what: Measured = ACCURACY) -> Table:
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
        theirs = [f"{c['published']:.2f}", fixed(c["difference"], 2, "+"), inside]
        equal = "=" if c["same_parameters"] else "≠"
        both = f"{millions(c['parameters'])} {equal} {c['published_parameters']}"
        rows.append([*_name(c), *numbers, *theirs, both])
    header = [
        "Data set", "Architecture", "Variant", "n", "Mean", "Median", "95% prediction",
        "Paper", "Difference", "Paper in prediction", "Parameters",
    ]  # fmt: skip
    caption = (
        f"Test accuracy {notes.of_epoch(what.epoch)} in % beside the paper's, which does not say "
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


def _accuracy_table(dataset: str, runs: pd.DataFrame, statistic: str, what: Measured) -> Table:
    """Return the table of a data set: a row per architecture and recipe, a column per variant."""
    present = names(runs["variant"])
    papers = VARIANTS if set(present) & (set(VARIANTS) - {BASELINE}) else ()  # else none is missing
    variants = [v for v in runs["variant"].cat.categories if v in papers or v in present]
    cells = cell_statistics(runs, what)
    if statistic == "ci":
        cells = with_interval(cells, what=what)
    texts = {
        Cell(*key): _cell(cell, statistic, cells["n"].nunique() == 1, what)
        for key, cell in cells.to_dict("index").items()
    }
    troubles, mixed = notes.troubles(runs), notes.mixed(runs, what)
    given = {Cell(*key) for key, _ in runs[runs["given"]].groupby(CELL, observed=True)}

    def shown(cell: Cell) -> str:
        marks = "†" * (cell in given) + "‡" * (cell in mixed)
        return texts.get(cell, NONE) + marks + notes.marker(troubles.get(cell, {}))

    places = [(arch, row) for (_, arch, row), _ in runs.groupby(ROW, observed=True)]
    grid = [[Cell(dataset, arch, row, v) for v in variants] for arch, row in places]
    rows = [[row_name(*place), *map(shown, line)] for place, line in zip(places, grid, strict=True)]
    there = {Cell(*key) for key, _ in runs.groupby(CELL, observed=True)}
    caption = (
        f"{dataset_label(dataset)}: {what.words} {notes.of_epoch(what.epoch)}, "
        f"{_seeds(cells, statistic, what)} (number of parameters)."
    )
    lines = notes.lines(runs, troubles, mixed)
    lines += what.notes
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


def _seeds(cells: pd.DataFrame, statistic: str, what: Measured) -> str:
    """Return what a caption says of the numbers of seeds."""
    counts = cells["n"].unique()
    shown = STATISTICS[statistic].format(cut=", cut at 0 and 100%" if what.unit == "%" else "")
    if len(counts) == 0:
        return "no run is complete"
    if len(counts) > 1:
        return f"{shown} of n seeds"
    return f"{shown} of {counts[0]} seeds" if counts[0] > 1 else "one seed per cell"


def _cell(cell: dict[str, Any], statistic: str, same_n: bool, what: Measured) -> str:
    """Return one cell's text, such as "95.56% ± 0.12 (11M)"."""
    digits = what.digits
    text = f"{cell['median' if statistic == 'median' else 'mean']:.{digits}f}{what.unit}"
    if cell["n"] > 1:
        known = statistic != "ci" or not pd.isna(cell["low"])
        text += " " + (_SPREADS[statistic].format(**cell, digits=digits) if known else f"[{NONE}]")
    return f"{text} ({sizes(cell)})" + ("" if same_n else f" n={cell['n']}")


def _name(cell: dict[str, Any]) -> list[str]:
    """Return data set, architecture and variant of a row that is one cell."""
    row = row_name(cell["arch"], cell["row"])
    return [dataset_label(cell["dataset"]), row, variant_label(cell["variant"])]


def _tested(difference: dict[str, Any], digits: int) -> list[str]:
    """Return number of pairs, difference, interval and both p of a row of paired_differences."""
    delta, low, high = (fixed(difference[name], digits, "+") for name in ("delta", "low", "high"))
    interval = NONE if pd.isna(difference["low"]) else f"{low} to {high}"
    return [f"{difference['n']}", delta, interval, _p(difference["p"]), _p(difference["p_holm"])]


def _p(value: float) -> str:
    if pd.isna(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"
