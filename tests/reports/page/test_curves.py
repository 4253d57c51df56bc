"""Ticks and geometry of plots, by hand."""

from __future__ import annotations

import pytest

from pyengine.reports.page.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, plot_of
from pyengine.reports.page.frontier import frontier
from pyengine.reports.page.ticks import labels, ticks


@pytest.mark.parametrize(
    ("low", "high", "whole", "texts"),
    [
        (0.0, 1.0, False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.06, 0.07, False, ["-0.05", "0.00", "0.05"]),
        (0.5, 1.5, True, ["1"]),
        (-3.0, 1000.0, True, ["0", "500", "1000"]),
        (0.0, 3e-5, False, ["0", "1e-05", "2e-05", "3e-05"]),
        (2.0, 2.0, False, ["2"]),
    ],
)
def test_ticks(low, high, whole, texts):
    assert labels(ticks(low, high, whole=whole)) == texts


def test_points_lie_within_their_axes():
    """Of rounds 1 to 3 the middle one is in the middle; y grows downwards, bars are within."""
    plot = plot_of([Series("a", [(1, 0.0), (2, 1.0), (3, 0.5)], {1: 0.2}), Series("b", [])])
    (curve,) = plot.curves
    xs, ys = [m.x for m in curve.marks], [m.y for m in curve.marks]
    assert xs[1] == pytest.approx((LEFT + WIDTH - RIGHT) / 2)
    assert LEFT < xs[0] < xs[2] < WIDTH - RIGHT
    assert ys[1] < ys[2] < ys[0]
    assert ys[1] > TOP
    low, high = curve.marks[0].bar
    assert high < ys[0] < low < HEIGHT - BOTTOM
    assert low - ys[0] == pytest.approx(ys[0] - high, abs=0.02)
    assert curve.marks[0].text == "a, round 1: 0 ± 0.2"
    assert curve.path.split() == [f"{x},{y}" for x, y in zip(xs, ys, strict=True)]
    assert [tick.label for tick in plot.x_ticks] == ["1", "2", "3"]


def test_many_points_become_means_of_neighbours():
    plot = plot_of([Series("a", [(r, float(r % 2)) for r in range(600)])])
    assert plot.merged == 2
    (curve,) = plot.curves
    assert curve.marks == []
    assert len(curve.path.split()) == 300
    assert len({point.split(",")[1] for point in curve.path.split()}) == 1  # each mean is 1/2


def test_a_plot_of_one_point_and_of_none():
    (curve,) = plot_of([Series("a", [(3, 7.0)])]).curves
    assert curve.marks[0].x == pytest.approx((LEFT + WIDTH - RIGHT) / 2)
    assert plot_of([Series("a", [])]) is None


def test_frontier_steps():
    """At KL 1 the reward is 0.2, which 3 exceeds; 2 is below what was had for less."""
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.1), (4.0, 0.4)]
    assert frontier(points) == [(1.0, 0.2), (3.0, 0.2), (3.0, 0.5), (4.0, 0.5)]
    assert frontier([]) == []
