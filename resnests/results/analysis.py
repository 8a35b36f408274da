"""Tables of what task=analyze measured: least risks of linear maps of features, and their gaps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from resnests.paper import dataset_label, variant_label
from resnests.results.cells import CELL, Cell, names, row_name
from resnests.results.notes import cell_name, seed_list
from resnests.results.stats import standard_error, t_quantile
from resnests.results.tables import NONE, Table
from resnests.runs.directory import RunDirectory

_DEFINITIONS = (
    "(a) the trained network; (b) the least over its last two maps W_L and W_{L+1}, its features "
    "fixed; (c) the bound: the least over all linear maps of its exact features; ε = (b) - (c); "
    "slack = (a) - (b); (e) the best linear predictor from its input."
)
_KINDS = (
    "By construction: (c) <= (b) <= (a), and ε = 0 for A-ResNEst and DenseNEst, whose last maps "
    "are free. A theorem: (c) bounds every network with these features. Measured: all sizes."
)


@dataclass
class Analyses:
    """What the analysed complete runs have: `solves` has a row per solve, `runs` one per run.

    Both have CELL, setting, seed, path and the values that the run was analysed with; `solves` the
    fields of Solve, `runs` status, optimizer.lr, arch.widths, blocks and Analysis.summary.
    """

    solves: pd.DataFrame
    runs: pd.DataFrame

    @property
    def empty(self) -> bool:
        return self.runs.empty


def read_analyses(runs: pd.DataFrame) -> Analyses:
    """Read the analyses of labelled `runs`.

    Numbers of different analysis.l2 or analysis.tolerance are never averaged: where a data set has
    several, `setting` names those of a run, and `row` ends with it.
    """
    solves: list[dict[str, Any]] = []
    analysed: list[dict[str, Any]] = []
    for run in runs[runs["status"] == "complete"].to_dict("records"):
        analysis = RunDirectory(run["path"]).analysis.read_analysis()
        if analysis is None:
            continue
        shared = dataclasses.asdict(analysis)
        own = shared.pop("solves")
        named = {name: run.get(name) for name in (*CELL, "seed", "path", "arch.widths")} | shared
        solves += [named | {"position": i} | solve for i, solve in enumerate(own)]
        blocks = len({solve["group"] for solve in own if "." in solve["group"]})
        more = {"status": run.get("analysis.status"), "optimizer.lr": run.get("optimizer.lr")}
        analysed.append(named | more | {"blocks": blocks} | analysis.summary())
    return Analyses(_by_setting(solves, runs), _by_setting(analysed, runs))


def _by_setting(rows: list[dict[str, Any]], runs: pd.DataFrame) -> pd.DataFrame:
    """Make a frame of `rows` with the column `setting`, and CELL ordered as in `runs`."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["setting"] = ""
    for key in ("l2", "tolerance"):
        several = frame.groupby("dataset")[key].transform("nunique") > 1
        words = ", analysis." + key + "=" + frame[key].astype(str)
        frame["setting"] += words.where(several, "")
    frame["row"] = (frame["row"] + frame["setting"]).str.removeprefix(", ")
    frame["setting"] = frame["setting"].str.removeprefix(", ")
    for name in CELL:
        known = list(runs[name].cat.categories)
        more = sorted(set(frame[name]) - set(known))
        frame[name] = pd.Categorical(frame[name], [*known, *more], ordered=True)
    return frame


