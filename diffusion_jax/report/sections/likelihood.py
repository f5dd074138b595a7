"""Bits per dimension, term by term, and rate against distortion."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.report.blocks import Block, Chart, Note, Row, Table
from diffusion_jax.report.charts import Curve, chart
from diffusion_jax.report.run_folder import RunFolder
from diffusion_jax.report.sections.inputs import Inputs, figures, files, measured, of_numbers, text

_METRICS = {"bpd": "variational bound", "ode_bpd": "exact, by the flow"}
_PARTS = {
    "total": "total (bits/dim)",
    "rate": "rate (bits/dim)",
    "prior": "prior, L_T (bits/dim)",
    "distortion": "distortion, L_0 (bits/dim)",
    "rmse": "error of the decoded image (gray levels)",
}


def likelihood(inputs: Inputs) -> list[Block]:
    """Returns the table of bits/dim, and the plots of the bound."""
    run, rows, blocks = inputs.run, [], list[Block]()
    found = measured(run)
    for name, words in _METRICS.items():
        record = found.get(name, {})
        for label, figure in figures(name, record):
            part = label.removeprefix(name).removeprefix(": ")
            of = f"{text(record.get('num_images'))} {text(record.get('split'))} images"
            what = _PARTS.get(part, part or "total (bits/dim)")
            rows.append((f"{words}: {what}", str(figure), of, text(record.get("step"))))
    if rows:
        blocks.append(Table("Bits per dimension", ("Quantity", "Value", "Of", "Step"), rows))
    if "bpd" in found:
        charts = plots_of_bound(run, found["bpd"])
        blocks.append(
            Row(charts) if charts else Note("The arrays of the bound, bpd.npz, are gone.")
        )
    else:
        command = run.command("evaluate", "eval.metrics=bpd")
        blocks.append(Note("The variational bound is not measured yet:", command))
    return blocks


def plots_of_bound(run: RunFolder, record: dict[str, Any]) -> list[Chart]:
    """Returns the last panels of Ho et al.'s Figure 5, and the terms of the bound."""
    arrays = arrays_of_bound(run, record)
    if not arrays:
        return []
    time, terms, rate, rmse, steps = (arrays[n] for n in ("time", "terms", "rate", "rmse", "step"))

    def one(title: str, axis: str, label: str, color: int, x: Any, y: Any, **more: Any) -> Any:
        points = sorted(zip(x.tolist(), y.tolist(), strict=True))
        return chart(title, axis, [Curve(label, points, color, True)], **more)

    rmse_of = "Distortion (RMSE of x̂_0, 0 … 255)"
    made = [
        one(f"{rmse_of} against rate", "rate (bits/dim)", "distortion", 4, rate, rmse, log_y=False),
        one(
            f"{rmse_of} over the steps",
            "reverse steps done",
            "distortion",
            2,
            steps,
            rmse,
            log_y=False,
        ),
        one(
            "Rate (bits/dim) over the steps",
            "reverse steps done",
            "rate",
            3,
            steps,
            rate,
            log_y=False,
        ),
        one("Terms of the bound (bits/dim)", "t", "term", 1, time, terms),
    ]
    return [plot for plot in made if plot is not None]


def arrays_of_bound(run: RunFolder, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns time, terms, rate, rmse and reverse steps done of what was measured; empty if it is gone."""
    names = ("time", "terms", "rate", "rmse")
    found = files(record, "bpd.npz")
    arrays = run.arrays(run.path / "results" / found[0]) if found else {}
    if not of_numbers(arrays, *names, "count"):
        return {}
    drawn = arrays["count"] > 0
    if drawn.ndim != 1 or not drawn.any() or any(arrays[n].shape != drawn.shape for n in names):
        return {}
    found = {name: arrays[name][drawn] for name in names}
    return {**found, "step": np.flatnonzero(drawn).astype(np.float64)}
