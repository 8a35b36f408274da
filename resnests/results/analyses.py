"""Turn analysis.json into frames: a row per solve, per run, per kept epoch and per penalty."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from resnests.results.cells import CELL
from resnests.results.stats import standard_error, t_quantile
from resnests.results.tables import NONE
from resnests.runs.analysis import CROWDED, Analysis, compared, error_column
from resnests.runs.directory import RunDirectory
from resnests.text import at_most, digits_of, fixed

INTERVALS = (
    "Mean over seeds, and where there are several its 95% interval (Student's t), cut at 0 and "
    "100% where no value can be beyond."
)
_SIGNED = ("eps.train_loss", "eps.test_loss")  # columns whose values can be below 0
_OWN = ("seed", "path", "arch.widths", "arch.blocks")
_LISTS = ("solves", "points", "descents", "l2_path", "over_l2", "kept", "images")


@dataclass
class Analyses:
    """Holds what was measured of analysed runs: `solves` has a row per solve, `runs` one per run.

    All have CELL, setting, seed, path and the values that the run was analysed with; `solves` the
    fields of Solve, `runs` status, optimizer.lr, arch.widths, blocks, eigenvalues (a list, of the
    Hessian at the trained point) and Analysis.summary; `epochs` has Analysis.summary of kept
    weights and of the last ones, `penalties` a row per l2. `lacking` has CELL, seed and why of each
    complete run that has none, although it was tried, or another seed of its cell has one.
    """

    solves: pd.DataFrame
    runs: pd.DataFrame
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    penalties: pd.DataFrame = field(default_factory=pd.DataFrame)
    lacking: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def empty(self) -> bool:
        return self.runs.empty


def read_analyses(runs: pd.DataFrame) -> Analyses:
    """Read the analyses of labelled `runs`.

    Numbers of different analysis.l2 or analysis.tolerance, of an earlier method, or over another
    number of training images are never averaged: where a data set has several, or a cell of the
    last, `setting` names those of a run, and `row` ends with it.
    """
    solves: list[dict[str, Any]] = []
    analysed: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    penalties: list[dict[str, Any]] = []
    lacking: list[dict[str, Any]] = []
    for run in runs[runs["status"] == "complete"].to_dict("records"):
        analysis = RunDirectory(run["path"]).analysis.read_analysis()
        if analysis is None or not analysis.solves:
            lacking.append({name: run[name] for name in (*CELL, "seed")} | {"why": _why(run)})
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
    begun = {tuple(run[name] for name in CELL) for run in analysed}
    left = [run for run in lacking if run["why"] or tuple(run[name] for name in CELL) in begun]
    frames = (_by_setting(rows, runs) for rows in (solves, analysed, epochs, penalties))
    found = Analyses(*frames)
    found.lacking = pd.DataFrame(left)
    return found


def _why(run: dict[str, Any]) -> str:
    """Return how an analysis of a run ended that measured nothing, "" where there was none."""
    record = RunDirectory(run["path"]).analysis.record_or_none()
    return ": ".join(filter(None, (record.status, record.error))) if record else ""


def _blocks(analysis: Analysis) -> int:
    """Return the number of blocks that have exact features: of a ResNEst, those of its last stage;
    of all blocks where none has.
    """
    families = {solve.family for solve in analysis.solves}
    family = "exact" if "exact" in families else "pooled"
    groups = {solve.group for solve in analysis.solves if solve.family == family}
    return sum("." in group for group in groups)


def _epochs(analysis: Analysis, run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what is known of each epoch, where weights of some were kept and analysed so far."""
    begun = [kept for kept in analysis.kept if kept.solves]
    for kept in begun:
        yield kept.summary() | {"epoch": kept.epoch}
    if begun and all(kept.epoch != run["epochs"] for kept in begun):
        yield analysis.summary() | {"epoch": run["epochs"]}


def _penalties(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Yield (b), (c) and ε with each penalty and their errors, where there are several."""
    if not analysis.l2_path or analysis.summary()["crowded"]:
        return
    summary = analysis.summary()
    if analysis.l2 not in analysis.l2_path:
        yield {"penalty": analysis.l2} | {name: summary[name] for name in compared(None, None)}
    for l2 in dict.fromkeys(analysis.l2_path):  # earlier versions kept one that was given twice
        yield {"penalty": l2} | compared(*analysis.over(l2))


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
    counts = frame["train_images"].where(frame["train_images"] > 0)  # 0: not on record
    several = counts.groupby([frame[name] for name in CELL]).transform("nunique") > 1
    words = ", " + frame["train_images"].astype(str) + " training images"
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


def shown(cell: pd.DataFrame, column: str) -> str:
    """Return an interval of `column`, with the digits that its error leaves."""
    if column == "lost":
        return interval(cell, column, 0)
    if column.endswith("accuracy"):
        return interval(cell, column, 2)
    return interval(cell, column, digits_of(_error(cell, column)))


def _error(frame: pd.DataFrame, column: str) -> float | None:
    """Return the largest error of `column`, None where none is known."""
    errors = frame.get(error_column(column), pd.Series()).dropna()
    return None if errors.empty else float(errors.max())


def open_notes(frame: pd.DataFrame, columns: dict[str, str]) -> list[str]:
    """Say how far each ε among the `columns` of a table may be from that of the minimisers."""
    errors = {
        heading: _error(frame, column) or 0.0
        for heading, column in columns.items()
        if column.startswith("eps")
    }
    return [
        f"{heading}: certificates leave each open by at most {at_most(error):g} to either side."
        for heading, error in errors.items()
        if error > 0
    ]


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
    text = fixed(known.mean(), digits)
    text += f" (n={len(known)})" if len(known) < len(values) else ""
    half = float((t_quantile(summary["n"]) * standard_error(summary)).iloc[0])
    if len(known) < 2 or pd.isna(half):
        return text
    low, high = known.mean() - half, known.mean() + half
    if column not in _SIGNED:
        low = max(low, 0.0)
    if column.endswith("accuracy"):
        high = min(high, 100.0)
    return f"{text} [{fixed(low, digits)} to {fixed(high, digits)}]"


def spread(cell: pd.DataFrame, column: str, digits: int) -> str:
    """Return the mean of `column`, and the least and largest of several that differ."""
    known = cell[column].dropna().astype(float)
    if known.empty:
        return NONE
    text = fixed(known.mean(), digits)
    if known.nunique() < 2:
        return text
    return f"{text} [{fixed(known.min(), digits)} to {fixed(known.max(), digits)}]"


def scientific(cell: pd.DataFrame, column: str) -> str:
    """Return the mean of `column`, and the least and largest of several, such as
    "1.2e-05 [1.0e-05 to 3.0e-05]"; to the digits that its error leaves, and such as
    "2e-03 ± 7e-02" where it leaves none.
    """
    known = cell[column].dropna().astype(float)
    if known.empty:
        return NONE
    error = _error(cell, column) or 0.0

    def written(number: float) -> str:
        if not math.isfinite(number):
            return f"{number}"
        first = 10.0 ** int(f"{number:e}".partition("e")[2])
        text = f"{number:.{int(error <= first / 10)}e}"
        return f"{text} ± {at_most(error):.0e}" if error > first else text

    text = written(known.mean())
    return text if len(known) < 2 else f"{text} [{written(known.min())} to {written(known.max())}]"
