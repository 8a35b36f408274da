"""Turn analysis.json into frames: a row per solve, per run, per kept epoch and per penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from resnests.results.cells import CELL
from resnests.results.stats import standard_error, t_quantile
from resnests.results.tables import NONE
from resnests.runs.analysis import CROWDED, Analysis, get, less
from resnests.runs.directory import RunDirectory

INTERVALS = (
    "Mean over seeds, and where there are several its 95% interval (Student's t), cut at 0 and "
    "100% where no value can be beyond."
)
_SIGNED = ("eps.train_loss", "eps.test_loss")  # columns whose values can be below 0
_OWN = ("seed", "path", "arch.widths", "arch.blocks")
_LISTS = ("solves", "points", "descents", "l2_path", "over_l2", "kept")


@dataclass
class Analyses:
    """Holds what was measured of analysed runs: `solves` has a row per solve, `runs` one per run.

    All have CELL, setting, seed, path and the values that the run was analysed with; `solves` the
    fields of Solve, `runs` status, optimizer.lr, arch.widths, blocks, eigenvalues (a list, of the
    Hessian at the trained point) and Analysis.summary; `epochs` has Analysis.summary of kept
    weights and of the last ones, `penalties` a row per l2.
    """

    solves: pd.DataFrame
    runs: pd.DataFrame
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    penalties: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def empty(self) -> bool:
        return self.runs.empty


def read_analyses(runs: pd.DataFrame) -> Analyses:
    """Read the analyses of labelled `runs`.

    Numbers of different analysis.l2 or analysis.tolerance, or of an earlier method, are never
    averaged: where a data set has several, `setting` names those of a run, and `row` ends with it.
    """
    solves: list[dict[str, Any]] = []
    analysed: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    penalties: list[dict[str, Any]] = []
    for run in runs[runs["status"] == "complete"].to_dict("records"):
        analysis = RunDirectory(run["path"]).analysis.read_analysis()
        if analysis is None:
            continue
        shared = {k: v for k, v in dataclasses.asdict(analysis).items() if k not in _LISTS}
        own = [dataclasses.asdict(solve) for solve in analysis.solves]
        named = {name: run.get(name) for name in (*CELL, *_OWN)} | shared
        # l2 of a solve is of other penalties alone, and would hide that of the analysis
        solves += [named | {"position": i} | solve | {"l2": analysis.l2}
                   for i, solve in enumerate(own)]  # fmt: skip
        blocks = _blocks(analysis)
        more = {"status": run.get("analysis.status"), "optimizer.lr": run.get("optimizer.lr")}
        spectrum: dict[str, Any] = {
            "eigenvalues": next((p.eigenvalues for p in analysis.points), [])
        }
        analysed.append(named | more | {"blocks": blocks} | spectrum | analysis.summary())
        epochs += [named | row for row in _epochs(analysis, run)]
        penalties += [named | row for row in _penalties(analysis)]
    return Analyses(*(_by_setting(rows, runs) for rows in (solves, analysed, epochs, penalties)))


def _blocks(analysis: Analysis) -> int:
    """Return the number of blocks that have exact features: of a ResNEst, those of its last stage;
    of all blocks where none has.
    """
    families = {solve.family for solve in analysis.solves}
    family = "exact" if "exact" in families else "pooled"
    groups = {solve.group for solve in analysis.solves if solve.family == family}
    return sum("." in group for group in groups)


def _epochs(analysis: Analysis, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what is known of each epoch, where weights of some were kept."""
    for kept in analysis.kept:
        yield kept.summary() | {"epoch": kept.epoch}
    kept_last = any(kept.epoch == run["epochs"] for kept in analysis.kept)
    if analysis.kept and not kept_last:
        yield analysis.summary() | {"epoch": run["epochs"]}


def _penalties(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Yield (b), (c) and ε with each penalty, where there are several."""
    if not analysis.l2_path or analysis.summary()["crowded"]:
        return
    summary = analysis.summary()
    names = ("last_maps", "bound", "eps", "eps.train_loss", "eps.test_loss")
    if analysis.l2 not in analysis.l2_path:
        yield {"penalty": analysis.l2} | {name: summary[name] for name in names}
    for l2 in analysis.l2_path:
        last, bound = analysis.over(l2)
        values = [get(last, "value"), get(bound, "value")]
        values += [less(last, bound, name) for name in ("value", "train_loss", "test_loss")]
        yield {"penalty": l2} | dict(zip(names, values, strict=True))


def _by_setting(rows: list[dict[str, Any]], runs: pd.DataFrame) -> pd.DataFrame:
    """Make a frame of `rows` with the column `setting`, and CELL ordered as in `runs`."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["setting"] = ""
    for key in ("l2", "tolerance", "method"):
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


def informative(solves: pd.DataFrame) -> pd.DataFrame:
    """Return the `solves` whose features are not about as many as the images: beyond that a map
    fits whatever labels there are.
    """
    most = CROWDED * (solves["train_images"] - 1)
    return solves[~(solves["rank"].fillna(0) >= most.where(most > 0, float("inf")))]


def interval(cell: pd.DataFrame, column: str, digits: int = 4) -> str:
    """Return the mean of a `column` and the interval of it, such as "0.2345 [0.2301 to 0.2389]";
    with n where not all values are known.

    The interval is cut where no value of this column can be. That changes nothing in how often it
    covers the true mean.
    """
    values = cell[column]
    known = values.dropna().astype(float)
    if known.empty:
        return NONE
    summary = pd.DataFrame({"n": [len(known)], "mean": [known.mean()], "std": [known.std()]})

    def shown(number: float) -> str:
        return f"{round(number, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero

    text = shown(known.mean())
    text += f" (n={len(known)})" if len(known) < len(values) else ""
    half = float((t_quantile(summary["n"]) * standard_error(summary)).iloc[0])
    if len(known) < 2 or pd.isna(half):
        return text
    low, high = known.mean() - half, known.mean() + half
    if column not in _SIGNED:
        low = max(low, 0.0)
    if column.endswith("accuracy") or column == "negative":
        high = min(high, 100.0)
    return f"{text} [{shown(low)} to {shown(high)}]"


def scientific(values: pd.Series) -> str:
    """Return the mean, and the least and largest of several, such as
    "1.2e-05 [1.0e-05 to 3.0e-05]".
    """
    known = values.dropna().astype(float)
    if known.empty:
        return NONE
    text = f"{known.mean():.1e}"
    return text if len(known) < 2 else f"{text} [{known.min():.1e} to {known.max():.1e}]"


def digits_of(error: float | None) -> int:
    """Return how many digits a number of this error has, at most four."""
    digits = 4
    while digits > 1 and error and error > 10**-digits:
        digits -= 1
    return digits
