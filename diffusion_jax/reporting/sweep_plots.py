"""The picture of a sweep: quality against network evaluations, and distances against precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.lifecycle.ownership import owned_write


class SweepPoint(NamedTuple):
    """A point of a sweep.

    Attributes:
      line: What points of one line have in common, such as "guidance_scale=2".
      label: What tells them apart, such as "num_steps=10".
      x: Where it stands on the horizontal axis; None if that is not known.
      figures: Figures by name, with standard errors as NAME_stderr.
    """

    line: str
    label: str
    x: float | None
    figures: dict[str, float]


def save_sweep(path: Path, points: Sequence[SweepPoint], figures: Sequence[str], axis: str) -> None:
    """Draws each figure against x; if there are precision and a distance, also one against the other.

    Args:
      path: A .png file.
      points: All points.
      figures: Names of the figures.
      axis: What x is.
    """
    from matplotlib.figure import Figure

    precision = next((name for name in figures if name.startswith("precision_")), None)
    distance = next((name for name in figures if name == "fid" or name.startswith("fd_")), None)
    trade = [(precision, distance)] if precision and distance else []
    panels = len(figures) + len(trade)
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(1 + 4.2 * columns, 3.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, name in zip(axes, figures, strict=False):
        _against_x(ax, points, name)
        ax.set(xlabel=axis)
    for ax, (x, y) in zip(axes[len(figures) :], trade, strict=False):
        _against_each_other(ax, points, x, y)
    for ax in axes[panels:]:
        ax.set_axis_off()
    if len({point.line for point in points}) > 1:
        axes[0].legend(fontsize="x-small")
    with owned_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _lines(points: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    lines: dict[str, list[SweepPoint]] = {}
    for point in points:
        lines.setdefault(point.line, []).append(point)
    return lines


def _against_x(ax, points: Sequence[SweepPoint], name: str) -> None:  # pyright: ignore
    for line, members in _lines(points).items():
        known = sorted((p for p in members if p.x is not None), key=lambda p: p.x or 0)
        errors = [p.figures.get(f"{name}_stderr", np.nan) for p in known]
        ax.errorbar(
            [p.x for p in known],
            [p.figures[name] for p in known],
            yerr=np.nan_to_num(errors),
            marker="o",
            markersize=4,
            linewidth=1,
            capsize=2,
            label=line or None,
        )
    ax.set(ylabel=name)
    xs = sorted({p.x for p in points if p.x is not None})
    if xs and xs[0] > 0 and xs[-1] > 4 * xs[0]:
        ax.set_xscale("log")
        ax.minorticks_off()
        ticks = _apart(xs)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    values = [p.figures[name] for p in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")
    ax.grid(alpha=0.3)


def _apart(xs: Sequence[float]) -> list[float]:
    """Returns some of the numbers, in ascending order, whose labels do not overlap on a logarithmic axis."""
    least, chosen = (xs[-1] / xs[0]) ** (1 / 12), [xs[0]]
    for x in xs[1:]:
        if x > least * chosen[-1]:
            chosen.append(x)
    return chosen


def _against_each_other(ax, points: Sequence[SweepPoint], x: str, y: str) -> None:  # pyright: ignore
    for members in _lines(points).values():
        ax.plot([p.figures[x] for p in members], [p.figures[y] for p in members], "o-", ms=4, lw=1)
        for p in members:
            at = (p.figures[x], p.figures[y])
            ax.annotate(p.label, at, fontsize=6, xytext=(3, 3), textcoords="offset points")
    ax.set(xlabel=x, ylabel=y)
    ax.margins(x=0.3)
    ax.grid(alpha=0.3)
