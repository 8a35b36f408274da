"""The tables: accuracies and parameters as in the paper, differences to Standard, and ours beside
the published.

A Table is text only; resnests/render.py writes it as markdown, LaTeX or HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from resnests.paper import ARCHS, PUBLISHED, VARIANTS, dataset_label, in_order, variant_label
from resnests.results import notes
from resnests.results.cells import CELL, in_row_order, row_name
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
    "ci": "mean [95% confidence interval, Student's t]",
}
NONE = "—"


@dataclass
class Table:
    """A table ready to be written: `rows` of as many cells as `header`, `notes` one line each."""

    key: str  # for file names and labels
    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def accuracy_tables(
    runs: pd.DataFrame, statistic: str = "mean", epoch: str = "last"
) -> list[Table]:
    """One table per data set of labelled `runs`: architectures and recipes by variants."""
    cells = cell_statistics(runs)
    if statistic == "ci":
        cells = with_interval(cells)
    return [
        _accuracy_table(runs[runs["dataset"] == name], cells, statistic, epoch)
        for name in in_order(list(runs["dataset"].unique()), {"cifar10": "", "cifar100": ""})
    ]


def comparison_table(runs: pd.DataFrame) -> Table:
    """Every variant's difference to Standard, paired by seed."""
    differences = against_baseline(runs)
    rows = []
    for index in _order(differences):
        d = differences.loc[index]
        interval = f"{d['low']:+.2f} to {d['high']:+.2f}" if d["n"] > 1 else NONE
        name = [
            dataset_label(d["dataset"]),
            row_name(d["arch"], d["row"]),
            variant_label(d["variant"]),
        ]
        rows.append(
            [*name, f"{d['n']}", f"{d['delta']:+.2f}", interval, _p(d["p"]), _p(d["p_holm"])]
        )
    header = [
        "Data set",
        "Architecture",
        "Variant",
        "Pairs",
        "Δ to Standard",
        "95% interval",
        "p",
        "p (Holm)",
    ]
    caption = (
        "Difference of test accuracy to Standard in percentage points, paired by seed: mean, 95% interval, two-sided p "
        f"of a paired t test, and p corrected for the number of tests here, {differences['p'].notna().sum()} (Holm)."
    )
    return Table(
        "differences", "Differences to Standard", caption, header, rows, notes.power(differences)
    )


def paper_table(runs: pd.DataFrame) -> Table:
    """Ours beside the published number, for every cell that the paper has."""
    cells = against_paper(with_interval(cell_statistics(runs)))
    rows = []
    for index in _order(cells):
        c = cells.loc[index]
        interval = f"{c['low']:.2f} to {c['high']:.2f}" if c["n"] > 1 else NONE
        inside = {True: "inside", False: "outside", None: "one seed"}[c["inside"]]
        ours, theirs = millions(c["parameters"]), c["published_parameters"]
        sizes = f"{ours} = {theirs}" if c["same_parameters"] else f"{ours} ≠ {theirs}"
        name = [
            dataset_label(c["dataset"]),
            row_name(c["arch"], c["row"]),
            variant_label(c["variant"]),
        ]
        values = [
            f"{c['mean']:.2f}",
            f"{c['median']:.2f}",
            interval,
            f"{c['published']:.2f}",
            f"{c['difference']:+.2f}",
        ]
        rows.append([*name, f"{c['n']}", *values, inside, sizes])
    header = [
        "Data set", "Architecture", "Variant", "n", "Mean", "Median", "95% interval", "Paper", "Difference",
        "Paper in interval", "Parameters",
    ]  # fmt: skip
    caption = (
        "Test accuracy in % beside the paper's, which does not say whether it is a mean or a median over seven seeds; "
        "whether it lies in our 95% interval of the mean (Student's t), and whether the numbers of parameters agree."
    )
    absent = [
        dataset_label(name)
        for name in runs["dataset"].unique()
        if name not in {key[0] for key in PUBLISHED}
    ]
    lines = [f"The paper has no table for {', '.join(absent)}."] if absent else []
    return Table("paper", "Beside the paper", caption, header, rows, lines)


def _accuracy_table(runs: pd.DataFrame, cells: pd.DataFrame, statistic: str, epoch: str) -> Table:
    dataset = runs["dataset"].iloc[0]
    variants = in_order([*VARIANTS, *runs["variant"].unique()], VARIANTS)
    counts = cells.loc[cells.index.get_level_values("dataset") == dataset, "n"]
    same_n = counts.nunique() == 1
    troubles = notes.troubles(runs)
    mixed = notes.mixed_code(runs)
    given = {key for key, some in runs.groupby(CELL, sort=False)["given"].any().items() if some}
    rows = []
    for arch in in_order(list(runs["arch"].unique()), ARCHS):
        for row in in_row_order(set(runs.loc[runs["arch"] == arch, "row"])):
            keys = [(dataset, arch, row, variant) for variant in variants]
            marks = [
                "†" * (key in given) + "‡" * (key in mixed) + notes.marker(troubles.get(key, {}))
                for key in keys
            ]
            texts = [
                _cell(cells.loc[key], statistic, same_n) if key in cells.index else NONE
                for key in keys
            ]
            rows.append(
                [
                    row_name(arch, row),
                    *(text + mark for text, mark in zip(texts, marks, strict=True)),
                ]
            )
    when = (
        "after the last epoch"
        if epoch == "last"
        else "of the epoch with the best validation accuracy"
    )
    if counts.empty:
        seeds = "no run is complete"
    elif same_n:
        n = counts.iloc[0]
        seeds = f"{STATISTICS[statistic]} of {n} seeds" if n > 1 else "one seed per cell"
    else:
        seeds = f"{STATISTICS[statistic]} of n seeds"
    caption = f"{dataset_label(dataset)}: test accuracy {when}, {seeds} (number of parameters)."
    lines = notes.lines(runs, troubles, mixed)
    header = ["Architecture", *map(variant_label, variants)]
    return Table(f"accuracy_{dataset}", dataset_label(dataset), caption, header, rows, lines)


def _cell(cell: pd.Series, statistic: str, same_n: bool) -> str:
    """One cell's text, such as "95.56% ± 0.12 (11M)"."""
    n = int(cell["n"])
    middle = f"{cell['median' if statistic == 'median' else 'mean']:.2f}%"
    if n > 1:
        spread = {
            "mean": "± {std:.2f}",
            "median": "[{min:.2f} to {max:.2f}]",
            "ci": "[{low:.2f} to {high:.2f}]",
        }
        middle += " " + spread[statistic].format(**cell)
    return f"{middle} ({millions(cell['parameters'])})" + ("" if same_n else f" n={n}")


def _order(cells: pd.DataFrame) -> list[int]:
    """The index of `cells` in the order of the accuracy tables."""
    ranks = {
        name: {value: rank for rank, value in enumerate(order)}
        for name, order in (
            ("dataset", in_order(list(cells["dataset"].unique()), {"cifar10": "", "cifar100": ""})),
            ("arch", in_order(list(cells["arch"].unique()), ARCHS)),
            ("row", in_row_order(set(cells["row"]))),
            ("variant", in_order(list(cells["variant"].unique()), VARIANTS)),
        )
    }
    return sorted(
        cells.index, key=lambda index: tuple(ranks[name][cells.at[index, name]] for name in CELL)
    )


def _p(value: float) -> str:
    if pd.isna(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"
