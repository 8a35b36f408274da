"""Compute statistics over seeds: of cells, of differences between variants, and against the
published numbers.

Accuracies and their differences are in percent and percentage points. Intervals are 95% Student-t
intervals; one of accuracies is cut at 0 and 100%, which changes nothing in how often it covers the
true mean. Where nothing tells the spread, as there is one value or all are equal, an interval is
nan. scipy is imported only where a quantile is needed.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from resnests import paper
from resnests.errors import UserError
from resnests.results.cells import CELL, ROW
from resnests.results.measured import ACCURACY, Measured
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, BrokenRecord

LEVEL = 0.95
POWER = 0.8
BASELINE = "standard"


def millions(number: float, digits: int = 2) -> str:
    """Return a count of parameters in millions with two significant digits, as in the paper: 11M,
    8.7M, 9.0M, 0.27M.
    """
    rounded = float(f"{number / 1e6:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:.{decimals}f}M"


def sizes(cell: dict[str, Any]) -> str:
    """Return the trained parameters of a cell of cell_statistics in millions, and apart from them
    those that init.freeze keeps, such as 0.27M or 0.01M + 0.26M frozen.
    """
    frozen = cell.get("frozen_parameters", math.nan)
    apart = "" if math.isnan(frozen) else f" + {millions(frozen)} frozen"
    return f"{millions(cell['parameters'])}{apart}"


def cell_statistics(runs: pd.DataFrame, what: Measured = ACCURACY) -> pd.DataFrame:
    """Return per cell with complete runs: n, mean, std (sample), median, min and max of `what`,
    parameters, and frozen_parameters where a run has some; indexed by CELL. Runs that have it not
    measured do not count.
    """
    groups = runs[runs["status"] == "complete"].groupby(CELL, observed=True)
    cells = groups[what.column].agg(["count", "mean", "std", "median", "min", "max"])
    cells = cells.rename(columns={"count": "n"})
    counts = [name for name in ("parameters", "frozen_parameters") if name in runs]
    return cells.join(groups[counts].first().astype(float)).query("n > 0")


def t_quantile(n: pd.Series | int) -> np.ndarray:
    """Return how many standard errors an interval of n values reaches to either side."""
    from scipy.special import stdtrit

    return stdtrit(np.maximum(n, 2) - 1, (1 + LEVEL) / 2)


def standard_error(values: pd.DataFrame, seeds: float = math.inf) -> pd.Series:
    """Return the standard error of a mean, from its n, mean and std; or of its difference to the
    mean of `seeds` other values with the same spread; nan where nothing tells the spread.
    """
    equal = values["std"] <= 1e-9 * values["mean"].abs().clip(lower=1)  # but for rounding
    return (values["std"] * np.sqrt(1 / values["n"] + 1 / seeds)).mask(equal)


def with_interval(
    cells: pd.DataFrame, seeds: float = math.inf, prefix: str = "", what: Measured = ACCURACY
) -> pd.DataFrame:
    """Return cells with `low` and `high`, the ends of the interval of the mean.

    With a finite number of `seeds`, of the interval in which the mean of as many other seeds is
    predicted (Hahn and Meeker, Statistical Intervals, chapter 4).
    """
    half = t_quantile(cells["n"]) * standard_error(cells, seeds)
    ends = {"low": cells["mean"] - half, "high": cells["mean"] + half}
    return cells.assign(**{prefix + name: end.clip(*what.bounds) for name, end in ends.items()})


def against_baseline(runs: pd.DataFrame, what: Measured = ACCURACY) -> pd.DataFrame:
    """Return each variant less Standard in the same row, paired by seed; empty where no row holds
    both.

    n pairs, delta and std (mean and spread of the differences), the interval low to high of delta,
    detectable (the true difference that a test at 5% shows with 80% power), p of a two-sided paired
    t test, and p_holm, corrected for all tests of the frame together. From low on they are nan for
    one pair, and where all differences are equal. The column pairs has seeds and run directories.
    """
    complete = runs.loc[runs["status"] == "complete", [*CELL, "seed", "path", what.column]]
    is_baseline = complete["variant"] == BASELINE
    baseline = complete[is_baseline].drop(columns="variant")
    pairs = complete[~is_baseline].merge(baseline, on=[*ROW, "seed"], suffixes=("", "_baseline"))
    return paired_differences(pairs, CELL, what)


def paired_differences(pairs: pd.DataFrame, by: list[str], what: Measured) -> pd.DataFrame:
    """Return n, delta and the tests of the differences of `pairs`, grouped by columns; and `pairs`,
    the seeds with both run directories.
    """
    from scipy.special import nctdtrinc, stdtr

    difference = pairs[what.column] - pairs[f"{what.column}_baseline"]
    members = [*pairs[["seed", "path", "path_baseline"]].itertuples(index=False, name=None)]
    pairs = pairs.assign(difference=difference, pairs=pd.Series(members, pairs.index, dtype=object))
    both = pairs.groupby(by, observed=True)
    groups = both["difference"]
    table = groups.agg(["count", "mean", "std"]).rename(columns={"count": "n"}).reset_index()
    n, error, quantile = table["n"], standard_error(table), t_quantile(table["n"])
    # The power counts the tail on the side of the difference; the other one's share is negligible.
    noncentrality = nctdtrinc(np.maximum(n, 2) - 1, 1 - POWER, quantile)
    p = 2 * stdtr(n - 1, -(table["mean"] / error).abs())
    table = table.assign(
        low=table["mean"] - quantile * error,
        high=table["mean"] + quantile * error,
        detectable=noncentrality * error,
        p=p,
        p_holm=holm(p),
        pairs=both["pairs"].agg(sorted).array,
    )
    return table.rename(columns={"mean": "delta"})


def holm(p: pd.Series) -> pd.Series:
    """Return p values corrected by Holm's step-down method; a nan is no test, stays, and is not
    counted.
    """
    ordered = p.dropna().sort_values()
    corrected = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1.0)
    return corrected.reindex(p.index)


def against_paper(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of labelled `runs` that the paper has a number for, beside it.

    predicted_low, predicted_high (where the mean of as many seeds as the paper's is predicted from
    ours), published, difference (our mean less it), deviations ("", or what is not the paper's
    recipe), inside (whether it lies there, NA where nothing tells our spread or the recipe is
    another), published_parameters (text), same_parameters.
    """
    published = pd.DataFrame(
        [(*key, *numbers) for key, numbers in paper.PUBLISHED.items()],
        columns=["dataset", "arch", "variant", "published", "published_parameters"],
    )
    cells = with_interval(cell_statistics(runs))
    cells = with_interval(cells, paper.SEEDS, "predicted_")
    cells = cells.join(_deviations(runs)).reset_index()
    table = cells.merge(published, how="left", on=["dataset", "arch", "variant"])
    table = table.dropna(subset="published")
    low, high = table["predicted_low"], table["predicted_high"]
    inside = table["published"].between(low, high).astype("boolean")
    return table.assign(
        difference=table["mean"] - table["published"],
        inside=inside.mask(low.isna() | (table["deviations"] != "")),
        same_parameters=table["parameters"].map(millions) == table["published_parameters"],
    )


