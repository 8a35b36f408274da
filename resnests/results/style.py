"""How figures look: the size of a paper's column, one look a variant, names, titles and legends.

Colours are Okabe and Ito's, safe for the colour-blind; markers and dashes repeat what they say, for
print in grey.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from resnests.paper import dataset_label, variant_label

WIDTH = 3.3  # inches
DPI = 300
COLORS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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
    """A figure, what it shows in words, and the data behind it."""

    key: str  # for file names
    title: str
    figure: Figure
    data: pd.DataFrame

    def render(self, form: str) -> bytes:
        """The figure as "png" or "pdf", the same bytes for the same data."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            metadata = {"CreationDate": None} if form == "pdf" else {"Software": None}
            self.figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
        return buffer.getvalue()


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, in every figure the same: `index` is its place in the tables."""

    variant: str
    index: int

    @property
    def point(self) -> dict[str, Any]:
        color, marker = COLORS[self.index % len(COLORS)], MARKERS[self.index % len(MARKERS)]
        return {"color": color, "marker": marker, "linestyle": "none"}

    @property
    def line(self) -> dict[str, Any]:
        return self.point | {"linestyle": DASHES[self.index % len(DASHES)]}


def looks(variants: pd.Series) -> list[Look]:
    """The looks of those `variants`, a column of labelled runs or cells, that occur."""
    present = set(variants)
    return [Look(v, i) for i, v in enumerate(variants.cat.categories) if v in present]


def plain_numbers(axis: Axis) -> None:
    """Numbers of a logarithmic axis as 0.5 or 20, not as powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def finish(figure: Figure, title: str, handles: list[Line2D]) -> None:
    """A title and a legend above the axes, where they cover no data."""
    figure.set_layout_engine("constrained")
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=4 if len(handles) == 4 else 3,
        columnspacing=0.9,
        handletextpad=0.4,
        handlelength=2.0 if handles[0].get_linestyle() != "None" else 1.0,
        title="\n".join(textwrap.wrap(title, 58)),
        title_fontsize=STYLE["axes.titlesize"],
    )


def entry(look: Look, style: dict[str, Any]) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=variant_label(look.variant), **style)


def figure_name(dataset: str, row: str) -> str:
    """What the title of a figure names."""
    return f"{dataset_label(dataset)}, {row}" if row else dataset_label(dataset)


def figure_key(*parts: str) -> str:
    """A file name of at most 100 characters; a long one keeps its identity by a hash."""
    key = re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, parts)))
    return key if len(key) <= 100 else f"{key[:91]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
