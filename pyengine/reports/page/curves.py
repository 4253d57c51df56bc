"""Curves as geometry: where lines, marks and ticks of a plot lie. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyengine.reports.page.findings.finding import amount
from pyengine.reports.page.record import Points
from pyengine.reports.page.ticks import labels, ticks

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 38
MOST_POINTS = 300  # of a curve: of more, neighbours are averaged
MOST_MARKS = 60  # of more, marks would hide the line
# Distinguishable for most who see colours differently (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9")
DASHES = ("", "6 4", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Series:
    """One curve of a plot.

    points  marks, in order; joined by a line unless `line` says which points are
    errors  x -> half the length of a bar
    """

    label: str
    points: Points
    errors: Mapping[float, float] = field(default_factory=dict)
    line: Points | None = None
    color: str = COLORS[0]
    dash: str = ""


@dataclass(frozen=True)
class Mark:
    """A point, its bar's ends, and what a pointer over it is told."""

    x: float
    y: float
    text: str
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """path  as SVG's `points` has it"""

    label: str
    color: str
    dash: str
    path: str
    marks: list[Mark]


@dataclass(frozen=True)
class Tick:
    """at  along its axis"""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A plot in units of its own, WIDTH by HEIGHT; y grows downwards.

    merged  how many neighbouring points each one stands for
    """

    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]
    merged: int
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class _Scale:
    """A linear map of [low, high] to [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def plot_of(series: Sequence[Series], x_label: str = "round", whole: bool = True) -> Plot | None:
    """The plot of some curves; None where none has a point.

    whole  whether x counts something
    """
    merged = max((_merging(each) for each in series), default=1)
    drawn = [_merged(each, _merging(each)) for each in series if each.points]
    if not drawn:
        return None
    x = _scale([p for each in drawn for p, _ in _all(each)], LEFT, WIDTH - RIGHT, 0.02)
    lows = [v - each.errors.get(p, 0.0) for each in drawn for p, v in _all(each)]
    highs = [v + each.errors.get(p, 0.0) for each in drawn for p, v in _all(each)]
    y = _scale([*lows, *highs], HEIGHT - BOTTOM, TOP, 0.05)
    return Plot(
        x_label,
        _ticks(x, whole, 8),
        _ticks(y, False, 5),
        [_curve(each, x, y, x_label) for each in drawn],
        merged,
    )


def _all(series: Series) -> Points:
    return [*series.points, *(series.line or [])]


def _merging(series: Series) -> int:
    return math.ceil(len(series.points) / MOST_POINTS)


def _merged(series: Series, size: int) -> Series:
    """Each `size` neighbours as their mean."""
    if size <= 1:
        return series
    parts = [series.points[i : i + size] for i in range(0, len(series.points), size)]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
    return Series(series.label, means, {}, series.line, series.color, series.dash)


def _scale(values: Sequence[float], start: float, end: float, room: float) -> _Scale:
    """With so much room, as a share, beyond the values at either end."""
    low, high = min(values), max(values)
    span = high - low
    if span <= 1e-12 * max(abs(low), abs(high), 1e-300):
        span = abs(low) or 1.0
        low, high = low - span / 2, high + span / 2
    return _Scale(low - room * span, high + room * span, start, end)


def _ticks(scale: _Scale, whole: bool, about: int) -> list[Tick]:
    places = ticks(scale.low, scale.high, about, whole)
    return [Tick(scale(at), text) for at, text in zip(places, labels(places), strict=True)]


def _curve(series: Series, x: _Scale, y: _Scale, x_label: str) -> Curve:
    line = series.points if series.line is None else series.line
    marks = []
    if len(series.points) <= MOST_MARKS or series.line is not None:
        for place, value in series.points:
            error = series.errors.get(place)
            more = "" if error is None else f" ± {amount(error)}"
            bar = None if error is None else (y(value - error), y(value + error))
            text = f"{series.label}, {x_label} {amount(place)}: {amount(value)}{more}"
            marks.append(Mark(x(place), y(value), text, bar))
    path = " ".join(f"{x(place)},{y(value)}" for place, value in line)
    return Curve(series.label, series.color, series.dash, path, marks)
