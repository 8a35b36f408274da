"""Draw small charts of learning curves as SVG, whose points show their values, for the live page.

A line is at most 7 KB of text, made in a fraction of a millisecond, that a browser draws in no time
(docs/page.md compares that with figures of matplotlib's and libraries of charts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 350, 10, 146  # of the axes
MOST = 1e100  # beyond it differences of two values are no numbers
POINTS = 60  # of a line, at most: more is not seen
Place = Callable[[float, float], tuple[float, float]]
COLORS = 8  # classes c0 to c7 of the page's style


@dataclass
class Line:
    """Holds a curve: a value an epoch, nan where nothing was measured."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """Return what can be drawn, thinned out but for its ends."""
        pairs = zip(self.epochs, self.values, strict=True)
        known = [(x, y) for x, y in pairs if abs(x) < MOST and abs(y) < MOST]  # nan is neither
        step = math.ceil(len(known) / POINTS) or 1
        thin = known[::-1][::step][::-1]
        return thin if thin[:1] == known[:1] else [known[0], *thin]


def chart(title: str, lines: Sequence[Line], unit: str = "") -> Markup:
    """Return a chart of `lines` over epochs, and below it what each ends with."""
    drawn = [
        (i % COLORS, line, points) for i, line in enumerate(lines) if (points := line.points())
    ]
    if not drawn:
        return Markup("")
    everything = [point for _, _, points in drawn for point in points]
    xs, ys = zip(*everything, strict=True)
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (RIGHT - LEFT) * (x - x_low) / (x_high - x_low)
        return across, BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low)

    parts = [_axes(place, y_ticks, x_low, x_high)]
    for color, line, points in drawn:
        spots = [(*place(x, y), x, y) for x, y in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _, _ in spots)
        parts.append(f'<polyline class="line c{color}" points="{path}"/>')
        for a, b, x, y in spots:
            said = escape(f"{line.name}, epoch {x:g}: {y:.4g}{unit}")
            spot = f'<circle class="spot c{color}" cx="{a:.1f}" cy="{b:.1f}" r="3">'
            parts.append(f"{spot}<title>{said}</title></circle>")
    legend = "".join(
        f'<li><span class="key c{color}"></span>{escape(line.name)}: '
        f"{points[-1][1]:.4g}{unit} after epoch {points[-1][0]:g}</li>"
        for color, line, points in drawn
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    caption = f"<figcaption>{escape(title)}<ul>{legend}</ul></figcaption>"
    return Markup(f'<figure class="chart">{svg}{"".join(parts)}</svg>{caption}</figure>')


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers from at most `low` to at least `high`."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first = math.floor(low / step)
    count = max(1, math.ceil(high / step - 1e-9) - first)
    return [step * (first + i) for i in range(count + 1)]


def _axes(place: Place, y_ticks: Sequence[float], x_low: float, x_high: float) -> str:
    """Return lines and numbers of a chart, whose points are where `place` says."""
    parts = []
    for y in y_ticks:
        _, b = place(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{b:.1f}" y2="{b:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{b + 3.5:.1f}" class="y">{y:.6g}</text>')
    for x in sorted({x_low, round((x_low + x_high) / 2), x_high}):
        a, _ = place(x, y_ticks[0])
        parts.append(f'<text x="{a:.1f}" y="{BOTTOM + 15}" class="x">{x:g}</text>')
    return "".join(parts)
