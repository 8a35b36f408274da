"""Figures of what task=analyze measured: risk over blocks, what each block adds, ε over width."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnests.paper import variant_label
from resnests.results.analyses import Analyses, informative
from resnests.results.analysis_details import drops
from resnests.results.analysis_lines import line_drawings
from resnests.results.cells import row_name
from resnests.results.style import (
    COLORS,
    MARKERS,
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
    coupled = runs[runs["coupled"].eq(True) & runs["width"].isna()]
    alike = ["dataset", "arch.widths", "row"]
    for (dataset, widths, row), mine in coupled.groupby(alike, observed=True):
        if mine["blocks"].nunique() > 1:
            with mpl.rc_context(STYLE):
                key = figure_key("depth", dataset, widths, row)
                yield _depth(mine, key, figure_name(dataset, row))
    wide = runs.dropna(subset=["width"])
    alike = ["dataset", "arch", "setting"]
    for (dataset, arch, setting), mine in wide.groupby(alike, observed=True):
        if mine["width"].nunique() > 1:
            with mpl.rc_context(STYLE):
                yield _width(mine, str(dataset), str(arch), setting)


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
        "that the training risk falls is true by construction, how much is measured. A curve that "
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
            color=style.line["color"], yerr=mine["std"],
            error_kw={"elinewidth": 0.9, "ecolor": "#888888"},
            hatch=("", "////", "....", "xxxx", "++", "\\\\\\\\", "oo")[style.index % 7],
            edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    axes.set_ylim(error, 2 * max(data["mean"].max(), 5 * error))  # below it nothing is known
    axes.set(yscale="log", ylabel="Drop of training risk", xlabel="Block")
    plain_numbers(axes.yaxis)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    handles = [Line2D([], [], marker="s", linestyle="none", color=style.line["color"],
                      label=variant_label(style.variant)) for style in variants]  # fmt: skip
    title_and_legend(figure, title, handles)
    words = f"What each block adds, {title}: drop of the least training risk (with penalty; "
    words += f"logarithmic axis, from {error:.1g}, to which each is known), mean"
    words += " and one sample standard deviation over seeds" if data["n"].max() > 1 else ""
    return Drawing(key, words, figure, data)


def _depth(runs: pd.DataFrame, key: str, name: str) -> Drawing:
    """Draw ε over the number of blocks of architectures of the same widths."""
    figure = Figure(figsize=(WIDTH, 3.4))
    panels = figure.subplots(2, 1, sharex=True)
    variants = variant_styles(runs["variant"])
    for axes, column, label in zip(
        panels, ("eps", "squared_eps"), ("ε, cross-entropy", "ε, squared error"), strict=True
    ):
        for style in variants:
            mine = runs[runs["variant"] == style.variant]
            axes.plot(mine["blocks"], mine[column], **style.point, alpha=0.5, markersize=3)
            means = mine.groupby("blocks")[column].mean()
            axes.plot(means.index, means, **style.line | {"marker": ""})
        axes.set(ylabel=label, ylim=(0, None))
    depths = runs.drop_duplicates("blocks").sort_values("blocks")
    panels[1].set_xlabel("Blocks of the last stage")
    panels[1].set_xticks(depths["blocks"], [f"{blocks}" for blocks in depths["blocks"]])
    title_and_legend(
        figure,
        f"{name}: depth and the gap",
        [legend_entry(style, style.line) for style in variants],
    )
    archs = ", ".join(depths["arch"].astype(str))
    words = (
        f"ε over the number of blocks of the last stage, {name} ({archs}): the gap between the "
        "best last two maps and the best map of all exact features, a point a run, lines through "
        "means. That ε >= 0 is by construction; its size is measured"
    )
    columns = ["arch", "variant", "row", "seed", "blocks", "eps", "eps_error", "squared_eps"]
    return Drawing(key, words, figure, runs[columns])


def _width_panel(panel: Axes, runs: pd.DataFrame, column: str) -> None:
    """Draw one quantity over the width, and beside the squared ε what chance would give."""
    panel.plot(
        runs["width"], runs[column].clip(lower=0), marker=MARKERS[0], linestyle="none",
        color=COLORS[2], alpha=0.7, markersize=3,
    )  # fmt: skip
    if column == "squared_eps":
        for name, color in (("random_eps", COLORS[1]), ("floor", COLORS[3])):
            means = runs.dropna(subset=[name]).astype({name: float}).groupby("width")[name]
            panel.plot(means.mean(), color=color, linewidth=0.9)
    floor = {"eps": float(runs["tolerance"].max()), "squared_eps": 1e-6}.get(column, 1e-3)
    panel.set_yscale("symlog", linthresh=floor)
    panel.axvline(runs["needed_width"].iloc[0], color=COLORS[4], linestyle="--", linewidth=0.9)


def _width(runs: pd.DataFrame, dataset: str, arch: str, setting: str) -> Drawing:
    """Draw ε and the smallest singular value over the width, a point a run."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(3, 1, sharex=True)
    needed = runs["needed_width"].iloc[0]
    for panel, column, label in zip(
        axes,
        ("eps", "squared_eps", "smallest_singular_value"),
        ("ε, cross-entropy", "ε, squared error", "Smallest singular value"),
        strict=True,
    ):
        _width_panel(panel, runs, column)
        panel.set_ylabel(label)
    axes[-1].set_xlabel("Width M")
    axes[-1].set_xscale("log", base=2)
    ticks = [needed]
    for tick in sorted(runs["width"].unique()):  # those that leave room for their labels
        ticks += [tick] if all(abs(np.log2(tick / other)) > 0.18 for other in ticks) else []
    axes[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=60, fontsize=6)
    axes[-1].minorticks_off()
    point = Line2D([], [], marker=MARKERS[0], linestyle="none", color=COLORS[2], label="a run")
    line = Line2D([], [], color=COLORS[4], linestyle="--", label=f"N_in + ΣK_i = {needed:g}")
    name = figure_name(dataset, row_name(arch, setting))
    lines = [
        Line2D([], [], color=COLORS[1], label="by chance"),
        Line2D([], [], color=COLORS[3], label="floor"),
    ]
    title_and_legend(figure, f"{name}: width and the gap to the bound", [point, line, *lines])
    words = (
        f"Width test, {name}: ε, the gap between the best last two maps and the best map of all "
        "features, and the smallest singular value of [W_0 .. W_{L-1}]. That ε = 0 right of the "
        "line, where that is not 0, is by construction, as both maps reach the same span; that it "
        "is not 0 left of it is measured. Lines: what as many directions kept by chance would lose "
        "in the mean, and what lost ones would seem to be worth without any meaning. "
        "Below its first tick the scale of ε is linear; there it is 0 within certificates"
    )
    columns = [
        "variant", "row", "seed", "width", "needed_width", "smallest_singular_value",
        "eps", "eps_error", "squared_eps", "random_eps", "rho", "floor", "trained", "last_maps",
        "bound", "linear",
    ]  # fmt: skip
    return Drawing(figure_key("width", dataset, arch, setting), words, figure, runs[columns])
