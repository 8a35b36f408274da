"""Which runs share a row and a cell of the tables: the same recipe, but for what distinguishes the
variants themselves.

A recipe differs between variants in its head, and, as in the paper, in its learning rate (resnest's
is 0.01). Neither splits a row. A variant with several learning rates does: then each rate other
than the paper's gets its own row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from resnests.paper import arch_label, learning_rate, natural, variant_label
from resnests.results.frame import text

CELL = ["dataset", "arch", "row", "variant"]  # the columns that runs of one cell share
_FREE = ("variant.", "weights", "task", "optimizer.lr")
_OF_EVALUATION = (
    "dataset.",
    "arch.",
    "trainer.precision",
    "pipeline.",
)  # what matters where weights are given


def label_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with the columns `given` (weights were given, not trained) and `row`.

    `row` names what sets a recipe apart from the others of its data set: "" where there is only
    one, otherwise such as "optimizer.lr=0.05, trainer.epochs=10". Architectures keep their own
    rows, whatever the label.
    """
    runs = runs.assign(given=runs["weights"].notna())
    identity = ["dataset", "arch", "variant", "recipe", "given"]
    recipes = runs.drop_duplicates(identity).reset_index(drop=True)
    labels = pd.Series("", index=recipes.index)
    for _, group in recipes.groupby(["dataset", "given"], sort=False):
        labels[group.index] = _labels(group)
    return runs.merge(recipes[identity].assign(row=labels), on=identity)


