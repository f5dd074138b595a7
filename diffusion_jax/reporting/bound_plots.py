"""Plots of the variational bound: its terms over time, and rate and distortion (Ho et al., 2020, Figure 5)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " n"]


def save_terms(path: Path, time: Values, terms: Values, prior: float) -> None:
    """Draws L_{t-1} over t, with L_0 and L_T marked.

    Args:
      path: A .png file.
      time: Time at which each step of the grid begins, from noise to data.
      terms: Term of each step in bits per dimension; NaN leaves a gap.
      prior: L_T.
    """
    figure, axes = _figure(1, (8.0, 4.5))
    ax = axes[0]
    ax.plot(time[:-1], terms[:-1], color="tab:blue", linewidth=1.2, label="$L_{t-1}$")
    ax.plot(time[-1:], terms[-1:], "o", color="tab:red", label=f"$L_0$ = {terms[-1]:.3g}")
    ax.plot(
        time[:1],
        [max(prior, np.nextafter(0, 1))],
        "s",
        color="tab:green",
        label=f"$L_T$ = {prior:.2g}",
    )
    ax.set(xlabel="$t$", ylabel="bits / dim", yscale="log")
    positive = terms[np.isfinite(terms) & (terms > 0)]
    if positive.size:  # L_T may be smaller by many orders: it stands at the lower edge then.
        ax.set_ylim(bottom=max(min(positive.min(), max(prior, 1e-30)), positive.min() / 30))
    ax.legend()
    _save(path, figure)


def save_progress(path: Path, rate: Values, rmse: Values) -> None:
    """Draws distortion and rate against reverse steps, the first two panels of Figure 5.

    Args:
      path: A .png file.
      rate: What has been sent when each step begins, in bits per dimension.
      rmse: How far x0_hat is from the image then, in grey levels.
    """
    figure, axes = _figure(2, (10.0, 4.0))
    steps = np.arange(len(rate))
    axes[0].plot(steps, rmse, color="tab:red")
    axes[0].set(ylabel="distortion: RMSE of $\\hat{x}_0$ (0 … 255)", ylim=(0, None))
    axes[1].plot(steps, rate, color="tab:blue")
    axes[1].set(ylabel="rate (bits / dim)", ylim=(0, None))
    for ax in axes:
        ax.set_xlabel("reverse steps done, $T - t$")
    _save(path, figure)


def save_rate_distortion(path: Path, rate: Values, rmse: Values) -> None:
    """Draws distortion against rate, the last panel of Figure 5; arguments as in `save_progress`."""
    figure, axes = _figure(1, (6.0, 4.5))
    axes[0].plot(rate, rmse, color="tab:purple", marker=".", markersize=3, linewidth=1)
    axes[0].set(xlabel="rate (bits / dim)", ylabel="distortion: RMSE (0 … 255)")
    axes[0].set(xlim=(0, None), ylim=(0, None))
    _save(path, figure)


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def _save(path: Path, figure: Any) -> None:
    """Writes the figure; a kill leaves either the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".png.part")
    figure.savefig(unfinished, dpi=120, format="png")
    os.replace(unfinished, path)
