"""What figures show: learning curves, accuracies, and accuracy over parameters."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from resnests.paper import PUBLISHED, arch_label
from resnests.results import notes
from resnests.results.cells import CELL, Cell, names, row_name
from resnests.results.stats import cell_statistics, with_interval
from resnests.results.style import (
    STYLE,
    WIDTH,
    Drawing,
    Look,
    entry,
    figure_key,
    figure_name,
    finish,
    looks,
    plain_numbers,
)
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, BrokenRecord


def drawings(runs: pd.DataFrame, problems: list[str]) -> Iterator[Drawing]:
    """All figures of labelled `runs`, one by one; `problems` gets a line for each history that
    cannot be read.
    """
    complete = runs[runs["status"] == "complete"]
    for _, mine in complete.groupby(["dataset", "row"], observed=True):
        cells = with_interval(cell_statistics(mine)).reset_index()
        with mpl.rc_context(STYLE):
            yield _variants(cells)
            yield _parameters(cells)
        for _, inside in mine[~mine["given"]].groupby("arch", observed=True):
            data = _histories(inside, problems)
            if len(data):
                with mpl.rc_context(STYLE):
                    yield _curves(data, looks(inside["variant"]))


def _histories(runs: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Over the seeds of each cell: epoch, n, and mean and sample standard deviation of each
    metric per epoch.
    """
    frames = []
    for key, cell in runs.groupby(CELL, observed=True):
        tables = []
        for path, epochs in zip(cell["path"], cell["epochs"], strict=True):
            try:
                columns = RunDirectory(path).read_history(("epoch", *METRICS))
                history = np.array(list(columns.values()))
                if history.shape[1] != epochs:
                    raise BrokenRecord(f"history.csv has {history.shape[1]} epochs, not {epochs}")
                tables.append(history)
            except BrokenRecord as error:
                problems.append(f"{path}: left out of the learning curves, {error}")
        if not tables:
            continue
        cube = np.stack(tables)  # (seeds, 1 + metrics, epochs)
        frame = pd.DataFrame(Cell(*key)._asdict() | {"epoch": cube[0, 0].astype(int)})
        frame["n"] = len(cube)
        for name, values in zip(METRICS, cube[:, 1:].swapaxes(0, 1), strict=True):
            frame[f"{name}_mean"] = values.mean(axis=0)
            frame[f"{name}_std"] = values.std(axis=0, ddof=1) if len(cube) > 1 else np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _curves(data: pd.DataFrame, looks: list[Look]) -> Drawing:
    """Training loss and test accuracy of one architecture."""
    cell = Cell(*data.loc[0, CELL])
    figure = Figure(figsize=(WIDTH, 3.9))
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    curves = dict(list(data.groupby("variant")))
    looks = [look for look in looks if look.variant in curves]
    for look in looks:
        _curve(loss, curves[look.variant], "train_loss", look)
        _curve(accuracy, curves[look.variant], "test_accuracy", look)
    _scale(loss, accuracy, data)
    name = figure_name(cell.dataset, row_name(cell.arch, cell.row))
    finish(figure, name, [entry(look, look.line) for look in looks])
    low, high = data["n"].min(), data["n"].max()
    seeds = "one seed"
    if high > 1:
        seeds = f"mean of {high} seeds" if low == high else f"mean of {low} to {high} seeds"
        seeds += ", band of one sample standard deviation to either side"
    key = figure_key("curves", cell.dataset, cell.arch, cell.row)
    return Drawing(key, f"Learning curves, {name}: {seeds}", figure, data)


