"""Figures at the width of a paper's column, each with the data behind it: learning curves,
accuracies, parameters.

Colours are Okabe and Ito's, safe for the colour-blind; markers and dashes repeat what they say, for
print in grey.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from resnests.paper import (
    ARCHS,
    PUBLISHED,
    VARIANTS,
    arch_label,
    dataset_label,
    in_order,
    variant_label,
)
from resnests.results.cells import CELL, in_row_order, row_name
from resnests.results.stats import cell_statistics, with_interval
from resnests.runs.directory import RunDirectory
from resnests.runs.record import BrokenRecord

WIDTH = 3.3  # inches
DPI = 300
_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
_COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 2)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.labelsize": 7.5, "axes.titlesize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.5, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 4, "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@dataclass
class Drawing:
    """A figure, what it shows in words, and the data behind it."""

    key: str  # for file names
    title: str
    figure: Figure
    data: pd.DataFrame

    def render(self, form: str) -> bytes:
        """The figure as "png" or "pdf", the same bytes for the same data."""
        buffer = io.BytesIO()
        with mpl.rc_context(_STYLE):
            metadata = {"CreationDate": None} if form == "pdf" else {"Software": None}
            self.figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
        return buffer.getvalue()


def drawings(runs: pd.DataFrame, problems: list[str]) -> Iterator[Drawing]:
    """All figures of labelled `runs`, one by one; `problems` gets a line for each history that
    cannot be read.
    """
    complete = runs[runs["status"] == "complete"]
    if complete.empty:
        return
    cells = with_interval(cell_statistics(complete)).reset_index()
    for dataset in in_order(list(complete["dataset"].unique()), {"cifar10": "", "cifar100": ""}):
        for row in in_row_order(set(complete.loc[complete["dataset"] == dataset, "row"])):
            mine = cells[(cells["dataset"] == dataset) & (cells["row"] == row)]
            with mpl.rc_context(_STYLE):
                yield _variants(mine)
                yield _parameters(mine)
            inside = complete[
                (complete["dataset"] == dataset) & (complete["row"] == row) & ~complete["given"]
            ]
            for arch in in_order(list(inside["arch"].unique()), ARCHS):
                data = _histories(inside[inside["arch"] == arch], problems)
                if len(data):
                    with mpl.rc_context(_STYLE):
                        yield _curves(data)


def _histories(runs: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Over the seeds of each variant: epoch, n, and mean and sample standard deviation of each
    metric per epoch.
    """
    frames = []
    for variant in in_order(list(runs["variant"].unique()), VARIANTS):
        tables = []
        for path, epochs in runs.loc[runs["variant"] == variant, ["path", "epochs"]].itertuples(
            index=False
        ):
            try:
                history = np.array(
                    list(RunDirectory(path).read_history(("epoch", *_METRICS)).values())
                )
                if history.shape[1] != epochs:
                    raise BrokenRecord(f"history.csv has {history.shape[1]} epochs, not {epochs}")
                tables.append(history)
            except BrokenRecord as error:
                problems.append(f"{path}: left out of the learning curves, {error}")
        if not tables:
            continue
        cube = np.stack(tables)  # (seeds, 1 + metrics, epochs)
        first = runs.iloc[0]
        columns = {name: first[name] for name in CELL} | {
            "variant": variant,
            "epoch": cube[0, 0].astype(int),
        }
        columns["n"] = len(cube)
        for name, values in zip(_METRICS, cube[:, 1:].swapaxes(0, 1), strict=True):
            columns[f"{name}_mean"] = values.mean(axis=0)
            columns[f"{name}_std"] = values.std(axis=0, ddof=1) if len(cube) > 1 else np.nan
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _curves(data: pd.DataFrame) -> Drawing:
    """Training loss and test accuracy of one architecture."""
    dataset, arch, row = data.loc[0, CELL[:3]]
    figure = Figure(figsize=(WIDTH, 3.9))
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    looks = _looks(data)
    for variant, curve in data.groupby("variant", sort=False):
        _curve(loss, curve, "train_loss", looks[variant])
        _curve(accuracy, curve, "test_accuracy", looks[variant])
    _scale(loss, accuracy, data)
    name = _name(dataset, row_name(arch, row))
    _finish(figure, name, [_handle(*item) for item in looks.items()])
    low, high = data["n"].min(), data["n"].max()
    seeds = (
        f"mean of {low} to {high} seeds"
        if low < high
        else f"mean of {high} seeds"
        if high > 1
        else "one seed"
    )
    title = f"Learning curves, {name}: {seeds}"
    title += ", band of one sample standard deviation to either side" if high > 1 else ""
    return Drawing(_key("curves", dataset, arch, row), title, figure, data)


