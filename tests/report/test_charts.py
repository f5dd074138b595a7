"""Charts: thinning that keeps extremes and gaps, and scales of any finite numbers."""

import re

import pytest

from diffusion_jax.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    Point,
    Strip,
    chart,
    thinned,
)


def test_thinning_keeps_ends_spikes_and_gaps() -> None:
    points: list[Point] = [(float(i), 1.0 + (i % 7) / 10) for i in range(10_000)]
    points[1234], points[8765], points[5000] = (1234.0, 99.0), (8765.0, -5.0), (5000.0, None)
    kept = thinned(points, 400)
    assert len(kept) <= 400 and kept == sorted(kept, key=lambda p: p[0])
    assert {points[i] for i in (0, 1234, 5000, 8765, 9999)} <= {*kept}
    assert thinned(points[:400], 400) == points[:400]


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [3.0, 3.0],
        [1e-300, 1e300],
        [-1e299, 1e299],
        [1e-9, 1e9],
        [1e6, 1e6 + 1e-3],
        [5.0, None],
    ],
)
def test_a_chart_of_any_finite_numbers_stays_inside_with_readable_ticks(values: list) -> None:
    points = [(float(i), y) for i, y in enumerate(values)]
    made = chart("title", "x", [Curve("a", points, 0)])
    assert made is not None
    for number in re.findall(r"[ML](\S+) ([-\d.e]+)", made.lines[0].path):
        assert LEFT <= float(number[0]) <= WIDTH and 0 <= float(number[1]) <= HEIGHT
    assert len(made.y_ticks) <= 9 and all("nan" not in text for _, text in made.y_ticks)


def test_an_axis_of_few_numbers_of_steps_is_marked_at_these() -> None:
    points = [(float(n), 1.0 / n) for n in (10, 20, 40)]
    made = chart("title", "steps", [Curve("a", points, 0)], log_x=True)
    assert made is not None and [text for _, text in made.x_ticks] == ["10", "20", "40"]


def test_a_strip_is_the_area_between_its_edges_and_is_within_the_chart() -> None:
    strip = Strip("expected", [(1.0, 1.0, 4.0), (3.0, 2.0, 5.0)], 1)
    made = chart("title", "x", [Curve("a", [(2.0, 3.0)], 0)], strips=[strip], log_y=False)
    assert made is not None
    (band,) = made.bands
    corners = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", band.path)]
    left, right, low, high = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    assert corners == [
        (left, low),
        (right, pytest.approx(low + (high - low) / 4, abs=0.05)),
        (right, high),
        (left, pytest.approx(low + 3 * (high - low) / 4, abs=0.05)),
    ]
    assert band.path.endswith("Z") and "expected: 1 to 4 at first, 2 to 5 at last" in made.said


def test_without_a_finite_value_there_is_no_chart() -> None:
    assert chart("title", "x", [Curve("a", [(0.0, None), (1.0, float("nan"))], 0)]) is None