def analysis_tables(analyses: Analyses) -> list[Table]:
    """Per data set: training risk with penalty and its gaps, the test set, and squared error."""
    tables = []
    for dataset, mine in analyses.runs.groupby("dataset", observed=True):
        (l2,) = mine["l2"].unique() if mine["l2"].nunique() == 1 else ("l2",)
        penalised = f"mean cross-entropy + {l2}/2 |map|² over standardised features, bias included"
        tables += [
            _table(
                mine,
                f"analysis_{dataset}",
                f"{dataset_label(str(dataset))}: least risks on the training images",
                f"Training images without augmentation: {penalised}, in nats. {_DEFINITIONS}",
                {
                    "(a) loss alone": "trained.train_loss", "(a) trained": "trained",
                    "(b) best last maps": "last_maps", "(c) bound": "bound", "ε": "eps",
                    "slack": "slack", "(e) linear": "linear",
                },
            ),
            _table(
                mine,
                f"analysis_test_{dataset}",
                f"{dataset_label(str(dataset))}: the same maps on the test set",
                "Test cross-entropy in nats and accuracy in % of the network and of the maps that "
                "were fitted to the training images; what is least there need not be here.",
                {
                    "(a) loss": "trained.test_loss", "(b) loss": "last_maps.test_loss",
                    "(c) loss": "bound.test_loss", "(a) %": "trained.test_accuracy",
                    "(b) %": "last_maps.test_accuracy", "(c) %": "bound.test_accuracy",
                },
            ),
            _table(
                mine,
                f"analysis_squared_{dataset}",
                f"{dataset_label(str(dataset))}: squared error",
                "Least mean squared error of one-hot labels (summed over classes) on the training "
                "images, without penalty and exact up to rounding: (b), (c) and ε as before. The "
                "networks were trained for another loss, so (a) has no place here.",
                {
                    "(b) best last maps": "squared_last_maps", "(c) bound": "squared_bound",
                    "ε": "squared_eps",
                },
            ),
        ]  # fmt: skip
    return tables


def _table(
    runs: pd.DataFrame, key: str, title: str, caption: str, columns: dict[str, str]
) -> Table:
    rows = []
    for name, cell in runs.groupby(CELL, observed=True):
        shown = [interval(cell[c], percent=c.endswith("accuracy")) for c in columns.values()]
        where = Cell(*name)
        label = [row_name(where.arch, where.row), variant_label(where.variant)]
        rows.append([*label, f"{len(cell)}", *shown])
    error = runs["eps_error"].max()
    notes = ["Mean over seeds, and its 95% interval (Student's t) where there are several.", _KINDS]
    notes += _unfinished(runs)
    if not key.startswith("analysis_squared") and error > 0:
        notes.append(f"Certificates leave each ε open by at most {error:.1g} to either side.")
    notes += _learning_rates(runs)
    if runs["coupled"].isna().any():
        notes.append(f"{NONE} for Standard: its relu before the pooling leaves no exact features.")
    return Table(key, title, caption, ["Architecture", "Variant", "n", *columns], rows, notes)


def _learning_rates(runs: pd.DataFrame) -> list[str]:
    """Name the learning rates of the variants of one row where they differ."""
    notes = []
    for row, some in runs.groupby("row", observed=True):
        rates = some.groupby("optimizer.lr")["variant"].agg(names)
        if len(rates) > 1:
            words = [f"{rate:g} ({', '.join(map(variant_label, v))})" for rate, v in rates.items()]
            what = f"Learning rates{f' of {row}' if row else ''}: {', '.join(words)}"
            notes.append(f"{what}; differences between those variants are of both.")
    return notes


def _unfinished(runs: pd.DataFrame) -> list[str]:
    """Name the analyses that are not complete, which have no bound yet."""
    left = runs[runs["status"] != "complete"]
    return [
        f"Not analysed to the end ({why}): {seed_list(some['seed'])} of {cell_name(Cell(*name))}."
        for (*name, why), some in left.groupby([*CELL, "status"], observed=True)
    ]


def interval(values: pd.Series, percent: bool = False) -> str:
    """Return the mean and the interval of it, such as "0.2345 [0.2301 to 0.2389]"; with n where
    not all `values` are known.
    """
    known = values.dropna().astype(float)
    if known.empty:
        return NONE
    digits = 2 if percent else 4
    cell = pd.DataFrame({"n": [len(known)], "mean": [known.mean()], "std": [known.std()]})

    def shown(number: float) -> str:
        return f"{round(number, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero

    text = shown(known.mean())
    text += f" (n={len(known)})" if len(known) < len(values) else ""
    half = float((t_quantile(cell["n"]) * standard_error(cell)).iloc[0])
    if len(known) < 2 or pd.isna(half):
        return text
    low, high = known.mean() - half, known.mean() + half
    if percent:
        low, high = max(low, 0.0), min(high, 100.0)
    return f"{text} [{shown(low)} to {shown(high)}]"
