"""What a reader of a table must know besides its numbers: seeds that are not in them, mixed
code, given weights.
"""

from __future__ import annotations

import pandas as pd

from resnests.paper import variant_label
from resnests.results.cells import CELL, common_recipe, row_name

# Statuses in the order in which a cell and the list below the table name them; complete runs need
# no word.
UNFINISHED = ("running", "diverged", "failed", "killed", "interrupted", "missing")
_CODE = {
    "provenance.git_commit": "git",
    "provenance.git_dirty": "",
    "provenance.versions.torch": "torch",
}
Troubles = dict[str, dict[int, str]]  # status -> seed -> why, "" where nothing is on record


def troubles(runs: pd.DataFrame) -> dict[tuple[str, ...], Troubles]:
    """Per cell the seeds that its numbers lack.

    A seed is missing in a cell where it has no run, and another cell of the same data set and
    recipe has one. A variant without any run counts as never meant to be run.
    """
    expected = runs.groupby(["dataset", "row"], sort=False)["seed"].agg(set)
    found: dict[tuple[str, ...], Troubles] = {}
    seeds = runs.groupby(CELL, sort=False)["seed"].agg(set)
    for key, present in seeds.items():
        missing = sorted(expected[key[0], key[2]] - present)
        if missing:
            found[key] = {"missing": dict.fromkeys(missing, "")}
    for run in runs[runs["status"] != "complete"].sort_values("seed").to_dict("records"):
        key = tuple(run[name] for name in CELL)
        why = "" if pd.isna(run["error"]) else str(run["error"]).strip().splitlines()[-1:]
        found.setdefault(key, {}).setdefault(run["status"], {})[run["seed"]] = "".join(why)
    return found


def marker(trouble: Troubles) -> str:
    """What a cell shows of its troubles, such as " [1 failed, 2 missing]"."""
    parts = [f"{len(trouble[status])} {status}" for status in UNFINISHED if status in trouble]
    return f" [{', '.join(parts)}]" if parts else ""


def mixed_code(runs: pd.DataFrame) -> dict[tuple[str, ...], str]:
    """Cells whose complete runs were made by different code, with the versions and their seeds."""
    columns = [name for name in _CODE if name in runs]
    complete = runs[runs["status"] == "complete"]
    if not columns or complete.empty:
        return {}
    version = complete[columns].astype(str).agg("\n".join, axis=1)
    mixed = version.groupby([complete[name] for name in CELL], sort=False).nunique() > 1
    found = {}
    for key in mixed[mixed].index:
        mine = (complete[CELL] == list(key)).all(axis=1)
        by_version = complete[mine].groupby(version[mine], sort=False)
        found[key] = "; ".join(
            f"{_version(group.iloc[0])} ({seed_list(group['seed'])})" for _, group in by_version
        )
    return found


def lines(
    runs: pd.DataFrame, troubles: dict[tuple[str, ...], Troubles], mixed: dict[tuple[str, ...], str]
) -> list[str]:
    """The notes below the accuracy table of one data set."""
    notes = []
    recipe = common_recipe(runs)
    if recipe:
        notes.append(f"Recipe: {recipe}.")
    if runs["given"].any():
        notes.append("† evaluated from given weights; how they were trained is not on record here.")
    notes += [f"‡ {cell_name(key)} mixes code: {versions}." for key, versions in mixed.items()]
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for key, trouble in troubles.items():
        for status in UNFINISHED:
            by_reason: dict[str, list[int]] = {}
            for seed, why in trouble.get(status, {}).items():
                by_reason.setdefault(why, []).append(seed)
            for why, seeds in by_reason.items():
                alike.setdefault((key[2], status, seed_list(seeds), why), []).append(
                    cell_name((*key[:2], "", key[3]))
                )
    for (row, status, seeds, why), cells in sorted(alike.items()):
        reason = f" ({why})" if why else ""
        notes.append(
            f"{status.capitalize()}{f', {row}' if row else ''}: {seeds} of {', '.join(cells)}{reason}."
        )
    if any("diverged" in trouble for trouble in troubles.values()):
        notes.append("Diverged runs are counted, never averaged.")
    return notes


def power(differences: pd.DataFrame) -> list[str]:
    """What the numbers of pairs in `differences` can show at all, per number of pairs."""
    notes = []
    for n, group in differences.groupby("n"):
        if n < 2:
            notes.append(
                "1 pair shows a difference of two runs, not whether another seed would: no interval, no p."
            )
            continue
        half = ((group["high"] - group["low"]) / 2).median()
        notes.append(
            f"{n} pairs resolve differences from about {half:.2f} points up (median half-width of the intervals), if "
            f"differences are normally distributed; without that assumption no test of {n} pairs can give a p below "
            f"{2.0 ** (1 - n):.2g} (sign flips)."
        )
    if differences.empty:
        notes.append(
            "No row has complete runs of Standard and of another variant with the same seed."
        )
    return notes


def cell_name(key: tuple[str, ...]) -> str:
    """How notes name a cell, such as "ResNet-20 A-ResNEst, trainer.epochs=10"."""
    _, arch, row, variant = key
    return f"{row_name(arch, '')} {variant_label(variant)}" + (f", {row}" if row else "")


def seed_list(seeds: pd.Series | list[int]) -> str:
    """ "seed 3", "seeds 0-2, 5"."""
    ordered = sorted({int(seed) for seed in seeds})
    spans: list[list[int]] = []
    for seed in ordered:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    parts = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in spans]
    return ("seed " if len(ordered) == 1 else "seeds ") + ", ".join(parts)


def _version(run: pd.Series) -> str:
    commit = str(run.get("provenance.git_commit") or "unknown")[:7]
    dirty = " with uncommitted changes" if run.get("provenance.git_dirty") == "true" else ""
    return f"git {commit}{dirty}, torch {run.get('provenance.versions.torch', 'unknown')}"
