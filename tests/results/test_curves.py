"""The small charts of the live page."""

import math
import re

import pytest

from resnests.results.curves import POINTS, Line, chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 97, [0, 20, 40, 60, 80, 100]),
        (-2, 3, [-2, -1, 0, 1, 2, 3]),
        (91.2, 91.4, [91.2, 91.3, 91.4]),
    ],
)
def test_ticks_are_round_and_hold_what_is_drawn(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0, 5, -5, 1e-300, 1e99, -1e99, 91.2])
def test_one_value_has_ticks_around_it_too(value):
    found = ticks(value, value)
    assert 2 <= len(found) <= 7
    assert found[0] <= value <= found[-1]
    assert len({*found}) == len(found)


def test_a_line_is_thinned_out_but_for_its_ends():
    line = Line("x", range(1, 1001), [float(i) for i in range(1000)])
    points = line.points()
    assert len(points) <= POINTS + 1
    assert (points[0], points[-1]) == ((1, 0.0), (1000, 999.0))
    assert Line("x", [1, 2, 3], [math.nan, 2.0, math.inf]).points() == [(2, 2.0)]
    assert Line("x", [], []).points() == []


def test_a_chart_has_points_within_its_axes_and_says_their_values():
    made = str(chart("Loss", [Line("<a>", [1, 2], [0.5, 0.25]), Line("b", [], [])], "%"))
    assert "<title>&lt;a&gt;, epoch 2: 0.25%</title>" in made
    assert "&lt;a&gt;: 0.25% after epoch 2" in made
    assert re.findall('class="x">(.+?)<', made) == ["1", "2"]
    places = re.findall('cx="(.+?)" cy="(.+?)"', made)
    assert places == [("44.0", "10.0"), ("350.0", "123.3")]
    assert chart("Loss", [Line("b", [], [])]) == ""


@pytest.mark.parametrize("huge", [1e308, -1e308, 1e100])
def test_what_no_axis_can_hold_is_not_drawn(huge):
    assert chart("Loss", [Line("a", [1, 2], [huge, -huge])]) == ""
    assert chart("Loss", [Line("a", [huge, 1e308], [1, 2])]) == ""
    assert "0.5 after epoch 2" in chart("Loss", [Line("a", [1, 2, 3], [huge, 0.5, -huge])])
