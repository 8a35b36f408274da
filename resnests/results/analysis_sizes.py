"""Draw the gap of convolutional networks over the depth and the width of their last stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnests.results.style import (
    STYLE,
    WIDTH,
    Drawing,
    VariantStyle,
    figure_key,
    figure_name,
    legend_entry,
    title_and_legend,
    variant_styles,
)

_PANELS = {"eps": "ε", "squared_eps": "ε, squared", "rho": "Selectivity"}
_LINES: dict[str, tuple[Any, str]] = {"random_eps": ("-", "by chance"), "floor": (":", "floor")}
_WORDS = (
    "{what}, {name} ({archs}): ε, the gap between the best last two maps and the best map of all "
    "exact features, by cross-entropy with penalty and by squared error, and its selectivity; a "
    "point a run, lines through means. Thin and solid: what as many directions kept by chance "
    "would lose in the mean. Thin and dotted: what lost ones would seem to be worth without any "
    "meaning. That ε >= 0 is by construction; its size is measured"
)


def size_drawings(runs: pd.DataFrame) -> Iterator[Drawing]:
    """Draw ε of coupled networks that differ in the depth, or the width, of the last stage."""
    coupled = runs[runs["coupled"].eq(True) & runs["width"].isna()]
    coupled = coupled.dropna(subset=["arch.widths", "arch.blocks"])
    if coupled.empty:
        return
    widths = coupled["arch.widths"].map(json.loads)
    shape = re.compile(r"arch\.(blocks|widths)=\[[^]]*\](, )?")
    coupled = coupled.assign(
        depth=coupled["blocks"],
        last_width=widths.str[-1],
        early=widths.str[:-1].astype(str) + coupled["arch.blocks"],
        other=[shape.sub("", row).strip(", ") for row in coupled["row"].astype(str)],
    )
    kinds = (
        ("depth", "arch.widths", "Depth of the last stage and the gap", "Blocks of the last stage"),
        ("last_width", "early", "Width of the last stage and the gap", "Width of the last stage"),
    )
    for by, alike, what, label in kinds:
        for (dataset, same, other), mine in coupled.groupby(
            ["dataset", alike, "other"], observed=True
        ):
            if mine[by].nunique() > 1 and mine[[*_PANELS]].notna().any(axis=None):
                with mpl.rc_context(STYLE):
                    key = figure_key(by, str(dataset), str(same), other)
                    yield _draw(mine, by, key, figure_name(str(dataset), other), what, label)


def _draw(runs: pd.DataFrame, by: str, key: str, name: str, what: str, label: str) -> Drawing:
    """Draw ε, squared ε beside chance and floor, and selectivity over the column `by`."""
    figure = Figure(figsize=(WIDTH, 4.6))
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    variants = variant_styles(runs["variant"])
    for axes, (column, words) in zip(panels, _PANELS.items(), strict=True):
        for style in variants:
            _line(axes, runs[runs["variant"] == style.variant], by, column, style)
        axes.set(ylabel=words, ylim=(0, None))
    sizes = runs.drop_duplicates(by).sort_values(by)
    panels[-1].set(xlabel=label, xscale="log")
    panels[-1].set_xticks(sizes[by], [f"{size}" for size in sizes[by]])
    panels[-1].minorticks_off()
    handles = [legend_entry(style, style.line) for style in variants]
    handles += [
        Line2D([], [], color="#888888", linestyle=dash, label=words)
        for dash, words in _LINES.values()
    ]
    title_and_legend(figure, f"{name}: {what[0].lower()}{what[1:]}", handles)
    archs = ", ".join(dict.fromkeys(runs["arch"].astype(str)))
    columns = ["arch", "variant", "row", "seed", by, "eps_error", *_PANELS, *_LINES]
    words = _WORDS.format(what=what, name=name, archs=archs)
    return Drawing(key, words, figure, runs[columns])


def _line(axes: Axes, runs: pd.DataFrame, by: str, column: str, style: VariantStyle) -> None:
    """Draw `runs` of one variant as points, and lines through means."""
    known = runs.dropna(subset=[column])
    axes.plot(known[by], known[column], **style.point, alpha=0.5, markersize=3)
    means = known.astype({column: float}).groupby(by)[column].mean()
    axes.plot(means.index, means, **style.line | {"marker": ""})
    if column != "squared_eps":
        return
    for name, (dash, _) in _LINES.items():
        means = runs.dropna(subset=[name]).astype({name: float}).groupby(by)[name].mean()
        axes.plot(means.index, means, color=style.line["color"], linestyle=dash, linewidth=0.7)
