"""Draw analyses over epochs and penalties, and the Hessian's spectrum: a line a cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnests.paper import arch_label, variant_label
from resnests.results.analyses import Analyses
from resnests.results.style import (
    DASHES,
    MARKERS,
    STYLE,
    WIDTH,
    Drawing,
    figure_key,
    figure_name,
    title_and_legend,
)

LINE = ["arch", "row", "variant"]
_OVER_EPOCHS = {"rho": "Selectivity", "squared_eps": "ε, squared", "eps": "ε", "slack": "Slack"}
_OVER_PENALTIES = {
    "eps": "ε, with penalty",
    "eps.train_loss": "ε, loss alone",
    "eps.test_loss": "ε, test",
}
MOST = 9  # lines that can be told apart
_EPOCHS = (
    "Over epochs, {name}: selectivity (0 where training kept the best directions of the features "
    "before the last block, 1 where no better than chance), ε of squared error and, thin, the "
    "floor that lost directions give without any meaning; ε and slack of cross-entropy with "
    "penalty. Points are runs, lines go through means. All of it is measured"
)
_PENALTIES = (
    "ε over the penalty, {name}: of the training risk with penalty, of the training loss alone, "
    "and of the test loss. That the first is never negative is by construction; the others are "
    "measured"
)
_SPECTRUM = (
    "Eigenvalues of the Hessian over (W_L, W_(L+1)) at the trained point, {name}, in ascending "
    "order, of the first seed. That there are negative ones where the point is no minimum of "
    "(b) is the theorem's; how many and how large is measured"
)


def line_drawings(analyses: Analyses) -> Iterator[Drawing]:
    """Draw what there is to show, data set by data set."""
    kinds = (
        (analyses.epochs, "epoch", _OVER_EPOCHS, _epochs),
        (analyses.penalties, "penalty", _OVER_PENALTIES, _penalties),
        (analyses.runs, None, ["eigenvalues"], _spectrum),
    )
    for frame, by, columns, draw in kinds:
        if by is None and not frame.empty:
            frame = frame[frame["eigenvalues"].str.len() > 0]
        if frame.empty:
            continue
        for dataset, mine in frame.groupby("dataset", observed=True):
            there = mine[[*columns]].notna().any(axis=None)  # ε is not where features are crowded
            if there and (by is None or mine[by].nunique() > 1):
                with mpl.rc_context(STYLE):
                    yield draw(mine, str(dataset))


def _styles(frame: pd.DataFrame) -> list[tuple[pd.DataFrame, dict[str, Any]]]:
    """Return the rows of each line and how it is drawn; of many lines, some between the ends."""
    lines = list(frame.groupby(LINE, observed=True))
    if len(lines) > MOST:
        lines = [lines[i] for i in np.linspace(0, len(lines) - 1, MOST).round().astype(int)]
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
    columns = [list(dict.fromkeys(values)) for values in zip(*(n for n, _ in lines), strict=True)]
    result = []
    for (name, mine), color in zip(lines, colors, strict=True):
        place = columns[2].index(name[2])
        row = name[1].replace("arch.", "").replace("widths=", "")
        words = (arch_label(name[0]), row, variant_label(name[2]))
        told = [word for word, values in zip(words, columns, strict=True) if len(values) > 1]
        style = {"color": color, "marker": MARKERS[place % 7], "linestyle": DASHES[place % 7]}
        result.append((mine, style | {"label": ", ".join(told) or words[0]}))
    return result


def _shown(frame: pd.DataFrame) -> str:
    """Return what a caption says where _styles leaves lines out: how many of how many are drawn."""
    count = frame.groupby(LINE, observed=True).ngroups
    return f". Drawn are {MOST} of {count} cells, spread over all" if count > MOST else ""


def _draw(axes: Axes, mine: pd.DataFrame, by: str, column: str, style: dict[str, Any]) -> None:
    """Draw the runs as points, and a line through their means."""
    known = mine.dropna(subset=[column])
    if known.empty:
        return
    plain = {key: value for key, value in style.items() if key != "label"}
    axes.plot(known[by], known[column], **plain | {"linestyle": "none"}, alpha=0.4, markersize=2.5)
    means = known.astype({column: float}).groupby(by)[column].mean()
    axes.plot(means.index, means, **plain | {"marker": ""})


def _panels(
    frame: pd.DataFrame, dataset: str, by: str, columns: dict[str, str], title: str
) -> tuple[Figure, list[Axes]]:
    """Draw a panel for each of `columns` over `by`; return the figure and its panels."""
    figure = Figure(figsize=(WIDTH, 1.2 + 1.25 * len(columns)))
    panels = list(figure.subplots(len(columns), 1, sharex=True))
    styles = _styles(frame)
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for mine, style in styles:
            _draw(axes, mine, by, column, style)
            if column == "squared_eps":
                thin = {"marker": "", "linewidth": 0.5}
                means = mine.groupby(by)["floor"].mean()
                axes.plot(means.index, means, **{"color": style["color"]} | thin)
        axes.set_ylabel(label)
        if (frame[by] == 0).any():  # the untrained network, for which a logarithm has no place
            axes.set_xscale("symlog", linthresh=1)
        else:
            axes.set_xscale("log")
    ticks = sorted(frame[by].unique())
    panels[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[-1].minorticks_off()
    handles = [Line2D([], [], **style) for _, style in styles]
    title_and_legend(figure, f"{figure_name(dataset, '')}: {title}", handles)
    return figure, panels


def _epochs(frame: pd.DataFrame, dataset: str) -> Drawing:
    columns = _OVER_EPOCHS
    figure, panels = _panels(frame, dataset, "epoch", columns, "what training forgets")
    panels[0].axhline(1, color="#888888", linewidth=0.6)
    panels[-1].set_xlabel("Epoch")
    for axes, column in zip(panels[1:], list(columns)[1:], strict=True):
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(0, 1.5 * max([1e-4, *frame[column].dropna()]))
    words = _EPOCHS.format(name=figure_name(dataset, "")) + _shown(frame)
    names = ["arch", "row", "variant", "seed", "epoch", *columns, "random_eps", "floor"]
    return Drawing(figure_key("epochs", dataset), words, figure, frame[names])


def _penalties(frame: pd.DataFrame, dataset: str) -> Drawing:
    columns = _OVER_PENALTIES
    figure, panels = _panels(frame, dataset, "penalty", columns, "the gap over penalties")
    panels[-1].set_xlabel("l2")
    words = _PENALTIES.format(name=figure_name(dataset, "")) + _shown(frame)
    names = ["arch", "row", "variant", "seed", "penalty", *columns]
    return Drawing(figure_key("l2", dataset), words, figure, frame[names])


def _spectrum(frame: pd.DataFrame, dataset: str) -> Drawing:
    figure = Figure(figsize=(WIDTH, 2.8))
    axes = figure.subplots()
    styles, rows = _styles(frame), []
    for mine, style in styles:
        first = mine.sort_values("seed").iloc[0]
        values = np.array(first["eigenvalues"])
        plain = {key: value for key, value in style.items() if key != "label"}
        axes.plot(np.linspace(0, 1, len(values)), values, **plain | {"marker": ""})
        named = {name: first[name] for name in (*LINE, "seed")}
        rows += [named | {"place": i, "eigenvalue": value} for i, value in enumerate(values)]
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.set(xlabel="Share of eigenvalues below", ylabel="Eigenvalue")
    handles = [Line2D([], [], **style | {"marker": ""}) for _, style in styles]
    title_and_legend(figure, f"{figure_name(dataset, '')}: Hessian at the trained point", handles)
    words = _SPECTRUM.format(name=figure_name(dataset, "")) + _shown(frame)
    return Drawing(figure_key("hessian", dataset), words, figure, pd.DataFrame(rows))