def _scale(loss: Axes, accuracy: Axes, data: pd.DataFrame) -> None:
    """Axes that show the end of training; the first tenth of the epochs may leave the panel of
    accuracies.
    """
    loss.set(ylabel="Training loss")
    if data["train_loss_mean"].max() > 8 * data["train_loss_mean"].min():
        loss.set(yscale="log")
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set(ylabel="Test accuracy (%)", xlabel="Epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean, spread = data["test_accuracy_mean"], data["test_accuracy_std"].fillna(0)
    settled = data["epoch"] > 0.1 * data["epoch"].max()
    low, high = (mean - spread)[settled].min(), (mean + spread)[settled].max()
    margin = 0.05 * (high - low) + 0.2
    accuracy.set_ylim(low - margin, high + margin)


def _curve(axes: Axes, curve: pd.DataFrame, metric: str, look: dict[str, Any]) -> None:
    """A line with its band; markers stand at other epochs on each line, so that none hides
    another.
    """
    curve = curve[curve[f"{metric}_mean"].notna()]
    x, y, spread = (curve[name].to_numpy() for name in ("epoch", f"{metric}_mean", f"{metric}_std"))
    every = max(1, len(x) // 6)
    look = {key: value for key, value in look.items() if key != "index"} | {
        "markevery": (look["index"] * every // 4, every)
    }
    axes.plot(x, y, **look)
    low = (
        y - spread if metric.endswith("accuracy") else np.maximum(y - spread, y / 10)
    )  # a log axis ends above 0
    axes.fill_between(x, low, y + spread, color=look["color"], alpha=0.2, linewidth=0)


def _variants(cells: pd.DataFrame) -> Drawing:
    """Accuracy of each variant, architecture by architecture, with intervals."""
    dataset, row = cells.iloc[0][["dataset", "row"]]
    archs, looks = in_order(list(cells["arch"]), ARCHS), _looks(cells)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.45 * len(archs)))
    axes = figure.subplots()
    for cell in cells.to_dict("records"):
        place = list(looks).index(cell["variant"]) - (len(looks) - 1) / 2
        y = archs.index(cell["arch"]) + 0.75 * place / len(looks)
        half = cell["high"] - cell["mean"] if cell["n"] > 1 else None
        look = {
            "color": looks[cell["variant"]]["color"],
            "marker": looks[cell["variant"]]["marker"],
        }
        axes.errorbar(
            cell["mean"], y, xerr=half, linestyle="none", elinewidth=0.9, capsize=2, **look
        )
    axes.set_yticks(range(len(archs)), [arch_label(arch) for arch in archs])
    axes.set_ylim(len(archs) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for boundary in range(1, len(archs)):
        axes.axhline(boundary - 0.5, color="#bbbbbb", linewidth=0.5)
    axes.set_xlabel("Test accuracy (%)")
    name = _name(dataset, row)
    _finish(figure, name, [_handle(*item, linestyle="none") for item in looks.items()])
    title = f"Accuracy of the variants, {name}: mean over seeds and its 95% interval (Student's t; none for one seed)"
    return Drawing(_key("variants", dataset, row), title, figure, cells)


def _parameters(cells: pd.DataFrame) -> Drawing:
    """Accuracy over parameters, with the paper's points, hollow, where it has the cell."""
    dataset, row = cells.iloc[0][["dataset", "row"]]
    keys = zip(cells["dataset"], cells["arch"], cells["variant"], strict=True)
    cells = cells.assign(published=[PUBLISHED.get(key, (np.nan,))[0] for key in keys])
    looks = _looks(cells)
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots()
    for cell in cells.to_dict("records"):
        look = {
            "color": looks[cell["variant"]]["color"],
            "marker": looks[cell["variant"]]["marker"],
            "linestyle": "none",
        }
        size = cell["parameters"] / 1e6
        axes.plot(size, cell["published"], **look, markerfacecolor="none", markersize=7)
        axes.plot(size, cell["mean"], **look)
    axes.set(xscale="log", xlabel="Parameters (millions)", ylabel="Test accuracy (%)")
    axes.margins(y=0.14)
    sizes = cells["parameters"] / 1e6
    room = max(
        1.8, (sizes.max() / sizes.min()) ** 0.25
    )  # for the names, however close the sizes are
    axes.set_xlim(sizes.min() / room, sizes.max() * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_archs(axes, cells)
    name, title = _name(dataset, row), "Accuracy over parameters, "
    handles = [_handle(*item, linestyle="none") for item in looks.items()]
    title += f"{name}: mean over seeds"
    if cells["published"].notna().any():
        title += ", and hollow the paper's"
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                color="#777777",
                markerfacecolor="none",
                label="paper",
            )
        )
    _finish(figure, name, handles)
    return Drawing(_key("parameters", dataset, row), title, figure, cells)


def _label_archs(axes: Axes, cells: pd.DataFrame) -> None:
    """The name of each architecture above its best point, to the outer side of one with about as
    many parameters.
    """
    tops = (
        cells.assign(top=cells[["mean", "published"]].max(axis=1))
        .groupby("arch")[["parameters", "top"]]
        .max()
    )
    tops = tops.sort_values("parameters").astype(float)
    decades = np.log10(tops["parameters"].to_numpy())
    left = np.diff(decades, prepend=-np.inf) < 0.35
    right = np.diff(decades, append=np.inf) < 0.35
    for (arch, top), near_left, near_right in zip(tops.iterrows(), left, right, strict=True):
        side = {(False, True): "right", (True, False): "left"}.get(
            (near_left, near_right), "center"
        )
        place = (0, 14 if near_left and near_right else 6)
        axes.annotate(
            arch_label(arch),
            (top["parameters"] / 1e6, top["top"]),
            place,
            textcoords="offset points",
            ha=side,
            fontsize=6.5,
        )


def _looks(cells: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How each variant is drawn, in the tables' order; the paper's look the same in every
    figure.
    """
    looks = {}
    for index, variant in enumerate(in_order([*VARIANTS, *cells["variant"]], VARIANTS)):
        look = {
            "color": _COLORS[index % len(_COLORS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "index": index,
        }
        looks[variant] = look | {"linestyle": _DASHES[index % len(_DASHES)]}
    return {variant: looks[variant] for variant in looks if variant in set(cells["variant"])}


def _handle(variant: str, look: dict[str, Any], **changes: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D(
        [],
        [],
        **(
            {k: v for k, v in look.items() if k != "index"}
            | {"label": variant_label(variant)}
            | changes
        ),
    )


def _finish(figure: Figure, title: str, handles: list[Line2D]) -> None:
    """A title and a legend above the axes, where they cover no data."""
    figure.set_layout_engine("constrained")
    columns = 4 if len(handles) == 4 else 3
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=0.9, handletextpad=0.4,
                  handlelength=2.0 if handles[0].get_linestyle() != "None" else 1.0,
                  title="\n".join(textwrap.wrap(title, 58)), title_fontsize=_STYLE["axes.titlesize"])  # fmt: skip


def _name(dataset: str, row: str) -> str:
    return f"{dataset_label(dataset)}, {row}" if row else dataset_label(dataset)


def _key(*parts: str) -> str:
    """A file name of at most 100 characters; a long one keeps its identity by a hash."""
    key = re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, parts)))
    return key if len(key) <= 100 else f"{key[:91]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
