"""Draw learning curves, accuracies, and accuracy over parameters."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnests.errors import require
from resnests.paper import arch_label
from resnests.results import notes
from resnests.results.cells import CELL, Cell, names, row_name
from resnests.results.measured import ACCURACY, Measured
from resnests.results.stats import against_paper, cell_statistics, with_interval
from resnests.results.style import (
    STYLE,
    WIDTH,
    Drawing,
    VariantStyle,
    figure_key,
    figure_name,
    legend_entry,
    plain_numbers,
    spread,
    title_and_legend,
    variant_styles,
)
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, BrokenRecord

MOST = 12  # cells in one figure, that lines can be told apart


def drawings(
    runs: pd.DataFrame, problems: list[str], what: Measured = ACCURACY, together: bool = False
) -> Iterator[Drawing]:
    """Draw all figures of labelled `runs`, those of numbers of `what`, one by one; add a line to
    `problems` for each history that cannot be read.
    """
    complete = runs[runs["status"] == "complete"]
    if together:
        yield from _together(complete[~complete["given"]], problems, what)
    for _, mine in complete.groupby(["dataset", "row"], observed=True):
        cells = with_interval(cell_statistics(mine, what), what=what).reset_index()
        if cells.empty:
            continue
        cells["published"] = _published(mine, cells) if what.is_accuracy else np.nan
        with mpl.rc_context(STYLE):
            yield _variants(cells, what)
            yield _parameters(cells, what)
        for _, inside in mine[~mine["given"]].groupby("arch", observed=True):
            data = _histories(inside, problems, what)
            if len(data):
                with mpl.rc_context(STYLE):
                    yield _curves(data, variant_styles(inside["variant"]), what)


def _together(runs: pd.DataFrame, problems: list[str], what: Measured) -> Iterator[Drawing]:
    """Draw the curves of all cells of a data set in one figure; raise a UserError for too many."""
    for dataset, mine in runs.groupby("dataset", observed=True):
        data = _histories(mine, problems, what)
        if data.empty:
            continue
        one = data["variant"].nunique() == 1  # as of networks of one's own
        cells = [
            row_name(cell.arch, cell.row) if one else notes.cell_name(cell)
            for cell in map(Cell._make, data[CELL].itertuples(index=False))
        ]
        known = list(dict.fromkeys(cells))
        expected = f"words that choose at most {MOST} cells, such as arch=resnet20"
        require(len(known) <= MOST, "--together", f"{len(known)} cells of {dataset}", expected)
        styles = [VariantStyle(name, index) for index, name in enumerate(known)]
        with mpl.rc_context(STYLE):
            yield _curves(data.assign(variant=cells), styles, what, str(dataset))


def _published(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.Series:
    """Return the paper's number for each of the `cells` of `runs`, nan where it has none or where
    ours is no reproduction.
    """
    beside = against_paper(runs)
    same = beside[beside["deviations"] == ""].set_index(CELL)["published"]
    return same.reindex(pd.MultiIndex.from_frame(cells[CELL])).to_numpy(float)


def _histories(runs: pd.DataFrame, problems: list[str], what: Measured = ACCURACY) -> pd.DataFrame:
    """Return, over the seeds of each cell, epoch, n, and mean and sample standard deviation of each
    metric per epoch.
    """
    frames, metrics = [], tuple(dict.fromkeys((*METRICS, what.column)))
    for key, cell in runs.groupby(CELL, observed=True):
        tables = []
        for path, epochs in zip(cell["path"], cell["epochs"], strict=True):
            try:
                columns = RunDirectory(path).read_history(("epoch", *metrics))
                history = np.array(list(columns.values()))
                if history.shape[1] != epochs:
                    raise BrokenRecord(f"history.csv has {history.shape[1]} epochs, not {epochs}")
                tables.append(history)
            except BrokenRecord as error:
                problems.append(f"{path}: left out of the learning curves, {error}")
        if not tables:
            continue
        # Runs that trainer.patience ended differ in length: shown are the epochs that all have.
        shared = min(table.shape[1] for table in tables)
        cube = np.stack([table[:, :shared] for table in tables])  # (seeds, 1 + metrics, epochs)
        frame = pd.DataFrame(Cell(*key)._asdict() | {"epoch": cube[0, 0].astype(int)})
        frame["n"] = len(cube)
        for name, values in zip(metrics, cube[:, 1:].swapaxes(0, 1), strict=True):
            frame[f"{name}_mean"] = values.mean(axis=0)
            frame[f"{name}_std"] = values.std(axis=0, ddof=1) if len(cube) > 1 else np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _curves(
    data: pd.DataFrame, styles: list[VariantStyle], what: Measured, together: str | None = None
) -> Drawing:
    """Draw training loss and `what` of one architecture, or of all cells of the data set
    `together`.
    """
    cell = Cell(*data.loc[0, CELL])
    figure = Figure(figsize=(WIDTH, 3.9))
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    curves = dict(list(data.groupby("variant")))
    styles = [style for style in styles if style.variant in curves]
    means = data["train_loss_mean"]
    if 0 < 8 * means.min() < means.max():
        loss.set_yscale("log")
    for place, style in enumerate(styles):
        shift = 0.5 * (place - (len(styles) - 1) / 2) / len(styles)
        _curve(loss, curves[style.variant], "train_loss", style, shift)
        _curve(accuracy, curves[style.variant], what.column, style, shift, what.bounds[1])
    _scale(loss, accuracy, data, what)
    name = figure_name(together or cell.dataset, "" if together else row_name(cell.arch, cell.row))
    single = data["epoch"].nunique() == 1
    drawn = [legend_entry(style, style.point if single else style.line) for style in styles]
    title_and_legend(figure, name, drawn)
    seeds = notes.seeds(data["n"])
    if data["n"].max() > 1:
        kind = "bar" if single else "band"
        seeds = f"mean of {seeds}, {kind} of one sample standard deviation to either side"
    parts = [together, "together"] if together else [cell.dataset, cell.arch, cell.row]
    key = figure_key("curves", *parts)
    return Drawing(key, f"Learning curves, {name}: {seeds}", figure, data)


def _scale(loss: Axes, accuracy: Axes, data: pd.DataFrame, what: Measured) -> None:
    """Set axes that show the end of training; the first tenth of the epochs may leave the panel of
    accuracies.
    """
    loss.set(ylabel="Training loss")
    if loss.get_yscale() == "log":
        plain_numbers(loss.yaxis)
    accuracy.set(ylabel=what.axis, xlabel="Epoch")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if data["epoch"].nunique() == 1:
        accuracy.set_xlim(data["epoch"].iloc[0] - 0.5, data["epoch"].iloc[0] + 0.5)
    mean, std = data[f"{what.column}_mean"], data[f"{what.column}_std"].fillna(0)
    settled = data["epoch"] > 0.1 * data["epoch"].max()
    low = (mean - std)[settled].clip(lower=what.bounds[0]).min()
    high = (mean + std)[settled].clip(upper=what.bounds[1]).max()
    if mean[settled].isna().all():
        low, high = 0, 100
    margin = 0.05 * (high - low) + 0.1**what.digits * 20
    accuracy.set_ylim(low - margin, high + margin)


def _curve(
    axes: Axes,
    curve: pd.DataFrame,
    metric: str,
    style: VariantStyle,
    shift: float,
    most: float = np.inf,
) -> None:
    """Draw a line with its band; a single epoch as a point with a bar, beside its place by `shift`.

    Markers stand at other epochs on each line, so that none hides another.
    """
    curve = curve[curve[f"{metric}_mean"].notna()]
    x, y, std = (curve[name].to_numpy() for name in ("epoch", f"{metric}_mean", f"{metric}_std"))
    low, high = y - std, y + std
    if (y >= 0).all():
        low = np.maximum(low, 0)
    if axes.get_yscale() == "log":
        low = np.maximum(low, y / 10)  # the axis ends above 0
    high = np.minimum(high, most)
    if len(x) == 1:
        reach = np.stack([y - low, high - y])  # nan draws no bar
        axes.errorbar(x + shift, y, yerr=reach, elinewidth=0.9, capsize=2, **style.point)
        return
    every = max(1, len(x) // 6)
    axes.plot(x, y, markevery=(style.index * every // 4 % every, every), **style.line)
    axes.fill_between(x, low, high, color=style.line["color"], alpha=0.2, linewidth=0)


def _variants(cells: pd.DataFrame, what: Measured) -> Drawing:
    """Draw accuracy of each variant, architecture by architecture, with intervals."""
    dataset, row = cells.loc[0, ["dataset", "row"]]
    archs, variants = names(cells["arch"]), variant_styles(cells["variant"])
    figure = Figure(figsize=(WIDTH, 1.1 + 0.45 * len(archs)))
    axes = figure.subplots()
    for place, style in enumerate(variants):
        mine = cells[cells["variant"] == style.variant]
        offset = 0.75 * (place - (len(variants) - 1) / 2) / len(variants)
        y = [archs.index(arch) + offset for arch in mine["arch"]]
        mean, low, high = (mine[name].to_numpy() for name in ("mean", "low", "high"))
        reach = np.stack([mean - low, high - mean])  # nan draws no bar
        axes.errorbar(mean, y, xerr=reach, elinewidth=0.9, capsize=2, **style.point)
    axes.set_yticks(range(len(archs)), [arch_label(arch) for arch in archs])
    axes.set_ylim(len(archs) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for boundary in range(1, len(archs)):
        axes.axhline(boundary - 0.5, color="#bbbbbb", linewidth=0.5)
    axes.set_xlabel(what.axis)
    name = figure_name(dataset, row)
    title_and_legend(figure, name, [legend_entry(style, style.point) for style in variants])
    cut = ", cut at 0 and 100%" if what.unit == "%" else ""
    title = (
        f"{_title(what)} of the variants {notes.of_epoch(what.epoch)}, {name}: mean over "
        f"{notes.seeds(cells['n'])} and its 95% interval (Student's t{cut}; none for one seed)"
    )
    limits = notes.intervals(cells)
    title += f". {' '.join(limits)}" if limits else ""
    return Drawing(figure_key("variants", dataset, row), title, figure, cells)


def _parameters(cells: pd.DataFrame, what: Measured) -> Drawing:
    """Draw accuracy over parameters, with the paper's points, hollow, where it has the cell."""
    dataset, row = cells.loc[0, ["dataset", "row"]]
    sizes = cells["parameters"] / 1e6
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.subplots()
    handles = []
    variants = variant_styles(cells["variant"])
    for place, style in enumerate(variants):
        mine = cells["variant"] == style.variant
        hollow = style.point | {"markerfacecolor": "none", "markersize": 7}
        axes.plot(sizes[mine], cells.loc[mine, "published"], **hollow)
        # What is drawn first is larger, so that a point on the same place does not hide it.
        size = STYLE["lines.markersize"] + 2.5 * (1 - (place + 1) / len(variants))
        axes.plot(sizes[mine], cells.loc[mine, "mean"], **style.point, markersize=size)
        handles.append(legend_entry(style, style.point))
    is_frozen = "frozen_parameters" in cells and cells["frozen_parameters"].notna().any()
    which = "Trained parameters" if is_frozen else "Parameters"
    axes.set(xscale="log", xlabel=f"{which} (millions)", ylabel=what.axis)
    axes.margins(y=0.14)
    room = max(1.8, (sizes.max() / sizes.min()) ** 0.25)  # for names, however close the sizes are
    axes.set_xlim(sizes.min() / room, sizes.max() * room)
    plain_numbers(axes.xaxis)
    _label_archs(axes, cells)
    name = figure_name(dataset, row)
    title = f"{_title(what)} {notes.of_epoch(what.epoch)} over parameters, {name}: "
    title += f"mean over {notes.seeds(cells['n'])}"
    if cells["published"].notna().any():
        title += ", and hollow the paper's"
        hollow = {"color": "#777777", "markerfacecolor": "none", "linestyle": "none"}
        handles.append(Line2D([], [], marker="o", label="paper", **hollow))
    title_and_legend(figure, name, handles)
    return Drawing(figure_key("parameters", dataset, row), title, figure, cells)


def _title(what: Measured) -> str:
    return "Accuracy" if what.is_accuracy else f"{what.words[0].upper()}{what.words[1:]}"


def _label_archs(axes: Axes, cells: pd.DataFrame) -> None:
    """Write the name of each architecture above the axes, with a line to its best point.

    Names of architectures of about the same size move apart, so that none covers another.
    """
    tops = cells.assign(top=cells[["mean", "published"]].max(axis=1))
    best = tops.groupby("arch", observed=True)["top"].idxmax()
    tops = tops.loc[best].set_index("arch").sort_values("parameters")
    low, high = np.log10(axes.get_xlim())
    places = (np.log10(tops["parameters"].to_numpy() / 1e6) - low) / (high - low)
    places = spread(places, min(0.055, 1 / len(places)))
    for (arch, top), place in zip(tops.iterrows(), places, strict=True):
        axes.annotate(
            arch_label(arch),
            (top["parameters"] / 1e6, top["top"]),
            (place, 1.03),
            textcoords="axes fraction",
            rotation=45,
            rotation_mode="anchor",
            fontsize=6.5,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.4, "relpos": (0, 0)},
        )
