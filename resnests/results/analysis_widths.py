"""Draw the width test: how the gap to the bound depends on the width of all layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnests.results.cells import row_name
from resnests.results.style import (
    COLORS,
    MARKERS,
    STYLE,
    WIDTH,
    Drawing,
    figure_key,
    figure_name,
    title_and_legend,
)

_RUN: dict[str, Any] = {"marker": MARKERS[0], "linestyle": "none"}
_WIDTH_PANELS = {
    "eps": "ε, cross-entropy",
    "squared_eps": "ε, squared error",
    "smallest_singular_value": "Smallest singular value",
}
_WIDTH_WORDS = (
    "Width test, {name}: ε, the gap between the best last two maps and the best map of all "
    "features, and the smallest singular value of [W_0 .. W_{{L-1}}]. Where both maps "
    "reach the same span, ε = 0 is by construction: right of the line wherever that value is not "
    "0, and left of it where features depend on others. How large ε is elsewhere is measured. "
    "Lines: what as many directions kept by chance would lose "
    "in the mean, and what lost ones would seem to be worth without any meaning. "
    "Below its first tick the scale of ε is linear; there it is 0 within certificates"
)
_WIDTH_COLUMNS = [
    "variant", "row", "seed", "width", "needed_width", "smallest_singular_value",
    "eps", "eps_error", "squared_eps", "random_eps", "rho", "floor", "trained", "last_maps",
    "bound", "linear",
]  # fmt: skip


def width_drawings(runs: pd.DataFrame) -> Iterator[Drawing]:
    """Draw the width test of analysed `runs` that have several widths M."""
    wide = runs.dropna(subset=["width"])
    alike = ["dataset", "arch", "setting"]
    for (dataset, arch, setting), mine in wide.groupby(alike, observed=True):
        if mine["width"].nunique() > 1:
            with mpl.rc_context(STYLE):
                yield _width(mine, str(dataset), str(arch), setting)


def _width(runs: pd.DataFrame, dataset: str, arch: str, setting: str) -> Drawing:
    """Draw ε and the smallest singular value over the width, a point a run."""
    figure = Figure(figsize=(WIDTH, 4.6))
    panels = figure.subplots(3, 1, sharex=True)
    needed = runs["needed_width"].iloc[0]
    floors = (float(runs["tolerance"].max()), 1e-6, 1e-3)
    for panel, (column, label), floor in zip(panels, _WIDTH_PANELS.items(), floors, strict=True):
        values = runs[column].clip(lower=0)
        panel.plot(runs["width"], values, **_RUN, color=COLORS[2], alpha=0.7, markersize=3)
        if column == "squared_eps":
            for name, color in (("random_eps", COLORS[1]), ("floor", COLORS[3])):
                means = runs.dropna(subset=[name]).astype({name: float}).groupby("width")[name]
                panel.plot(means.mean(), color=color, linewidth=0.9)
        panel.set_yscale("symlog", linthresh=floor)
        panel.axvline(needed, color=COLORS[4], linestyle="--", linewidth=0.9)
        panel.set_ylabel(label)
    _scale_widths(panels[-1], needed, runs["width"])
    handles = [
        Line2D([], [], **_RUN, color=COLORS[2], label="a run"),
        Line2D([], [], color=COLORS[4], linestyle="--", label=f"N_in + ΣK_i = {needed:g}"),
        Line2D([], [], color=COLORS[1], label="by chance"),
        Line2D([], [], color=COLORS[3], label="floor"),
    ]
    name = figure_name(dataset, row_name(arch, setting))
    title_and_legend(figure, f"{name}: width and the gap to the bound", handles)
    key, words = figure_key("width", dataset, arch, setting), _WIDTH_WORDS.format(name=name)
    return Drawing(key, words, figure, runs[_WIDTH_COLUMNS])


def _scale_widths(axes: Axes, needed: float, widths: pd.Series) -> None:
    """Scale and label the axis of widths: with the needed one, and those that leave room for it."""
    axes.set_xlabel("Width M")
    axes.set_xscale("log", base=2)
    ticks = [needed]
    for tick in sorted(widths.unique()):
        ticks += [tick] if all(abs(np.log2(tick / other)) > 0.18 for other in ticks) else []
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=60, fontsize=6)
    axes.minorticks_off()
