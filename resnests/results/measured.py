"""Decide what tables and figures are of: one metric of the test images or the held-out ones, and
how its numbers are written; and the value of an axis that validation chooses.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pandas as pd

from resnests.config.recipe import distinguishing_keys
from resnests.errors import UserError, require_one_of
from resnests.results.columns import PLANNED, is_setting
from resnests.results.select import column_of, values_of
from resnests.text import brief

SPLITS = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Measured:
    """Says of which metric, split and epoch numbers are."""

    name: str = "accuracy"
    split: str = "test"  # one of SPLITS
    epoch: str = "last"  # or best, by validation accuracy
    unit: str = "%"
    better: str = "high"  # or low, or "" where no run's configuration says
    notes: tuple[str, ...] = ()  # for below the tables

    @property
    def column(self) -> str:
        return f"{self.split}_{self.name}"

    @property
    def words(self) -> str:
        """Return such as "test accuracy" or "validation f1"."""
        return f"{SPLITS[self.split]} {self.name.replace('_', ' ')}"

    @property
    def axis(self) -> str:
        """Return the words with the unit, for an axis."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.words[0].upper()}{self.words[1:]}{unit}"

    @property
    def digits(self) -> int:
        return 2 if self.unit == "%" else 4

    @property
    def bounds(self) -> tuple[float, float]:
        """Return between which numbers it lies, as far as that is known."""
        if self.unit == "%":
            return 0, 100
        return (0 if self.name.endswith("loss") else -math.inf), math.inf

    @property
    def points(self) -> str:
        """Return what a difference is in."""
        return "percentage points" if self.unit == "%" else "its own unit"

    def is_low_best(self, option: str) -> bool:
        """Return whether the least value is the best; raise a UserError where nothing says."""
        name, plain = self.name, self.name.removeprefix("ema_")
        if not self.better:
            raise UserError(
                f"{option}: no run's configuration says whether a high or a low {name} is better; "
                f"measure the runs again: their run.py command with metrics=[{plain}]"
            )
        return self.better == "low"

    @property
    def is_of_predictions(self) -> bool:
        """Return whether predictions.npz tells it: the test accuracy of the last epoch."""
        return self.is_accuracy and self.epoch == "last"

    @property
    def is_accuracy(self) -> bool:
        """Return whether it is what the paper has."""
        return (self.name, self.split) == ("accuracy", "test")


ACCURACY = Measured()


def measured(
    runs: pd.DataFrame, name: str, split: str, epoch: str, asked: str | None = None
) -> Measured:
    """Return what `--metric`, `--split` and `--epoch` ask for, or the option `asked`; raise a
    UserError where no run has it.
    """
    if (name, split) == ("accuracy", "test"):
        return Measured(epoch=epoch)
    column = f"{split}_{name}"
    if column not in runs or runs.loc[runs["status"] == "complete", column].isna().all():
        known = sorted(c.partition("_")[2] for c in runs if c.startswith(f"{split}_"))
        mend = f"expected {', '.join(known)}" if known else "train with dataset.val_fraction=0.1"
        lacking = f"{asked}: no complete run has {column}"
        if asked is None:
            lacking = f"--metric {name} --split {split}: no complete run has it"
        raise UserError(f"{lacking}; {mend}")
    plain = name.removeprefix("ema_")
    unit, better = {"loss": ("", "low"), "accuracy": ("%", "high")}.get(plain, (None, None))
    if unit is not None:
        return Measured(name, split, epoch, unit, better or "high")
    have = runs[(runs["status"] == "complete") & runs[column].notna()]
    unit, better = _said(have, plain, "unit", ""), _said(have, plain, "better", "high")
    ways = definitions(have, name).unique()
    note = f"{name} was measured in several ways, which are no one metric: {'; '.join(ways)}."
    return Measured(name, split, epoch, unit, better, (note,) if len(ways) > 1 else ())


def definitions(runs: pd.DataFrame, name: str) -> pd.Series:
    """Return in words how each run measured the metric `name`: the digest of its keys and source,
    and those keys that not all runs share. Of loss and accuracy there is one way.
    """
    plain = name.removeprefix("ema_")
    if plain in ("loss", "accuracy"):
        return pd.Series(plain, runs.index)
    digests = runs.reindex(columns=[f"definition.{plain}"]).astype(object).squeeze(1)
    digests = digests.fillna("not on record")
    prefix = f"metrics.{plain}."
    keys = [key for key in runs if key.startswith(prefix) and runs[key].nunique(dropna=False) > 1]
    words = {}
    for digest, mine in runs[keys].groupby(digests):
        told = {key.removeprefix(prefix): mine[key].dropna() for key in keys}
        parts = [f"{key}={values.iloc[0]}" for key, values in told.items() if len(values)]
        words[digest] = ", ".join([str(digest), *parts])
    return digests.map(words)


