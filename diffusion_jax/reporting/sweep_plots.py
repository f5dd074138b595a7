"""The picture of a sweep: quality against network evaluations, and distances against precision."""

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
      nfe: Network evaluations an image; None if not known.
      figures: Figures by name, with standard errors as NAME_stderr.
    """

    line: str
    label: str
    nfe: float | None
    figures: dict[str, float]


def save_sweep(path: Path, points: Sequence[SweepPoint], figures: Sequence[str]) -> None:
    """Draws each figure against the evaluations; if there are precision and a distance, also one against the other.

    Args:
      path: A .png file.
      points: All points.
      figures: Names of the figures.
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
        _against_cost(ax, points, name)
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


def _against_cost(ax, points: Sequence[SweepPoint], name: str) -> None:  # pyright: ignore
    for line, members in _lines(points).items():
        known = sorted((p for p in members if p.nfe is not None), key=lambda p: p.nfe or 0)
        errors = [p.figures.get(f"{name}_stderr", np.nan) for p in known]
        ax.errorbar(
            [p.nfe for p in known],
            [p.figures[name] for p in known],
            yerr=np.nan_to_num(errors),
            marker="o",
            markersize=4,
            linewidth=1,
            capsize=2,
            label=line or None,
        )
    ax.set(xlabel="network evaluations an image", ylabel=name)
    costs = sorted({p.nfe for p in points if p.nfe is not None})
    if len(costs) > 2:
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks(costs, [f"{cost:g}" for cost in costs], fontsize="small")
    ax.grid(alpha=0.3)


def _against_each_other(ax, points: Sequence[SweepPoint], x: str, y: str) -> None:  # pyright: ignore
    for members in _lines(points).values():
        ax.plot([p.figures[x] for p in members], [p.figures[y] for p in members], "o-", ms=4, lw=1)
        for p in members:
            at = (p.figures[x], p.figures[y])
            ax.annotate(p.label, at, fontsize=6, xytext=(3, 3), textcoords="offset points")
    ax.set(xlabel=x, ylabel=y)
    ax.margins(x=0.15)
    ax.grid(alpha=0.3)
