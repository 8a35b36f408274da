"""Draw how a search went, and which of its values matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from resnests.results.style import COLORS, STYLE, WIDTH, Drawing, title_and_legend
from resnests.search.study import Study

_COMPLETE: dict[str, Any] = {"color": COLORS[2], "marker": "o", "linestyle": "none"}
_PRUNED: dict[str, Any] = {"color": "#999999", "marker": "x", "linestyle": "none"}
_BEST: dict[str, Any] = {"color": COLORS[4], "drawstyle": "steps-post"}


def drawings(study: Study, frame: pd.DataFrame) -> Iterator[Drawing]:
    """Yield the figures that the trials so far are enough for.

    `frame` is that of results.trials_frame.
    """
    measured = frame.dropna(subset="val_accuracy") if len(frame) else frame
    if len(measured) > 1:
        with mpl.rc_context(STYLE):
            yield _history(study, measured)
    complete = measured[measured["state"] == "complete"] if len(frame) else measured
    keys = [key for key in study.distributions if complete[key].nunique() > 1] if len(frame) else []
    if len(keys) > 1 and complete["val_accuracy"].nunique() > 1:
        with mpl.rc_context(STYLE):
            yield _importance(study, keys, len(complete))


def _history(study: Study, trials: pd.DataFrame) -> Drawing:
    """Draw the accuracy of each trial, and the best up to it."""
    figure = Figure(figsize=(WIDTH, 2.4))
    axes = figure.subplots()
    complete = trials[trials["state"] == "complete"]
    others = trials[trials["state"] != "complete"]
    handles = []
    for label, some, look in (("complete", complete, _COMPLETE), ("pruned", others, _PRUNED)):
        if len(some):
            axes.plot(some["trial"], some["val_accuracy"], **look)
            handles.append(Line2D([], [], label=label, **look))
    if len(complete):
        best = complete.set_index("trial")["val_accuracy"].cummax()
        best = best.reindex(range(best.index[0], trials["trial"].max() + 1)).ffill()
        axes.plot(best.index, best, zorder=0, **_BEST)
        handles.append(Line2D([], [], label="best so far", color=COLORS[4]))
    axes.set(xlabel="Trial", ylabel="Validation accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title_and_legend(figure, study.folder.name, handles)
    title = f"Validation accuracy of the trials of {study.folder.name}"
    return Drawing("history", title, figure, trials)


def _importance(study: Study, keys: list[str], count: int) -> Drawing:
    """Draw the share of each value in the variance of the accuracy.

    This is fANOVA: Hutter et al., ICML 2014.
    """
    evaluator = FanovaImportanceEvaluator(seed=0)
    found = get_param_importances(study.optuna, evaluator=evaluator, params=keys)
    data = pd.DataFrame({"key": list(found), "importance": list(found.values())})
    figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * len(data)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(data["key"], data["importance"], color=COLORS[2], height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=STYLE["xtick.labelsize"])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 1.1), xlabel="Share of the variance of the accuracy")
    title = f"{study.folder.name}: {count} complete trials"
    axes.set_title(title)
    return Drawing("importance", f"Importance (fANOVA), {title}", figure, data)
