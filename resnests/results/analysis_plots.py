"""Draw what task=analyze measured: risk over blocks, and what each block adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from resnests.paper import variant_label
from resnests.results.analyses import Analyses, informative
from resnests.results.analysis_details import drops
from resnests.results.analysis_lines import line_drawings
from resnests.results.analysis_sizes import size_drawings
from resnests.results.analysis_widths import width_drawings
from resnests.results.cells import row_name
from resnests.results.style import (
    STYLE,
    WIDTH,
    Drawing,
    VariantStyle,
    figure_key,
    figure_name,
    legend_entry,
    plain_numbers,
    title_and_legend,
    variant_styles,
)
from resnests.runs.analysis import PREFIX
from resnests.text import at_most

_WORDS = {
    "exact": "Exact features: bounds on the networks' own risks",
    "pooled": "Pooled features, colour means and mean v_i: a description, but for A-ResNEst",
}


def drawings(analyses: Analyses) -> Iterator[Drawing]:
    """Draw all figures of `analyses`, one by one."""
    if analyses.empty:
        return
    yield from line_drawings(analyses)
    solves, runs = analyses.solves, analyses.runs
    solves = informative(solves)
    prefixes = solves[(solves["quantity"] == PREFIX) & solves["value"].notna()]
    for (dataset, arch, row), mine in prefixes.groupby(["dataset", "arch", "row"], observed=True):
        if mine["width"].notna().any():
            continue
        name = figure_name(dataset, row_name(arch, row))
        for family, some in _families(mine):
            with mpl.rc_context(STYLE):
                key = figure_key(f"blocks_{family}", dataset, arch, row)
                yield _curves(some, key, f"{name}. {_WORDS[family]}")
                key = figure_key(f"drops_{family}", dataset, arch, row)
                yield _drops(some, key, f"{name}. {_WORDS[family]}")
    yield from size_drawings(runs)
    yield from width_drawings(runs)


def _families(prefixes: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the exact curves of variants that have them, and the pooled ones of all: A-ResNEst's
    are both.
    """
    exact = prefixes[prefixes["family"] == "exact"]
    augmented = exact[exact["group"].eq("input").groupby(exact["path"]).transform("any")]
    pooled = pd.concat([augmented, prefixes[prefixes["family"] == "pooled"]])
    for family, some in (("exact", exact), ("pooled", pooled)):
        some = some[some.groupby("path")["group"].transform("size") > 1]
        if len(some):
            yield family, some


def _over_seeds(prefixes: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return n, mean and std over seeds of `column`, per variant and group, in their order."""
    groups = prefixes.groupby(["variant", "group"], observed=True, sort=False)
    table = groups.agg(n=(column, "count"), mean=(column, "mean"), std=(column, "std"),
                       features=("features", "first"))  # fmt: skip
    return table.reset_index()


def _curves(prefixes: pd.DataFrame, key: str, title: str) -> Drawing:
    """Draw the least training risk and its test risk over the blocks that are used."""
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots(2, 1, sharex=True)
    labels = ("Training risk + penalty", "Test cross-entropy")
    tables = []
    variants = variant_styles(prefixes["variant"])
    names = _longest(_over_seeds(prefixes, "value"))
    for panel, column, label in zip(axes, ("value", "test_loss"), labels, strict=True):
        data = _over_seeds(prefixes, column)
        if column == "test_loss":
            errors = prefixes.astype({"test_error": float})
            data["error"] = _over_seeds(errors, "test_error")["mean"].fillna(0.0)
        tables.append(data.assign(quantity=column))
        for style in variants:
            _line(panel, data[data["variant"] == style.variant], style, names)
        panel.set(ylabel=label, yscale="log")
        plain_numbers(panel.yaxis)
    axes[1].set_xlabel("Blocks of features")
    axes[1].set_xticks(range(len(names)), names, rotation=45, ha="right")
    title_and_legend(figure, title, [legend_entry(style, style.line) for style in variants])
    several = tables[0]["n"].max() > 1
    seeds = "band of one sample standard deviation over seeds; " if several else ""
    words = (
        f"Least risk over the blocks whose features are used, {title}: {seeds}"
        "that the training risk falls is true by construction, how much is measured. Bars are how "
        "far test losses may be from those of the maps of least risk. A curve that "
        "starts late starts with what enters the last stage"
    )
    return Drawing(key, words, figure, pd.concat(tables, ignore_index=True))


def _longest(data: pd.DataFrame) -> list[str]:
    """Return the groups of the variant that has most: the places of an axis."""
    return list(
        max((table for _, table in data.groupby("variant", observed=True)), key=len)["group"]
    )


def _places(groups: pd.Series, names: list[str]) -> np.ndarray:
    """Return where `groups` stand among `names`; what enters the last stage comes just before."""
    first = names.index(groups.iloc[1]) - 1 if groups.iloc[1] in names else 0
    return first + np.arange(len(groups))


def _line(axes: Axes, data: pd.DataFrame, style: VariantStyle, names: list[str]) -> None:
    x, spread = _places(data["group"], names), data["std"].fillna(0)
    axes.plot(x, data["mean"], **style.line)
    axes.fill_between(
        x, data["mean"] - spread, data["mean"] + spread, color=style.line["color"], alpha=0.2, lw=0
    )
    if "error" in data:
        down = data["error"].clip(upper=0.9 * data["mean"])  # the axis is logarithmic
        bars = (down, data["error"])
        axes.errorbar(x, data["mean"], bars, color=style.line["color"], ls="", capsize=2, lw=0.8)


def _filled(style: VariantStyle) -> dict[str, Any]:
    """Return how bars of a variant look, in the axes and in the legend."""
    hatches = ("", "////", "....", "xxxx", "++", "\\\\\\\\", "oo")
    color, hatch = style.line["color"], hatches[style.index % len(hatches)]
    return {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}


def _drops(prefixes: pd.DataFrame, key: str, title: str) -> Drawing:
    """Draw by how much each block's features lower the least training risk."""
    found = drops(prefixes)
    error = max(float(found["drop_error"].max()), 1e-9)
    data = _over_seeds(found, "drop")
    variants = variant_styles(data["variant"])
    names = _longest(data)
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.subplots()
    thickness = 0.8 / len(variants)
    for place, style in enumerate(variants):
        mine = data[data["variant"] == style.variant]
        x = np.array([names.index(g) if g in names else i for i, g in enumerate(mine["group"])])
        offset = (place - (len(variants) - 1) / 2) * thickness
        axes.bar(
            x + offset, mine["mean"].clip(lower=error), thickness * 0.9,
            yerr=mine["std"], error_kw={"elinewidth": 0.9, "ecolor": "#888888"},
            **_filled(style),
        )  # fmt: skip
    axes.set_ylim(error, 2 * max(data["mean"].max(), 5 * error))  # below it nothing is known
    axes.set(yscale="log", ylabel="Drop of training risk", xlabel="Block")
    plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    handles = [Patch(label=variant_label(s.variant), **_filled(s)) for s in variants]
    title_and_legend(figure, title, handles)
    words = f"What each block adds, {title}: drop of the least training risk (with penalty; "
    words += f"logarithmic axis, from {at_most(error):g}, to which each is known), mean"
    words += " and one sample standard deviation over seeds" if data["n"].max() > 1 else ""
    return Drawing(key, words, figure, data)
