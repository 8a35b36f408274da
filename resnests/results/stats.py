"""Statistics over seeds: of cells, of differences between variants, and against the published
numbers.

Accuracies and their differences are in percent and percentage points. Intervals are 95% Student-t
intervals of a mean; where there are fewer than two values, an interval is nan. scipy is imported
only where a quantile is needed.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from resnests.errors import UserError
from resnests.paper import PUBLISHED
from resnests.results.cells import CELL
from resnests.runs.directory import RunDirectory
from resnests.runs.record import BrokenRecord

LEVEL = 0.95
BASELINE = "standard"


def millions(number: float, digits: int = 2) -> str:
    """A count of parameters in millions with two significant digits, as in the paper: 11M, 8.7M,
    9.0M, 0.27M.
    """
    rounded = float(f"{number / 1e6:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:.{decimals}f}M"


def cell_statistics(runs: pd.DataFrame) -> pd.DataFrame:
    """Per cell with complete runs: n, mean, std (sample), median, min, max, and parameters;
    indexed by CELL.
    """
    groups = runs[runs["status"] == "complete"].groupby(CELL, sort=False)
    cells = groups["test_accuracy"].agg(["count", "mean", "std", "median", "min", "max"])
    cells = cells.rename(columns={"count": "n"})
    return cells.join(groups["parameters"].first().astype(float))


def with_interval(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with `low` and `high`, the ends of the 95% interval of the mean."""
    from scipy.special import stdtrit

    half = (
        stdtrit(cells["n"].clip(lower=2) - 1, (1 + LEVEL) / 2) * cells["std"] / np.sqrt(cells["n"])
    )
    return cells.assign(low=cells["mean"] - half, high=cells["mean"] + half)


def against_baseline(runs: pd.DataFrame) -> pd.DataFrame:
    """Each variant less Standard in the same row, paired by seed; empty where no row holds both.

    n pairs, delta, its interval low to high, p of a two-sided paired t test (nan for one pair, or
    where all differences are equal, as then nothing tells their spread), and p_holm, corrected for
    all tests of the frame together.
    """
    complete = runs[runs["status"] == "complete"]
    seeds = complete.pivot_table(
        index=[*CELL[:3], "seed"], columns="variant", values="test_accuracy"
    )
    rows = []
    if BASELINE in seeds:
        for variant in seeds.columns.drop(BASELINE):
            differences = (seeds[variant] - seeds[BASELINE]).dropna()
            for key, group in differences.groupby(level=CELL[:3], sort=False):
                rows.append((*key, variant, *_paired(group.to_numpy())))
    table = pd.DataFrame(rows, columns=[*CELL, "n", "delta", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"]))


def _paired(differences: np.ndarray) -> tuple[int, float, float, float, float]:
    """n, mean, interval and p of (n,) differences."""
    from scipy.stats import ttest_1samp

    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return n, mean, math.nan, math.nan, math.nan
    if differences.std() <= 1e-9 * max(1.0, abs(mean)):
        return n, mean, mean, mean, math.nan
    test = ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return n, mean, float(low), float(high), float(test.pvalue)


def holm(p: pd.Series) -> pd.Series:
    """p values corrected by Holm's step-down method; a nan is no test, stays, and is not
    counted.
    """
    ordered = p.dropna().sort_values()
    corrected = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def against_paper(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with intervals that the paper has a number for, beside it.

    published, difference (our mean less it), inside (whether it lies in our interval; None for one
    seed), published_parameters (text), same_parameters.
    """
    rows = []
    for key, cell in zip(cells.index, cells.to_dict("records"), strict=True):
        dataset, arch, _, variant = key
        if (dataset, arch, variant) not in PUBLISHED:
            continue
        published, size = PUBLISHED[dataset, arch, variant]
        inside = cell["low"] <= published <= cell["high"] if cell["n"] > 1 else None
        same = millions(cell["parameters"]) == size
        values = {"published": published, "difference": cell["mean"] - published, "inside": inside}
        rows.append(
            dict(zip(CELL, key, strict=True))
            | cell
            | values
            | {"published_parameters": size, "same_parameters": same}
        )
    columns = [
        *CELL,
        *cells.columns,
        "published",
        "difference",
        "inside",
        "published_parameters",
        "same_parameters",
    ]
    return pd.DataFrame(rows, columns=columns)


def at_best_epoch(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with the metrics of complete ones taken at the epoch of the best validation accuracy.

    Raises UserError where a complete run has no held-out split: the test set must not choose what
    is reported of it.
    """
    runs = runs.copy()
    complete = runs[runs["status"] == "complete"]
    without = complete[complete["weights"].notna() | ~(complete["dataset.val_fraction"] > 0)]
    if len(without):
        raise UserError(
            f"--epoch best: {len(without)} of {len(complete)} complete runs have no held-out split, such as "
            f"{without['path'].iloc[0]}; an epoch that the test set chose would flatter it. "
            "Train with dataset.val_fraction=0.1, or leave the last epoch"
        )
    columns = (
        "epoch",
        "val_accuracy",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    )
    for index, path in complete["path"].items():
        try:
            history = pd.DataFrame(RunDirectory(path).read_history(columns)).dropna()
        except BrokenRecord as error:
            raise UserError(f"--epoch best: {path}: {error}") from error
        if history.empty:
            raise UserError(
                f"--epoch best: {path}: history.csv has no epoch with validation and test accuracy"
            )
        best = history.loc[history["val_accuracy"].idxmax()]
        for column in columns:
            if column != "val_accuracy":
                runs.loc[index, column] = best[column]
    return runs
