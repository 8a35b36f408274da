"""Decide which runs share a row and a cell of the tables, and in which order those stand.

A recipe differs between variants in its head, and, as in the paper, in its learning rate (resnest's
is 0.01). Neither splits a row. A variant with several learning rates does: then each rate other
than the paper's gets its own row.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from resnests.config.recipe import IMAGES, distinguishing_keys
from resnests.config.schedule import MOVED
from resnests.paper import ARCHS, VARIANTS, arch_label, learning_rate, variant_label
from resnests.results.columns import PLANNED
from resnests.text import as_typed, brief


class Cell(NamedTuple):
    """Names what runs share that are averaged over their seeds: columns of labelled runs."""

    dataset: str
    arch: str
    row: str  # "", or what tells the recipe from the others of its data set, see label_rows
    variant: str


CELL = list(Cell._fields)
ROW = ["dataset", "arch", "row"]

_FIRST = {"dataset": ("cifar10", "cifar100"), "arch": ARCHS, "row": (), "variant": VARIANTS}
_GIVEN = "given weights"
NO_DIGEST = "images not on record"
# What the variants of one row may differ in.
_OF_VARIANT = ("variant.", "weights", "task", "optimizer.lr")
# What matters to the numbers of given weights.
_OF_EVALUATION = ("dataset.", "arch.", "trainer.precision", "pipeline.")
# What no note on the common recipe needs to say: rows, columns and titles do.
_SAID = (
    "arch.", "variant.", "optimizer.lr",
    "dataset.source", "dataset.num_classes", "dataset.mean", "dataset.std", MOVED,
)  # fmt: skip


def label_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return `runs` with the columns `given` (weights were given, not trained) and `row`.

    `row` names what sets a recipe apart from the others of its data set: "" where there is only
    one, otherwise such as "optimizer.lr=0.05, trainer.epochs=10". Architectures keep their own
    rows, whatever the label.

    The columns of CELL become ordered categories: what groups or sorts by them has the order that
    tables and figures show.
    """
    runs = runs.assign(given=runs["weights"].notna())
    identity = ["dataset", "arch", "variant", "recipe", "given"]
    recipes = runs.drop_duplicates(identity).reset_index(drop=True)
    recipes["single"] = [_is_single(recipe) for recipe in recipes.to_dict("records")]
    same = recipes[recipes["single"]].duplicated(["dataset", "arch", "variant", "seed"], keep=False)
    recipes["several"] = same.reindex(recipes.index, fill_value=False)
    recipes["file"] = _files(recipes)
    labels = pd.Series("", index=recipes.index)
    for _, group in recipes.groupby(["dataset", "given"], sort=False):
        labels[group.index] = _labels(group)
    place = runs.groupby(identity, sort=False).ngroup()  # in the order of `recipes`
    runs = runs.assign(row=labels.take(place).to_numpy())
    return runs.assign(**{name: _ordered(runs[name], [*first]) for name, first in _FIRST.items()})


def names(column: pd.Series) -> list[str]:
    """Return the names that occur in a column of CELL, in their order."""
    return list(column.cat.remove_unused_categories().cat.categories)


