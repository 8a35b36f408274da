"""Choose runs by words as Hydra's users type them: for tables, figures and commands."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from resnests.errors import UserError
from resnests.results.columns import is_setting
from resnests.text import as_typed, brief


def select(runs: pd.DataFrame, words: Sequence[str], statuses: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows of `runs` that fit every one of `words`; raise a UserError where none does.
    Where `statuses` name those that a run can have, one is raised only for a word that can fit
    none: that no run has failed is an answer.

    A word is key=value. The key is a column of load_runs, or a group that has names, as in
    optimizer=adamw; the value is written as on the command line of run.py: several with commas, and
    * ? [ab] for what may stand there, as in arch=resnet*.
    """
    every = runs
    for word in words:
        typed, equals, value = word.partition("=")
        if not equals or not value:
            raise UserError(f"{word}: expected key=value, such as arch=resnet20 or status=failed")
        key = column_of(runs, typed, word)
        patterns = split_values(value)
        values = values_of(every, key)
        fits = {known: _fits(known, patterns) for known in values.unique()}
        left = runs[values[runs.index].map(fits).astype(bool)]
        can_fit = any(fits.values()) or (
            key == "status" and any(_fits(name, patterns) for name in statuses)
        )
        if left.empty and not (statuses and can_fit):
            some = list((values if runs.empty else values[runs.index]).unique()[:8])
            known = ", ".join(sorted(str(_text(known)) for known in some))
            raise UserError(f"{word}: no run has it; expected one of {known}")
        runs = left
    return runs.reset_index(drop=True) if words else runs


def column_of(runs: pd.DataFrame, key: str, asked: str) -> str:
    """Return the column that a typed key means: arch for arch.name, too, and optimizer.name for
    optimizer. Raise a UserError that begins with what was `asked` where the runs have none.
    """
    for name in (key, f"{key}.name", key.removesuffix(".name")):
        if name in runs:
            return name
    near = difflib.get_close_matches(key, runs.columns, 1)
    meant = f"; did you mean {near[0]}?" if near else ", such as arch or optimizer.lr"
    raise UserError(f"{asked}: expected a key that the runs have{meant}")


def values_of(runs: pd.DataFrame, key: str) -> pd.Series:
    """Return what each run has of a column, a mapping as labels have it.

    The frame has the keys of a mapping as columns, and none of its own. A run of before there was a
    setting has what runs have whose recipes do not name it, the default; null where none tells.
    """
    values = runs[key]
    if not is_setting(key) or not values.isna().any():
        return values
    recipes = [json.loads(text) for text in runs["recipe_values"]]
    if not any(key in recipe for recipe in recipes):
        return values.astype(object).where(values.notna(), "null")
    pairs = list(zip(values, recipes, strict=True))
    default = next((v for v, recipe in pairs if key not in recipe and not pd.isna(v)), "null")
    told = [(brief(r[key]) if key in r else default) if pd.isna(v) else v for v, r in pairs]
    return pd.Series(told, runs.index, dtype=object)


def split_values(text: str) -> list[str]:
    """Return the values between the commas of `text`, but for those within brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value for value in (values if depth == 0 else text.split(",")) if value]


def _fits(value: Any, patterns: Sequence[str]) -> bool:
    """Return whether a value of a run is one of `patterns`: as a number, as typed, or as a glob."""
    text = str(_text(value))
    for pattern in patterns:
        if text == pattern or fnmatchcase(text, pattern):
            return True
        if isinstance(value, str):  # the digests 1234e567 and 9876e543 are no infinities
            continue
        try:
            if float(text) == float(pattern):
                return True
        except ValueError:
            pass
    return False


def _text(value: Any) -> Any:
    """Return a value of a frame as one types it; what a run does not have is null."""
    return "null" if pd.isna(value) else as_typed(value)