def _said(runs: pd.DataFrame, metric: str, key: str, default: str) -> str:
    """Return what the configurations of `runs` say of a metric: `default` where they have it but
    not this key, "" where none has it. Raise a UserError where they say different things, as such
    numbers have no mean.
    """
    columns = [f"metrics.{metric}._target_", f"metrics.{metric}.{key}"]
    known = runs.reindex(columns=columns).astype(object)
    said = known.loc[known[columns[0]].notna(), columns[1]].fillna(default).unique()
    if len(said) > 1:
        values = " and ".join(f"{value or 'none'}" for value in sorted(map(str, said)))
        raise UserError(
            f"--metric {metric}: runs have it with {columns[1]} {values}; expected one. Choose "
            f"runs by words, or measure them again: their run.py command with one metrics.{metric}"
        )
    return str(said[0]) if len(said) else ""


def choose(runs: pd.DataFrame, key: str, by: str, what: Measured) -> tuple[pd.DataFrame, Measured]:
    """Return `runs` with, of each cell, those of the value of `key` with the best mean of `by` over
    seeds, and this value as a column `chosen`; and `what` with notes: on the number of values that
    were begun, and on cells of which nothing is complete. Raise a UserError.

    Cells that choose different values stay in one row of the tables, as they would with one value.
    """
    require_one_of("--by", by.partition("_")[0], ("val",))
    key = column_of(runs, key, f"--select {key}")
    if not is_setting(key):
        expected = "expected a setting of which a cell has several values, such as optimizer.lr"
        raise UserError(f"--select {key}: {expected}; means are over seeds, and of each cell")
    runs = runs.assign(**{key: values_of(runs, key)})
    judge = measured(runs, by.removeprefix("val_"), "val", what.epoch, f"--select {key}")
    is_low = judge.is_low_best(f"--select {key} --by {by}")
    chosen, said, left_out = [], [], []
    recipes = [json.loads(text) for text in runs["recipe_values"]]
    others = [json.dumps(recipe | {key: "chosen"}, sort_keys=True) for recipe in recipes]
    _require_choice(runs, key, others)
    names = ["dataset", "arch", "variant"]
    labelled = runs.assign(recipe_values=others)
    telling = {
        name: sorted(distinguishing_keys([json.loads(text) for text in same.unique()]))
        for name, same in labelled.groupby(names)["recipe_values"]
    }
    several = runs["dataset"].nunique() > 1
    for (*name, recipe), cell in labelled.groupby([*names, "recipe_values"], sort=False):
        values = {k: brief(v) for k, v in json.loads(recipe).items()}
        differing = [f", {k}={values[k]}" for k in telling[tuple(name)] if k in values]
        cell_words = " ".join(name if several else name[1:]) + "".join(differing)
        begun = cell[cell["status"] != PLANNED]
        scores = begun[judge.column].where(begun["status"] == "complete").groupby(begun[key])
        if not scores.count().any():
            left_out.append(cell_words)
            continue
        best = scores.mean().idxmin() if is_low else scores.mean().idxmax()
        chosen.append(cell[cell[key] == best].assign(**{key: "chosen", "chosen": best}))
        said.append(f"{cell_words}: {best} (of {_tried(scores.count())})")
    if not chosen:
        raise UserError(f"--select {key}: no complete run has {by}")
    of = " of the best epoch" if what.epoch == "best" else ""
    note = f"{key} chosen by the mean {judge.words}{of} over seeds: {'; '.join(said)}."
    lost = f"Left out, as no run with {by} is complete: {'; '.join(left_out)}."
    picked = pd.concat(chosen).sort_index()
    notes = dict.fromkeys((*what.notes, *judge.notes, note, *[lost] * bool(left_out)))
    return picked.reset_index(drop=True), replace(what, notes=tuple(notes))


def _require_choice(runs: pd.DataFrame, key: str, others: list[str]) -> None:
    """Raise a UserError where no cell has several values of `key`, although there are several: what
    runs with another value have in common is not all the rest of their recipes, `others`.
    """
    names = ["dataset", "arch", "variant"]
    labelled = runs[[*names, key]].assign(rest=others)
    if (labelled.groupby([*names, "rest"])[key].nunique() > 1).any():
        return
    for _, cell in labelled.groupby(names):
        if cell[key].nunique() > 1:
            differ = distinguishing_keys([json.loads(text) for text in cell["rest"].unique()])
            told = ", ".join(sorted(differ)[:3])
            raise UserError(
                f"--select {key}: no choice, as runs with other values of it differ in {told}, "
                f"too; --compare {key}=VALUE compares them"
            )


def _tried(counts: pd.Series) -> str:
    """Return how many values were tried, with the complete seeds of each where these differ: a mean
    of fewer is higher by chance, and one of those that did not diverge is of a selection.
    """
    seeds = ", ".join(f"{value}: {count}" for value, count in counts.items())
    return f"{len(counts)}; complete seeds {seeds}" if counts.nunique() > 1 else f"{len(counts)}"