def drop_copies(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return labelled `runs` with each seed, and each given file of weights, once in a cell; and a
    line per one left out.

    Of two runs with one seed (two trees that were read as one, say) a complete one is kept, and of
    those the later; one that has not begun goes before any.
    """
    started = runs.get("provenance.started", pd.Series("", runs.index)).astype(str)
    status = runs["status"]
    ranks = {"complete": status == "complete", "begun": status != PLANNED, "started": started}
    best_first = pd.DataFrame(ranks).sort_values([*ranks], ascending=False, kind="stable")
    left = runs.loc[best_first.index, [*CELL, "seed", "weights_sha256", "path", "status"]]
    lines = []
    for key, what in (("seed", "seed"), ("weights_sha256", "weights")):
        known = left[left[key].notna()]
        kept = known.groupby([*CELL, key], sort=False, observed=True)["path"].transform("first")
        copies = known.loc[known["path"] != kept, "path"]
        lines += [
            f"{path}: left out, the same {what} of the same cell as {kept[index]}"
            for index, path in copies.items()
            if left.at[index, "status"] != PLANNED
        ]
        left = left.drop(copies.index)
    return (runs.loc[left.index.sort_values()] if len(left) < len(runs) else runs), lines


def row_name(arch: str, row: str) -> str:
    """Return the name of a row as tables show it."""
    return f"{arch_label(arch)}, {row}" if row else arch_label(arch)


def common_recipe(runs: pd.DataFrame) -> str:
    """Return what all trained runs of a data set share: the values that are no defaults, and the
    learning rates.
    """
    trained = runs[~runs["given"]]
    if trained.empty:
        return ""
    recipes = [json.loads(values) for values in trained["recipe_values"].unique()]
    shared = set.intersection(*({(k, brief(v)) for k, v in recipe.items()} for recipe in recipes))
    parts = [f"{key}={value}" for key, value in sorted(shared) if not key.startswith(_SAID)]
    rates = {
        row: _learning_rates(group)
        for row, group in trained.groupby("row", observed=True)
        if "optimizer.lr=" not in row
    }
    if len(set(rates.values())) == 1:
        parts.append(next(iter(rates.values())))
        rates = {}
    common = ", ".join(filter(None, parts))
    return "; ".join([common, *(f"{row}: {rate}" for row, rate in rates.items())])


def _ordered(column: pd.Series, first: list[str]) -> pd.Series:
    """Return `column` as categories: `first`, then the others by name with numbers read as numbers,
    rows of given weights last.
    """

    def rank(name: str) -> tuple[bool, list[tuple[int, float, str]]]:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)  # text and numbers take turns
        numbers = [(0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)]
        return name.startswith(_GIVEN), numbers

    others = sorted(set(column.unique()) - set(first), key=rank)
    return column.astype(pd.CategoricalDtype([*first, *others], ordered=True))


def _learning_rates(row: pd.DataFrame) -> str:
    """Return the learning rates of one row, such as "optimizer.lr=0.1 (0.01 for ResNEst)"."""
    if "optimizer.lr" not in row:
        return ""
    rates = row.groupby("variant", observed=True)["optimizer.lr"].first().dropna()
    if rates.empty:  # an optimizer of one's own may have none, or one that is no number
        return ""
    usual = rates.mode().iloc[-1]
    others = ", ".join(
        f"{rate} for {variant_label(variant)}" for variant, rate in rates.items() if rate != usual
    )
    return f"optimizer.lr={usual}" + (f" ({others})" if others else "")


def _labels(recipes: pd.DataFrame) -> list[str]:
    """Return the label of each recipe, of one data set and either all trained or all given."""
    values = [_row_values(recipe) for recipe in recipes.to_dict("records")]
    networks = [{k: v for k, v in value.items() if k.startswith("arch.")} for value in values]
    others = [{k: v for k, v in value.items() if not k.startswith("arch.")} for value in values]
    between = distinguishing_keys(others)
    keys = {  # widths differ between architectures by nature, so arch. is compared within each
        arch: sorted(between | distinguishing_keys([networks[i] for i in places]))
        for arch, places in recipes.reset_index(drop=True).groupby("arch").groups.items()
    }
    rates = _rates(recipes, others)
    labels = []
    for (index, recipe), value in zip(recipes.iterrows(), values, strict=True):
        parts = [_GIVEN] if recipe["given"] else []
        for key in keys[recipe["arch"]]:
            # The configuration on record has defaults too, but not those of a later version.
            default = "default" if pd.isna(recipe.get(key)) else recipe[key]
            parts.append(describe(key, value.get(key, default)))
        labels.append(", ".join([*parts, *rates[index]]))
    return labels


def _row_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what separates rows: the recipe's values without those in which variants differ by
    nature.
    """
    recorded = json.loads(recipe["recipe_values"])
    values = {k: brief(value) for k, value in recorded.items() if not k.startswith(_OF_VARIANT)}
    if recipe["given"]:
        # How given weights were trained is not on record; two folders of them are two rows.
        values = {key: value for key, value in values.items() if key.startswith(_OF_EVALUATION)}
        file = recipe["file"] if recipe["several"] else "single files"
        values["weights"] = file if recipe["single"] else recorded["weights"]
    return values


def _files(recipes: pd.DataFrame) -> pd.Series:
    """Return the file of each recipe of given weights, with a digest where it had other weights in
    another recipe: it was replaced in between.
    """
    cells = recipes.groupby(["dataset", "arch", "variant", "weights"], dropna=False)
    replaced = cells["weights_sha256"].transform("nunique") > 1
    digests = " (" + recipes["weights_sha256"].astype("string").str[:8] + ")"
    return recipes["weights"].astype("string") + digests.where(replaced).fillna("")


def _is_single(recipe: dict[str, Any]) -> bool:
    """Return whether weights were given as a file, not in a folder that has one for each seed."""
    if not recipe["given"]:
        return False
    folder = json.loads(recipe["recipe_values"]).get("weights")
    return folder is None or Path(folder).name == Path(recipe["weights"]).name


def _rates(recipes: pd.DataFrame, values: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Return, by index, what tells recipes of one row and variant apart: learning rates, and heads
    with their source and arguments. Recipes whose `values` are the same stand in one row.
    """
    parts: dict[int, list[str]] = {index: [] for index in recipes.index}
    has_rates = not recipes["given"].any() and "optimizer.lr" in recipes
    rows = pd.Series([json.dumps(value, sort_keys=True) for value in values], recipes.index)
    for _, group in recipes.groupby(rows, sort=False):
        if has_rates and (group.groupby("variant")["optimizer.lr"].nunique() > 1).any():
            for index, recipe in group.to_dict("index").items():
                if not _as_published(recipe):
                    parts[index].append(f"optimizer.lr={recipe['optimizer.lr']}")
        for _, same in group.groupby("variant"):
            recorded = map(json.loads, same["recipe_values"])
            heads = [{k: v for k, v in r.items() if k.startswith("variant.")} for r in recorded]
            for key in sorted(distinguishing_keys(heads)):
                for index, head in zip(same.index, heads, strict=True):
                    parts[index].append(describe(key, as_typed(head.get(key, "default"))))
    return parts


def describe(key: str, value: Any) -> str:
    """Return what a label says of one value of a recipe, as typed or "default"."""
    if key == MOVED:
        earlier = value == "default"
        return "milestones of an earlier version" if earlier else f"milestones after epochs {value}"
    if key == IMAGES:
        return NO_DIGEST if value == "default" else f"images {value[:8]}"
    piece, _, name = key.rpartition(".")
    is_source = name == "code" and not piece.endswith(".args")  # as an argument named so is
    return f"source of {piece} changed ({value})" if is_source else f"{key}={value}"


def _as_published(recipe: dict[str, Any]) -> bool:
    rate = learning_rate(recipe["variant"])
    return recipe["optimizer.name"] == "sgd" and recipe["optimizer.lr"] == rate
