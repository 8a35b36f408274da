"""The statistics against numbers worked out otherwise."""

import math

import numpy as np
import pandas as pd
import pytest
import trees
from scipy import stats

from resnests.errors import UserError
from resnests.results.cells import label_rows
from resnests.results.frame import read_runs
from resnests.results.stats import (
    POWER,
    against_baseline,
    at_best_epoch,
    cell_statistics,
    holm,
    with_interval,
)


def runs_of(root, **accuracies):
    for variant, values in accuracies.items():
        for seed, value in enumerate(values):
            trees.add_run(root, value, variant=variant, seed=seed)
    return label_rows(read_runs(root)[0])


def test_a_cell_has_every_statistic(tmp_path):
    values = [90.0, 91.0, 94.0, 95.0]
    cell = with_interval(cell_statistics(runs_of(tmp_path, standard=values))).iloc[0]
    assert (cell["n"], cell["mean"], cell["median"], cell["min"], cell["max"]) == (
        4,
        92.5,
        92.5,
        90,
        95,
    )
    assert cell["std"] == pytest.approx(np.std(values, ddof=1))
    low, high = stats.t.interval(0.95, 3, loc=92.5, scale=stats.sem(values))
    assert (cell["low"], cell["high"]) == pytest.approx((low, high))


def test_one_seed_has_no_interval(tmp_path):
    cell = with_interval(cell_statistics(runs_of(tmp_path, standard=[90.0]))).iloc[0]
    assert cell["mean"] == 90
    assert math.isnan(cell["std"])
    assert math.isnan(cell["low"])


def test_an_interval_is_cut_at_100_and_there_is_none_without_spread(tmp_path):
    runs = runs_of(tmp_path, standard=[98.59, 99.15], resnest=[100.0, 100.0])
    cells = with_interval(cell_statistics(runs)).droplevel(["dataset", "arch", "row"])
    assert (cells.loc["standard", "low"], cells.loc["standard", "high"]) == (
        pytest.approx(95.31, abs=0.01),
        100,
    )
    assert cells.loc["resnest", ["low", "high"]].isna().all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_an_exact_reproduction_of_seven_seeds_is_in_the_prediction_95_times_of_100(n):
    random = np.random.default_rng(n)
    ours, theirs = random.normal(90, 0.3, (20_000, n)), random.normal(90, 0.3, (20_000, 7))
    cells = pd.DataFrame({"n": n, "mean": ours.mean(axis=1), "std": ours.std(axis=1, ddof=1)})

    def share_inside(intervals):
        inside = pd.Series(theirs.mean(axis=1)).between(intervals["low"], intervals["high"])
        return inside.mean()

    assert share_inside(with_interval(cells, seeds=7)) == pytest.approx(0.95, abs=0.005)
    if n == 7:  # what the interval of our mean alone takes for a reproduction
        assert share_inside(with_interval(cells)) == pytest.approx(0.87, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_detectable_difference_is_seen_in_80_of_100_repetitions(tmp_path, n):
    random = np.random.default_rng(n)
    differences = random.normal(0, 1, n)
    standard = 90 + random.normal(0, 1, n)
    row = against_baseline(runs_of(tmp_path, standard=standard, resnest=standard + differences))
    spread, detectable = differences.std(ddof=1), row["detectable"].iloc[0]
    assert row["std"].iloc[0] == pytest.approx(spread)
    again = random.normal(detectable, spread, (20_000, n))
    assert (stats.ttest_1samp(again, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        POWER, abs=0.01
    )


def test_differences_are_paired_by_seed(tmp_path):
    standard, variant = (
        [90.0, 92.0, 94.0, 96.0],
        [89.1, 91.0, 92.9, 94.8],
    )  # seeds differ by more than the variants
    test = against_baseline(runs_of(tmp_path, standard=standard, resnest=variant)).iloc[0]
    expected = stats.ttest_rel(variant, standard)
    assert (test["n"], test["delta"]) == (4, pytest.approx(-1.05))
    assert test["p"] == pytest.approx(expected.pvalue)
    assert (test["low"], test["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert test["p"] < 0.001 < stats.ttest_ind(variant, standard).pvalue


def test_only_seeds_that_both_have_are_pairs(tmp_path):
    test = against_baseline(
        runs_of(tmp_path, standard=[90.0, 91.0, 92.0, 10.0], resnest=[89.0, 90.5, 90.5])
    ).iloc[0]
    assert (test["n"], test["delta"]) == (3, pytest.approx(-1.0))


def test_one_pair_and_equal_differences_give_no_p(tmp_path):
    runs = runs_of(tmp_path, standard=[90.0, 91.0], resnest=[89.0, 90.0], a_resnest=[91.0])
    tests = against_baseline(runs).set_index("variant")
    assert tests["p"].isna().all()
    assert tests.loc["resnest", "delta"] == -1
    assert tests[["low", "high", "detectable"]].isna().all(axis=None)


def test_without_standard_there_is_nothing_to_compare(tmp_path):
    assert against_baseline(runs_of(tmp_path, resnest=[89.0, 90.0])).empty


def test_holm_steps_down_stays_in_order_and_ignores_what_is_no_test():
    corrected = holm(pd.Series([0.01, 0.04, 0.03, math.nan, 0.005]))
    assert list(corrected.dropna()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(corrected[3])
    assert list(holm(pd.Series([0.6, 0.9]))) == [1.0, 1.0]


def test_the_best_epoch_is_chosen_on_the_held_out_split(tmp_path):
    history = trees.history_rows(90, 4, val=True)
    for row, (val, test) in zip(history, [(10, 20), (80, 60), (70, 99), (75, 90)], strict=True):
        row |= {"val_accuracy": val, "test_accuracy": test}
    trees.add_run(tmp_path, 90, history=history, trainer__epochs=4, dataset__val_fraction=0.1)
    run = at_best_epoch(read_runs(tmp_path)[0]).iloc[0]
    assert (run["epoch"], run["test_accuracy"]) == (2, 60)


def test_the_best_epoch_is_refused_without_a_held_out_split(tmp_path):
    trees.add_run(tmp_path, 90, history=trees.history_rows(90, 4))
    with pytest.raises(
        UserError, match=r"1 of 1 complete runs have no held-out split.*dataset\.val_fraction"
    ):
        at_best_epoch(read_runs(tmp_path)[0])