def _scale(loss: Axes, accuracy: Axes, data: pd.DataFrame) -> None:
    """Axes that show the end of training; the first tenth of the epochs may leave the panel of
    accuracies.
    """
    loss.set(ylabel="Training loss")
    if data["train_loss_mean"].max() > 8 * data["train_loss_mean"].min():
        loss.set(yscale="log")
        plain_numbers(loss.yaxis)
    accuracy.set(ylabel="Test accuracy (%)", xlabel="Epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean, spread = data["test_accuracy_mean"], data["test_accuracy_std"].fillna(0)
    settled = data["epoch"] > 0.1 * data["epoch"].max()
    low, high = (mean - spread)[settled].min(), (mean + spread)[settled].max()
    margin = 0.05 * (high - low) + 0.2
    accuracy.set_ylim(low - margin, high + margin)


def _curve(axes: Axes, curve: pd.DataFrame, metric: str, look: Look) -> None:
    """A line with its band; markers stand at other epochs on each line, so that none hides
    another.
    """
    curve = curve[curve[f"{metric}_mean"].notna()]
    x, y, spread = (curve[name].to_numpy() for name in ("epoch", f"{metric}_mean", f"{metric}_std"))
    every = max(1, len(x) // 6)
    axes.plot(x, y, markevery=(look.index * every // 4, every), **look.line)
    low = y - spread
    if metric.endswith("loss"):
        low = np.maximum(low, y / 10)  # a log axis ends above 0
    axes.fill_between(x, low, y + spread, color=look.line["color"], alpha=0.2, linewidth=0)


def _variants(cells: pd.DataFrame) -> Drawing:
    """Accuracy of each variant, architecture by architecture, with intervals."""
    dataset, row = cells.loc[0, ["dataset", "row"]]
    archs, variants = names(cells["arch"]), looks(cells["variant"])
    figure = Figure(figsize=(WIDTH, 1.1 + 0.45 * len(archs)))
    axes = figure.subplots()
    for place, look in enumerate(variants):
        mine = cells[cells["variant"] == look.variant]
        offset = 0.75 * (place - (len(variants) - 1) / 2) / len(variants)
        y = [archs.index(arch) + offset for arch in mine["arch"]]
        mean, low, high = (mine[name].to_numpy() for name in ("mean", "low", "high"))
        reach = np.stack([mean - low, high - mean])  # nan draws no bar
        axes.errorbar(mean, y, xerr=reach, elinewidth=0.9, capsize=2, **look.point)
    axes.set_yticks(range(len(archs)), [arch_label(arch) for arch in archs])
    axes.set_ylim(len(archs) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for boundary in range(1, len(archs)):
        axes.axhline(boundary - 0.5, color="#bbbbbb", linewidth=0.5)
    axes.set_xlabel("Test accuracy (%)")
    name = figure_name(dataset, row)
    finish(figure, name, [entry(look, look.point) for look in variants])
    title = (
        f"Accuracy of the variants, {name}: mean over seeds and its 95% interval (Student's t, cut "
        "at 0 and 100%; none for one seed)"
    )
    limits = notes.intervals(cells)
    title += f". {' '.join(limits)}" if limits else ""
    return Drawing(figure_key("variants", dataset, row), title, figure, cells)


def _parameters(cells: pd.DataFrame) -> Drawing:
    """Accuracy over parameters, with the paper's points, hollow, where it has the cell."""
    dataset, row = cells.loc[0, ["dataset", "row"]]
    keys = zip(cells["dataset"], cells["arch"], cells["variant"], strict=True)
    cells = cells.assign(published=[PUBLISHED.get(key, (np.nan,))[0] for key in keys])
    sizes = cells["parameters"] / 1e6
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots()
    handles = []
    for look in looks(cells["variant"]):
        mine = cells["variant"] == look.variant
        hollow = look.point | {"markerfacecolor": "none", "markersize": 7}
        axes.plot(sizes[mine], cells.loc[mine, "published"], **hollow)
        axes.plot(sizes[mine], cells.loc[mine, "mean"], **look.point)
        handles.append(entry(look, look.point))
    axes.set(xscale="log", xlabel="Parameters (millions)", ylabel="Test accuracy (%)")
    axes.margins(y=0.14)
    room = max(1.8, (sizes.max() / sizes.min()) ** 0.25)  # for names, however close the sizes are
    axes.set_xlim(sizes.min() / room, sizes.max() * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_numbers(axes.xaxis)
    _label_archs(axes, cells)
    name = figure_name(dataset, row)
    title = f"Accuracy over parameters, {name}: mean over seeds"
    if cells["published"].notna().any():
        title += ", and hollow the paper's"
        hollow = {"color": "#777777", "markerfacecolor": "none", "linestyle": "none"}
        handles.append(Line2D([], [], marker="o", label="paper", **hollow))
    finish(figure, name, handles)
    return Drawing(figure_key("parameters", dataset, row), title, figure, cells)


def _label_archs(axes: Axes, cells: pd.DataFrame) -> None:
    """The name of each architecture above its best point, to the outer side of one with about as
    many parameters.
    """
    tops = cells.assign(top=cells[["mean", "published"]].max(axis=1))
    tops = tops.groupby("arch", observed=True)[["parameters", "top"]].max()
    tops = tops.sort_values("parameters")
    decades = np.log10(tops["parameters"].to_numpy())
    left = np.diff(decades, prepend=-np.inf) < 0.35
    right = np.diff(decades, append=np.inf) < 0.35
    for (arch, top), near_left, near_right in zip(tops.iterrows(), left, right, strict=True):
        side = "center" if near_left == near_right else "left" if near_left else "right"
        axes.annotate(
            arch_label(arch),
            (top["parameters"] / 1e6, top["top"]),
            (0, 14 if near_left and near_right else 6),
            textcoords="offset points",
            ha=side,
            fontsize=6.5,
        )
