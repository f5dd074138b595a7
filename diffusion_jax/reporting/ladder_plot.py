"""A plot of distances against the amount of what degrades images, a panel for each kind of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.lifecycle.ownership import owned_write


class Curve(NamedTuple):
    """One distance on one ladder, with standard errors."""

    amounts: Sequence[float]
    values: Sequence[float]
    stderrs: Sequence[float]


def save_ladders(path: Path, ladders: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draws each distance relative to its largest value on any ladder, since they have other scales.

    Args:
      path: A .png file.
      ladders: Label of the axis of amounts -> name of a distance -> its curve.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(ladders), 4.0), layout="constrained")
    axes = figure.subplots(1, len(ladders), sharey=True, squeeze=False)[0]
    largest: dict[str, float] = {}
    for curves in ladders.values():
        for name, curve in curves.items():
            largest[name] = max(largest.get(name, 0.0), *curve.values)
    for ax, (label, curves) in zip(axes, ladders.items(), strict=True):
        for name, (amounts, values, stderrs) in curves.items():
            top = largest[name] or 1.0
            scaled = [value / top for value in values], [error / top for error in stderrs]
            ax.errorbar(amounts, scaled[0], scaled[1], marker=".", capsize=3, label=name)
        ax.set(xlabel=label)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="distance / largest")
    axes[0].legend(fontsize="small")
    with owned_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