def _deviations(runs: pd.DataFrame) -> pd.Series:
    """Return for each cell what is not the paper's recipe; "" where all is, or it has none."""

    def deviation(run: dict[str, Any]) -> str:
        cell = (run["dataset"], run["arch"], run["variant"])
        if run["given"]:
            return "given weights, of unknown training"
        known = cell in paper.PUBLISHED
        return ", ".join(paper.deviations(json.loads(run["recipe_values"]), *cell)) if known else ""

    first = runs.drop_duplicates(CELL)
    found = [deviation(run) for run in first.to_dict("records")]
    return pd.Series(found, pd.MultiIndex.from_frame(first[CELL]), name="deviations", dtype=object)


def at_best_epoch(runs: pd.DataFrame, *needed: str) -> pd.DataFrame:
    """Return `runs` with the metrics of complete ones taken at the epoch of the best validation
    accuracy, nan where none was measured there.

    Raises UserError where a complete run has no held-out split, as the test set must not choose
    what is reported of it; or where it has a `needed` metric, but not of that epoch.
    """
    runs = runs.copy()
    complete = runs[runs["status"] == "complete"]
    without = complete[complete["weights"].notna() | ~(complete["dataset.val_fraction"] > 0)]
    if len(without):
        raise UserError(
            f"--epoch best: {len(without)} of {len(complete)} complete runs have no held-out "
            f"split, such as {without['path'].iloc[0]}; an epoch that the test set chose would "
            "flatter it. Train with dataset.val_fraction=0.1, or leave the last epoch"
        )
    columns = ("epoch", *METRICS, "val_accuracy")
    more = [name for name in runs if name.startswith(("val_", "test_")) and name not in columns]
    for index, path in complete["path"].items():
        try:
            epochs = pd.DataFrame(RunDirectory(path).read_history())
        except BrokenRecord as error:
            raise UserError(f"--epoch best: {path}: {error}") from error
        epochs = epochs.dropna(subset=[*columns])
        if epochs.empty:
            raise UserError(
                f"--epoch best: {path}: history.csv has no epoch with validation and test accuracy"
            )
        best = epochs.loc[epochs["val_accuracy"].idxmax()].reindex([*columns, *more])
        for column in {*needed} & {*best.index}:
            if pd.isna(best[column]) and pd.notna(runs.at[index, column]):
                raise UserError(
                    f"--epoch best: {path}: history.csv has no {column} of epoch "
                    f"{best['epoch']:.0f}, as that was measured afterwards; expected the last epoch"
                )
        for column in best.index:
            runs.loc[index, column] = best[column]
    return runs
