"""Plots of the variational bound: its terms over time, and rate and distortion (Ho et al., 2020, Figure 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_jax.lifecycle.ownership import owned_write

Values = Float[np.ndarray, " n"]
FEW = 60  # Largest number of points that can be told apart on a line.


def save_terms(path: Path, time: Values, terms: Values, prior: float) -> None:
    """Draws L_{t-1} over t, with L_0 and L_T marked.

    Args:
      path: A .png file.
      time: Start time of each step of the grid, from noise to data.
      terms: Term of each step in bits per dimension; NaN leaves a gap.
      prior: L_T.
    """
    figure, (ax,) = _figure(1, (8.0, 4.5))
    ax.plot(time[:-1], terms[:-1], color="tab:blue", label="$L_{t-1}$", **_line(len(terms)))
    ax.plot(time[-1:], terms[-1:], "o", color="tab:red", label=f"$L_0$ = {terms[-1]:.3g}")
    ax.set(xlabel="$t$", ylabel="bits / dim", yscale="log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    known = terms[np.isfinite(terms) & (terms > 0)]
    if known.size:
        # L_T may be 0 or smaller by orders of magnitude; then only the legend shows it.
        shown = [*known, *([prior] if prior > known.min() / 1000 else [])]
        ax.set_ylim(min(shown) / 2, max(shown) * 2)
        visible = "s" if prior in shown else ""
        ax.plot(time[:1], [prior], visible, color="tab:green", label=f"$L_T$ = {prior:.2g}")
    ax.legend()
    _save(path, figure)


def save_progress(path: Path, steps: Values, rate: Values, rmse: Values) -> None:
    """Draws distortion and rate against reverse steps, the first two panels of Figure 5.

    Args:
      path: A .png file.
      steps: Number of steps done when each step begins.
      rate: Bits per dimension sent when each step begins.
      rmse: Error of x0_hat at that point, in gray levels.
    """
    figure, axes = _figure(2, (10.0, 4.0))
    for ax, values, color in zip(axes, (rmse, rate), ("tab:red", "tab:blue"), strict=True):
        ax.plot(steps, values, color=color, **_line(len(steps)))
        ax.set(xlabel="reverse steps done", ylim=_from_zero(values))
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("distortion: RMSE of $\\hat{x}_0$ (0 … 255)")
    axes[1].set_ylabel("rate (bits / dim)")
    _save(path, figure)


def save_rate_distortion(path: Path, rate: Values, rmse: Values) -> None:
    """Draws distortion against rate, the last panel of Figure 5; arguments as in `save_progress`."""
    figure, (ax,) = _figure(1, (6.0, 4.5))
    ax.plot(rate, rmse, color="tab:purple", marker=".", markersize=3, linewidth=1.2)
    ax.set(xlabel="rate (bits / dim)", ylabel="distortion: RMSE of $\\hat{x}_0$ (0 … 255)")
    ax.set(xlim=_from_zero(rate), ylim=_from_zero(rmse))
    _save(path, figure)


def _line(points: int) -> dict[str, Any]:
    """Returns the style of a line, with markers if it has few points."""
    return {"linewidth": 1.4, "marker": "." if points <= FEW else None}


def _from_zero(values: Values) -> tuple[float, float]:
    """Returns axis limits slightly beyond 0, so that the edge does not hide a line at 0."""
    known = values[np.isfinite(values)]
    highest = max(known.max(initial=0), 1e-12)
    return -0.03 * highest, 1.05 * highest


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, panels, sharex=True, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(path: Path, figure: Any) -> None:
    """Writes the figure; a kill leaves either the whole file or none."""
    with owned_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
