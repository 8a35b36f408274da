"""Note what a reader of a table must know besides its numbers: seeds that are not in them, runs
that were not made alike, given weights, and what so few seeds can show.
"""

from __future__ import annotations

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from resnests.paper import variant_label
from resnests.results.cells import CELL, NO_DIGEST, Cell, common_recipe, row_name
from resnests.results.columns import PLANNED
from resnests.results.measured import ACCURACY, Measured, definitions
from resnests.results.stats import LEVEL, POWER, t_quantile

# Statuses in the order in which a cell and the list below the table name them; complete runs need
# no word.
QUEUED = "queued"  # planned, and known to wait in a queue or for a device
UNFINISHED = (
    "running", "diverged", "failed", "killed", "interrupted", QUEUED, PLANNED, "missing",
)  # fmt: skip
Troubles = dict[str, dict[int, str]]  # status -> seed -> why, "" where nothing is on record


def troubles(runs: pd.DataFrame) -> dict[Cell, Troubles]:
    """Return per cell the seeds that its numbers lack.

    A seed is missing in a cell where it has no run, and another cell of the same data set and
    recipe has one. A variant without any run counts as never meant to be run.
    """
    expected = runs.groupby(["dataset", "row"], observed=True)["seed"].agg(set)
    found: dict[Cell, Troubles] = {}
    for key, present in _by_cell(runs)["seed"].agg(set).items():
        cell = Cell(*key)
        missing = sorted(expected[cell.dataset, cell.row] - present)
        if missing:
            found[cell] = {"missing": dict.fromkeys(missing, "")}
    unfinished = runs.loc[runs["status"] != "complete", [*CELL, "seed", "status", "error"]]
    for run in unfinished.sort_values("seed").to_dict("records"):
        cell = Cell(*(run[name] for name in CELL))
        why = "" if pd.isna(run["error"]) else str(run["error"]).strip().splitlines()[-1:]
        found.setdefault(cell, {}).setdefault(run["status"], {})[run["seed"]] = "".join(why)
    return found


def marker(trouble: Troubles) -> str:
    """Return what a cell shows of its troubles, such as " [1 failed, 2 missing]"."""
    parts = [f"{len(trouble[status])} {status}" for status in UNFINISHED if status in trouble]
    return f" [{', '.join(parts)}]" if parts else ""


def mixed(runs: pd.DataFrame, what: Measured = ACCURACY) -> dict[Cell, list[str]]:
    """Return the cells whose complete runs were not made alike, with what differs and in which
    seeds: code, type of device, how the metric is defined, and how often was evaluated, where that
    chose something.
    """
    complete = runs[runs["status"] == "complete"]
    conditions = {"code": _code(complete), "devices": _device_type(complete)}
    if what.epoch == "best":
        conditions["evaluations, of which more give a higher best by chance"] = [
            f"every {n} epochs" if n != 1 else "every epoch" for n in complete["trainer.eval_every"]
        ]
    if what.column in complete:
        ways = definitions(complete, what.name).where(complete[what.column].notna())
        conditions[f"definitions of {what.name}"] = ways
    found: dict[Cell, list[str]] = {}
    for subject, condition in conditions.items():
        labelled = complete.assign(condition=condition)
        differing = labelled[_by_cell(labelled)["condition"].transform("nunique") > 1]
        for key, cell in _by_cell(differing):
            seeds = cell.groupby("condition", sort=False)["seed"]
            parts = [f"{value} ({seed_list(some)})" for value, some in seeds]
            found.setdefault(Cell(*key), []).append(f"mixes {subject}: {'; '.join(parts)}")
    return found


def lines(
    runs: pd.DataFrame, troubles: dict[Cell, Troubles], mixed: dict[Cell, list[str]]
) -> list[str]:
    """Return the notes below the accuracy table of one data set."""
    notes = []
    recipe = common_recipe(runs)
    if recipe:
        notes.append(f"Recipe: {recipe}.")
    if runs["given"].any():
        notes.append("† evaluated from given weights; how they were trained is not on record here.")
    if runs["row"].astype(str).str.contains(NO_DIGEST).any():
        notes.append(
            f"{NO_DIGEST.capitalize()}: runs of an earlier version, which may have had others than "
            "the runs beside them."
        )
    notes += [f"‡ {cell_name(cell)} {line}." for cell, facts in mixed.items() for line in facts]
    notes += _unfinished(troubles)
    if any("diverged" in trouble for trouble in troubles.values()):
        notes.append("Diverged runs are counted, never averaged.")
    return notes


