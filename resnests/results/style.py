"""Style figures: the size of a paper's column, one style a variant, names, titles and legends.

Colours are safe for the colour-blind; markers and dashes repeat what they say, for print in grey.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from resnests.paper import dataset_label, variant_label

WIDTH = 3.3  # inches
LABEL = 48  # characters of a legend that the width has room for
DPI = 300
# The first seven are Okabe and Ito's, the others Tol's. The lengths have no common divisor, so that
# all three together repeat only after 616 variants; the first eleven have colours of their own.
COLORS = (
    "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
    "#882255", "#999933", "#332288", "#AA4499",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = (
    "-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)), (0, (5, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 7.5,
    "axes.labelsize": 7.5, "axes.titlesize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.5, "axes.axisbelow": True,
    "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 4,
    "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@dataclass
class Drawing:
    """Holds a figure, what it shows in words, and the data behind it."""

    key: str  # for file names
    title: str
    figure: Figure
    data: pd.DataFrame

    def render(self, form: str) -> bytes:
        """Return the figure as "png" or "pdf", the same bytes for the same data."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            metadata = {"CreationDate": None} if form == "pdf" else {"Software": None}
            self.figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
        return buffer.getvalue()


@dataclass(frozen=True)
class VariantStyle:
    """Styles a variant, in every figure the same: `index` is its place in the tables."""

    variant: str
    index: int

    @property
    def point(self) -> dict[str, Any]:
        color, marker = COLORS[self.index % len(COLORS)], MARKERS[self.index % len(MARKERS)]
        return {"color": color, "marker": marker, "linestyle": "none"}

    @property
    def line(self) -> dict[str, Any]:
        return self.point | {"linestyle": DASHES[self.index % len(DASHES)]}


def variant_styles(variants: pd.Series) -> list[VariantStyle]:
    """Return the styles of those `variants`, a column of labelled runs or cells, that occur."""
    present = set(variants)
    return [VariantStyle(v, i) for i, v in enumerate(variants.cat.categories) if v in present]


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with numbers such as 0.5 or 20, as many as it has room for."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    beside = decades < 5 and isinstance(axis, YAxis)  # below each other there is more room
    subs = (1.0, 2.0, 5.0) if decades < 3 else (1.0, 3.0) if beside else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def title_and_legend(figure: Figure, title: str, handles: Sequence[Line2D | Patch]) -> None:
    """Put a title and a legend above the axes, where they cover no data."""
    figure.set_layout_engine("constrained")
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(str(handle.get_label()), LABEL)))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns_of([str(handle.get_label()) for handle in handles]),
        columnspacing=0.9,
        handletextpad=0.4,
        handlelength=2.0 if handles[0].get_linestyle() != "None" else 1.0,
        title="\n".join(textwrap.wrap(title, 58)),
        title_fontsize=STYLE["axes.titlesize"],
    )


def columns_of(labels: list[str]) -> int:
    """Return how many columns of a legend, filled one after the other, the figure has room for."""
    for columns in (4 if len(labels) == 4 else 3, 2):
        rows = math.ceil(len(labels) / columns)
        longest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
        if sum(longest) + 5 * columns <= 60:  # characters, handles as 5
            return columns
    return 1


def legend_entry(style: VariantStyle, drawn: dict[str, Any]) -> Line2D:
    """Return the entry of a legend for a variant that is `drawn` as a line or as points."""
    return Line2D([], [], label=variant_label(style.variant), **drawn)


def figure_name(dataset: str, row: str) -> str:
    """Return what the title of a figure names."""
    return f"{dataset_label(dataset)}, {row}" if row else dataset_label(dataset)


def figure_key(*parts: str) -> str:
    """Return a file name of at most 100 characters; a long one keeps its identity by a hash."""
    key = re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, parts)))
    return key if len(key) <= 100 else f"{key[:91]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Return ascending `places`, moved until neighbours are at least `gap` apart.

    Pushing them to the right alone would do, and so would pushing them to the left: the mean of
    both moves each least.
    """
    steps = gap * np.arange(len(places))
    right = np.maximum.accumulate(places - steps)
    left = np.minimum.accumulate((places - steps)[::-1])[::-1]
    return steps + (right + left) / 2
