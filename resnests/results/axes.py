"""Compare one value of an axis with every other, between runs that are the same in all else."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from resnests.config.recipe import distinguishing_keys
from resnests.config.schedule import MOVED
from resnests.errors import UserError
from resnests.results import notes
from resnests.results.cells import CELL, Cell, describe
from resnests.results.columns import is_setting
from resnests.results.measured import Measured
from resnests.results.select import column_of, values_of
from resnests.results.stats import paired_differences
from resnests.text import as_typed, brief

# What a value of a key brings along, beside the keys of its group: presets of augment= have draws.
_BRINGS = {
    "pipeline.augment": ("pipeline.draws", "pipeline.code"),
    "pipeline.mix": ("pipeline.code",),
    "trainer.epochs": (MOVED,),
    "optimizer.milestones": (MOVED,),
    "trainer.patience": ("trainer.eval_every",),
}
_NAMES = ("dataset", "arch", "variant")
_AXES = (*_NAMES, "weights")  # beside all settings


def against_value(
    runs: pd.DataFrame, key: str, value: str, what: Measured
) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs of each other value of `key` less those that have `value` and are the same in
    all else, as paired_differences has it, by CELL and `value`; and a note on cells without a pair.
    Raise a UserError where no run has the value, or several with one seed could be the other of a
    pair: a run that counts several times makes p and interval too small.

    An axis brings keys along: arch=resnet20 its arch.blocks, optimizer=sgd its optimizer.momentum.
    """
    column = _column(runs, key, value)
    complete = runs[(runs["status"] == "complete") & runs[what.column].notna()]
    recipes = [json.loads(text) for text in complete["recipe_values"]]
    typed = [str(as_typed(one)) for one in values_of(complete, column)]
    values = [
        str(brief(recipe[column])) if column in recipe else text
        for recipe, text in zip(recipes, typed, strict=True)
    ]
    is_baseline = pd.Series([value in both for both in zip(values, typed, strict=True)], dtype=bool)
    if not is_baseline.any():
        known = ", ".join(sorted(set(values))[:8])
        raise UserError(f"--compare {key}={value}: no complete run has it; expected one of {known}")
    own = (column, *_BRINGS.get(column, ()))
    group = f"{column.removesuffix('.name')}."
    rest = [
        json.dumps({k: v for k, v in recipe.items() if k not in own and not k.startswith(group)})
        for recipe in recipes
    ]
    same = [name for name in _NAMES if name != column]
    kept = complete[[*CELL, "seed", "path", "recipe_values", what.column]]
    kept = kept.assign(rest=rest, value=values).reset_index(drop=True)
    others, baseline = kept[~is_baseline], kept[is_baseline]
    pairs = others.merge(baseline, on=[*same, "rest", "seed"], suffixes=("", "_baseline"))
    _require_one(pairs, f"--compare {key}={value}")
    lone = _unpaired(others, baseline, pairs, same, "" if column in _NAMES else column)
    return paired_differences(pairs, [*CELL, "value"], what), lone


def _column(runs: pd.DataFrame, key: str, value: str) -> str:
    """Return the column of an axis; raise a UserError where `key` names none."""
    asked = f"--compare {key}={value}"
    if key == "augment":
        expected = "runs keep what it stands for; expected pipeline.augment=... or pipeline.mix=..."
        recipes = [json.loads(text) for text in runs["recipe_values"].unique()]
        told = []
        for name in ("pipeline.augment", "pipeline.mix"):
            known = {str(brief(recipe[name])) for recipe in recipes if name in recipe}
            told += [f"'{name}={one}'" for one in sorted(known)[:4]]
        expected += f", such as {', '.join(told)}" if told else ""
        raise UserError(f"{asked}: {expected}")
    column = column_of(runs, key, asked)
    if not is_setting(column) and column not in _AXES:
        expected = "expected what runs are asked for, such as arch or optimizer.lr"
        raise UserError(f"{asked}: {expected}; runs of the same seed are pairs")
    return column


def _require_one(pairs: pd.DataFrame, what: str) -> None:
    """Raise a UserError where a run is in several pairs."""
    twice = pairs[pairs["path"].duplicated(keep=False)]
    if twice.empty:
        return
    some = twice[twice["path"] == twice["path"].iloc[0]]
    keys = distinguishing_keys([json.loads(text) for text in some["recipe_values_baseline"]])
    differ = ", ".join(sorted(keys)) or f"directory, as {' and '.join(some['path_baseline'][:2])}"
    raise UserError(
        f"{what}: {len(some)} runs with it fit {some['path'].iloc[0]}, and differ in {differ}; "
        "expected one. Choose by words, such as optimizer.lr=0.1, or by --select"
    )


def _unpaired(
    others: pd.DataFrame, baseline: pd.DataFrame, pairs: pd.DataFrame, same: list[str], column: str
) -> list[str]:
    """Return a line that names the cells without a pair, with what else differs; [] without any.

    Values of `column` are named, too, where it is no part of a cell's name.
    """
    why: dict[str, list[str]] = {}
    paired = set(pairs["path"])
    for key, mine in others.groupby([*CELL, "value"], observed=True):
        if not paired & {*mine["path"]}:
            near = mine.merge(baseline, on=same, suffixes=("", "_baseline"))
            reason = _reason(near) if len(near) else f"no run with it of this {' and '.join(same)}"
            name = notes.cell_name(Cell(*key[:-1]))
            value = f"{column}={key[-1]}"
            is_said = not column or value in name
            why.setdefault(reason, []).append(name if is_said else f"{name} with {value}")
    told = [
        f"{', '.join(cells[:3])}{f' and {len(cells) - 3} more' * (len(cells) > 3)} ({reason})"
        for reason, cells in why.items()
    ]
    return [f"Without a pair: {'; '.join(told)}."] if told else []


def _reason(near: pd.DataFrame) -> str:
    """Return why none of the candidates is a pair: in what the nearest differs."""
    found = []
    for mine, other in near[["rest", "rest_baseline"]].drop_duplicates().itertuples(index=False):
        a, b = json.loads(mine), json.loads(other)
        found.append({k: (a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)})
    differing = min(found, key=len)
    parts = [f"{_told(key, a)} against {_told(key, b)}" for key, (a, b) in differing.items()]
    return ", ".join([*parts[:3], *["..."] * (len(parts) > 3)]) or "other seeds"


def _told(key: str, value: Any) -> str:
    text = describe(key, "default" if value is None else brief(value))
    return "the default" if text == f"{key}=default" else text