def drop_copies(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Labelled `runs` with each seed, and each given file of weights, once in a cell; and a line
    per one left out.

    Of two runs with one seed (two trees that were read as one, say) a complete one is kept, and of
    those the later.
    """
    started = runs.get("provenance.started", pd.Series("", runs.index)).astype(str)
    best_first = pd.DataFrame({"complete": runs["status"] == "complete", "started": started})
    runs = runs.loc[
        best_first.sort_values(["complete", "started"], ascending=False, kind="stable").index
    ]
    lines = []
    for key, what in (("seed", "seed"), ("weights_sha256", "weights")):
        copies = runs.duplicated([*CELL, key]) & runs[key].notna()
        kept = runs[~copies].drop_duplicates([*CELL, key]).set_index([*CELL, key])["path"]
        for copy in runs[copies].to_dict("records"):
            other = kept[tuple(copy[name] for name in [*CELL, key])]
            lines.append(f"{copy['path']}: left out, the same {what} of the same cell as {other}")
        runs = runs[~copies]
    return runs.sort_index(), lines


def row_name(arch: str, row: str) -> str:
    """The name of a row as tables show it."""
    return f"{arch_label(arch)}, {row}" if row else arch_label(arch)


def in_row_order(rows: set[str]) -> list[str]:
    """Labels of rows, trained before given, by name with numbers read as numbers."""
    return sorted(rows, key=lambda row: (row.startswith("given weights"), natural(row)))


def common_recipe(runs: pd.DataFrame) -> str:
    """What all trained runs of a data set share: the values that are no defaults, and the
    learning rates.
    """
    trained = runs[~runs["given"]]
    if trained.empty:
        return ""
    recipes = [json.loads(values) for values in trained["recipe_values"].unique()]
    hidden = (
        "arch.",
        "variant.",
        "optimizer.lr",
        "dataset.source",
        "dataset.num_classes",
        "dataset.mean",
        "dataset.std",
    )
    shared = set.intersection(*({(k, text(v)) for k, v in recipe.items()} for recipe in recipes))
    parts = [f"{key}={value}" for key, value in sorted(shared) if not key.startswith(hidden)]
    rates = {
        row: _learning_rates(group)
        for row, group in trained.groupby("row")
        if "optimizer.lr=" not in row
    }
    if len(set(rates.values())) == 1:
        parts.append(next(iter(rates.values())))
        rates = {}
    common = ", ".join(filter(None, parts))
    return "; ".join([common, *(f"{row}: {rate}" for row, rate in rates.items())])


def _learning_rates(row: pd.DataFrame) -> str:
    """The learning rates of one row, such as "optimizer.lr=0.1 (0.01 for ResNEst)"."""
    if "optimizer.lr" not in row:
        return ""
    rates = row.groupby("variant")["optimizer.lr"].first()
    usual = rates.mode().iloc[-1]
    others = ", ".join(
        f"{rate} for {variant_label(variant)}" for variant, rate in rates.items() if rate != usual
    )
    return f"optimizer.lr={usual}" + (f" ({others})" if others else "")


def _labels(recipes: pd.DataFrame) -> list[str]:
    """The label of each recipe, of one data set and either all trained or all given."""
    values = [_row_values(recipe) for recipe in recipes.to_dict("records")]
    archs = list(recipes["arch"])
    keys = {  # widths differ between architectures by nature, so arch. is compared within each
        arch: _differing(values)
        | _differing([v for v, a in zip(values, archs, strict=True) if a == arch], "arch.")
        for arch in set(archs)
    }
    rates = _rates(recipes, values)
    labels = []
    for index, value in zip(recipes.index, values, strict=True):
        recipe = recipes.loc[index]
        parts = ["given weights"] if recipe["given"] else []
        for key in sorted(keys[recipe["arch"]]):
            default = recipe.get(
                key
            )  # the configuration holds defaults too, but not those of a later version
            parts.append(
                f"{key}={value[key] if key in value else 'default' if pd.isna(default) else default}"
            )
        labels.append(", ".join([*parts, *rates[index]]))
    return labels


def _row_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """What separates rows: the recipe's values without those in which variants differ by nature."""
    recorded = json.loads(recipe["recipe_values"])
    values = {key: text(value) for key, value in recorded.items() if not key.startswith(_FREE)}
    if recipe[
        "given"
    ]:  # how given weights were trained is not on record; two folders of them are two rows
        folder = (
            "weights" in recorded and Path(recorded["weights"]).name != Path(recipe["weights"]).name
        )
        values = {key: value for key, value in values.items() if key.startswith(_OF_EVALUATION)}
        values["weights"] = recorded["weights"] if folder else "single files"
    return values


def _differing(values: list[dict[str, Any]], prefix: str = "") -> set[str]:
    """Keys under `prefix` (any but arch. for "") that not all `values` agree in, without those that
    a name implies.

    optimizer.name=adamw says all about an optimizer.betas that all recipes with adamw share.
    """
    keys = {
        k
        for v in values
        for k in v
        if (k.startswith(prefix) if prefix else not k.startswith("arch."))
    }
    keys = {key for key in keys if len({value.get(key) for value in values}) > 1}
    for name in [key for key in keys if key.endswith(".name")]:
        for key in [key for key in keys if key.split(".")[0] == name.split(".")[0] and key != name]:
            if len({(value.get(name), value.get(key)) for value in values}) == len(
                {value.get(name) for value in values}
            ):
                keys.discard(key)
    return keys


def _rates(recipes: pd.DataFrame, values: list[dict[str, Any]]) -> dict[int, list[str]]:
    """What tells recipes apart by index where one variant of a row has several learning rates or
    heads.
    """
    parts: dict[int, list[str]] = {index: [] for index in recipes.index}
    if recipes["given"].any() or "optimizer.lr" not in recipes:
        return parts
    rows = [
        json.dumps({k: v for k, v in value.items() if not k.startswith("arch.")}, sort_keys=True)
        for value in values
    ]
    for _, group in recipes.groupby(pd.Series(rows, recipes.index), sort=False):
        for key in ("optimizer.lr", "variant.head"):
            if (group.groupby("variant")[key].nunique() > 1).any():
                for index, recipe in group.to_dict("index").items():
                    if not (key == "optimizer.lr" and _as_published(recipe)):
                        parts[index].append(f"{key}={recipe[key]}")
    return parts


def _as_published(recipe: dict[str, Any]) -> bool:
    return recipe["optimizer.name"] == "sgd" and recipe["optimizer.lr"] == learning_rate(
        recipe["variant"]
    )
