"""Charts as numbers that the template draws in SVG: scales, ticks, and curves thinned so that spikes survive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.report.blocks import Chart, Line

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 46
MOST_POINTS = 800  # Of all curves of a chart together, about twice as many as it has pixels.
MARKED = 60  # Largest number of points that can be told apart on a line.
MOST_TICKS = 6

Point = tuple[float, float | None]


class Curve(NamedTuple):
    """A curve before it is scaled.

    Attributes:
      label: Its name.
      points: x and y, ascending in x; a y of None leaves a gap.
      color: Number of its color.
      marked: Whether its points are marked, if they are few.
    """

    label: str
    points: Sequence[Point]
    color: int
    marked: bool = False


class Strip(NamedTuple):
    """An area between two curves, before it is scaled.

    Attributes:
      label: Its name.
      points: x, the lower and the upper edge, all finite; ascending in x.
      color: Number of its color.
    """

    label: str
    points: Sequence[tuple[float, float, float]]
    color: int


def chart(
    title: str,
    axis: str,
    curves: Sequence[Curve],
    *,
    strips: Sequence[Strip] = (),
    log_x: bool = False,
    log_y: bool | None = None,
) -> Chart | None:
    """Returns a chart of the curves; None if no point of them is finite.

    Args:
      title: What y is.
      axis: What x is.
      curves: The curves.
      strips: Areas behind them.
      log_x: Whether x is logarithmic, if all of it is positive.
      log_y: Whether y is; None: where all of it is positive and the largest is over 8 times the smallest.
    """
    curves = [curve._replace(points=_finite(curve.points)) for curve in curves]
    curves = [curve for curve in curves if any(y is not None for _, y in curve.points)]
    if not curves:
        return None
    gaps = sum(y is None for curve in curves for _, y in curve.points)
    each = max(40, MOST_POINTS // len(curves))
    shown = [curve._replace(points=thinned(curve.points, each)) for curve in curves]
    before, after = (sum(len(curve.points) for curve in some) for some in (curves, shown))
    edges = [(x, y) for strip in strips for x, *ends in strip.points for y in ends]
    known = [(x, y) for curve in shown for x, y in curve.points if y is not None]
    xs, ys = ([point[i] for point in (*known, *edges)] for i in (0, 1))
    if log_y is None:
        log_y = min(ys) > 0 and max(ys) > 8 * min(ys)
    across = _Scale(xs, LEFT, WIDTH - RIGHT, log_x and min(xs) > 0, True)
    up = _Scale(ys, HEIGHT - BOTTOM, TOP, log_y and min(ys) > 0, False)
    remarks = [f"{gaps} values that are not finite are left out"] if gaps else []
    if after < before:
        remarks.append(f"{before:,} points are thinned to {after:,}; extremes are kept")
    return Chart(
        title,
        axis,
        [_line(curve, across, up) for curve in shown],
        [_band(strip, across, up) for strip in strips],
        across.ticks(),
        up.ticks(),
        "; ".join([*map(_in_words, curves), *map(_strip_in_words, strips)]),
        ". ".join(remarks),
    )


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Returns at most so many points: the first, least, greatest and last of each stretch, and its first gap."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    edges = np.linspace(0, len(points), max(1, most // 5) + 1).astype(int)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        gaps = [i for i in range(start, stop) if points[i][1] is None]
        known = sorted({*range(start, stop)} - {*gaps})
        chosen = {*gaps[:1], *known[:1], *known[-1:]}
        if known:
            chosen |= {choose(known, key=lambda i: points[i][1] or 0.0) for choose in (min, max)}
        kept += [points[i] for i in sorted(chosen)]
    return kept


def shown(value: float) -> str:
    """Returns a number as an axis or a table has it."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


class _Scale:
    """A linear or logarithmic map from values to a side of the chart."""

    def __init__(
        self, values: Sequence[float], start: int, stop: int, log: bool, horizontal: bool
    ) -> None:
        self.log, self.start, self.stop = log, start, stop
        distinct = sorted({*values})
        # A logarithmic axis of few places, such as numbers of steps, is marked at these.
        self.own = distinct if log and len(distinct) <= MOST_TICKS and horizontal else []
        low, high = distinct[0], distinct[-1]
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            room = 0.5 if log else abs(low) / 2 or 1.0
            low, high = low - room, high + room
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        # Each difference on its own, since that of the largest floats is infinite.
        part = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return round(self.start + part * (self.stop - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        values = self.own or (self._decades() if self.log else [])
        if len(values) < 2:
            values = self._even()
        return [(self(value), shown(value)) for value in values]

    def _decades(self) -> list[float]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [digit * 10.0**power for power in powers for digit in digits]
            inside = [v for v in values if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]
            if len(inside) <= MOST_TICKS:
                return inside
        return inside[:: -(-len(inside) // MOST_TICKS)]

    def _even(self) -> list[float]:
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        rough = (high / MOST_TICKS - low / MOST_TICKS) or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
        first = math.ceil(low / step - 1e-9)
        return [
            i * step for i in range(first, first + MOST_TICKS + 2) if i * step <= high + step / 1e6
        ]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [
        (x, y if y is not None and math.isfinite(y) else None)
        for x, y in points
        if math.isfinite(x)
    ]


def _line(curve: Curve, across: _Scale, up: _Scale) -> Line:
    parts, pen = [], "M"
    for x, y in curve.points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{across(x):g} {up(y):g}")
        pen = "L"
    known = [(x, y) for x, y in curve.points if y is not None]
    # A point between two gaps has no line.
    mark = len(known) == 1 or (curve.marked and len(known) <= MARKED)
    dots = [(across(x), up(y), f"{curve.label}: {shown(y)} at {shown(x)}") for x, y in known]
    return Line(curve.label, curve.color, "".join(parts), dots if mark else [])


def _band(strip: Strip, across: _Scale, up: _Scale) -> Line:
    low = [(x, low) for x, low, _ in strip.points]
    high = [(x, high) for x, _, high in strip.points]
    outline = "L".join(f"{across(x):g} {up(y):g}" for x, y in [*low, *reversed(high)])
    return Line(strip.label, strip.color, f"M{outline}Z", [])


def _strip_in_words(strip: Strip) -> str:
    (_, *first), (_, *last) = strip.points[0], strip.points[-1]
    first, last = (f"{shown(low)} to {shown(high)}" for low, high in (first, last))
    return f"{strip.label}: {first} at first, {last} at last"


def _in_words(curve: Curve) -> str:
    known = [y for _, y in curve.points if y is not None]
    return (
        f"{curve.label}: from {shown(known[0])} to {shown(known[-1])}, "
        f"least {shown(min(known))}, greatest {shown(max(known))}"
    )