def _unfinished(troubles: dict[Cell, Troubles]) -> list[str]:
    """Return a note for each row, status and reason, with the seeds and the cells it is of."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for cell, trouble in troubles.items():
        name = cell_name(cell._replace(row=""))
        for status in UNFINISHED:
            by_reason: dict[str, list[int]] = {}
            for seed, why in trouble.get(status, {}).items():
                by_reason.setdefault(why, []).append(seed)
            for why, seeds in by_reason.items():
                alike.setdefault((cell.row, status, seed_list(seeds), why), []).append(name)
    notes = []
    for (row, status, some, why), cells in sorted(alike.items()):
        what = f"{status.capitalize()}, {row}" if row else status.capitalize()
        reason = f" ({why})" if why else ""
        notes.append(f"{what}: {some} of {', '.join(cells)}{reason}.")
    return notes


def intervals(cells: pd.DataFrame) -> list[str]:
    """Return notes on what the intervals of `cells` cannot show, as there are few seeds."""
    notes = []
    if (cells["n"] == 2).any():
        notes.append(
            f"An interval from 2 seeds says little: it reaches {t_quantile(2):.1f} standard errors "
            f"to either side, one from 7 seeds {t_quantile(7):.1f}."
        )
    if (cells["low"].isna() & (cells["n"] > 1)).any():
        notes.append("Where all seeds are equal, nothing tells their spread: no interval.")
    return notes


def deviations(cells: pd.DataFrame) -> list[str]:
    """Return a note on the `cells` of against_paper that are no reproduction, for each reason."""
    differing = cells[cells["deviations"] != ""]
    return [
        f"No reproduction: {what} ({', '.join(cell_name(Cell(*cell)) for cell in keys)})."
        for what, some in differing.groupby("deviations", sort=False)
        for keys in [some[CELL].assign(row="").itertuples(index=False)]
    ]


def power(differences: pd.DataFrame, what: Measured = ACCURACY) -> list[str]:
    """Return notes on what the numbers of pairs in `differences` can show at all."""
    points = "points" if what.unit == "%" else "in its own unit"
    notes = []
    for n, group in differences.groupby("n"):
        if n < 2:
            notes.append(
                "1 pair shows a difference of two runs, not whether another seed would: "
                "no interval, no p."
            )
            continue
        if group["p"].isna().any():
            notes.append(
                f"Where all differences of {n} pairs are equal, nothing tells their spread: "
                "no interval, no p."
            )
        if group["p"].notna().any():
            notes.append(
                f"{n} pairs show a true difference of "
                f"{group['detectable'].median():.{what.digits}f} {points} "
                f"(median over the rows) with {POWER:.0%} probability, at p < {1 - LEVEL:.2g} "
                "before correction and if differences are normally distributed; without that "
                f"assumption no test of {n} pairs can give a p below {2.0 ** (1 - n):.2g} "
                "(sign flips)."
            )
    if differences.empty:
        notes.append(
            "No row has complete runs of Standard and of another variant with the same seed."
        )
    return notes


def of_epoch(epoch: str) -> str:
    """Return words for the epoch that numbers are of: "last", or "best" by validation accuracy."""
    best = "of the epoch with the best validation accuracy"
    return best if epoch == "best" else "after the last epoch"


def seeds(n: pd.Series) -> str:
    """Return how many seeds are behind the means of cells, such as "3 seeds" or "2 to 3 seeds"."""
    low, high = n.min(), n.max()
    if low != high:
        return f"{low} to {high} seeds"
    return "one seed" if high == 1 else f"{high} seeds"


def cell_name(cell: Cell) -> str:
    """Return how notes name a cell, such as "ResNet-20 A-ResNEst, trainer.epochs=10"."""
    name = f"{row_name(cell.arch, '')} {variant_label(cell.variant)}"
    return f"{name}, {cell.row}" if cell.row else name


def seed_list(seeds: pd.Series | list[int]) -> str:
    """Return the words for seeds, such as "seed 3", "seeds 0-2, 5"."""
    ordered = sorted({int(seed) for seed in seeds})
    spans: list[list[int]] = []
    for seed in ordered:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    parts = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in spans]
    return ("seed " if len(ordered) == 1 else "seeds ") + ", ".join(parts)


def _by_cell(runs: pd.DataFrame) -> DataFrameGroupBy:
    return runs.groupby(CELL, sort=False, observed=True)


def _code(runs: pd.DataFrame) -> list[str]:
    """Return the code of each run: its commit, and the version of torch."""
    columns = ("provenance.git_commit", "provenance.git_dirty", "provenance.versions.torch")
    known = runs.reindex(columns=list(columns)).astype(object)
    return [
        f"git {str(commit)[:7]}{' with uncommitted changes' if dirty == 'true' else ''}, "
        f"torch {torch}"
        for commit, dirty, torch in known.where(known.notna(), "unknown").itertuples(index=False)
    ]


def _device_type(runs: pd.DataFrame) -> pd.Series:
    """Return the type of each run's device: cpu, cuda or mps."""
    device = runs.reindex(columns=["provenance.device"])["provenance.device"]
    return device.astype("string").str.split(":").str[0]
