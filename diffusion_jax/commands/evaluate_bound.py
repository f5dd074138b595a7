"""The metric bpd of `--mode=evaluate`: bits per dimension by the variational bound, its terms and their plots."""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.commands import job
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.held_out import bound_measure
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.errors import RunError
from diffusion_jax.evaluation.bits_per_dim import BitsPerDim, not_finite_terms
from diffusion_jax.experiment import build
from diffusion_jax.likelihood.progressive import rate_distortion
from diffusion_jax.processes.process import Grid
from diffusion_jax.reporting import bound_plots, results
from diffusion_jax.runs import Run

# Fields of the eval group that decide a term of an image.
DECISIVE = ("num_steps", "spacing", "u_min", "clip", "approximate_cdf", "num_terms")


def measure_bound(run: Run, split: data.Split, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Bits per dimension by the variational bound: bpd.npz, and plots of its terms, rate and distortion.

    They lie in results/bpd/<job>/, in whose parts/ what was measured of each batch is kept for another start.
    """
    started = time.monotonic()
    fields = run.config.eval
    grid = run.bound_grid()
    total = min(fields.num_images, split.num_images)
    passes = fields.num_terms or grid.num_steps
    folder = (
        workdir
        / "results"
        / "bpd"
        / job.measurement_name(run, split, DECISIVE, variance=build.bound_variance(run.config))
    )
    own(folder, "evaluate")
    with ImagesBar(total, passes, fields.batch_size) as bar:
        measure = bound_measure(run, grid, split, mesh, progress=bar.progress)
        result = measure(run.params, folder / "parts", bar.done)
    if jax.process_index() == 0:
        files = _save_arrays(folder, result, grid)
        seconds = round(time.monotonic() - started, 1)
        names = [str(path.relative_to(workdir / "results")) for path in files]
        record = {**_record(run, result, grid), "files": names, "seconds_this_start": seconds}
        path = results.add_metric(workdir, "evaluate", "bpd", record)
        print(_summary(record), f"results {path}, pictures {folder}", sep="\n", file=sys.stderr)
    problem = not_finite_terms(result, grid.time)
    if problem:
        raise RunError(problem)


def _record(run: Run, result: BitsPerDim, grid: Grid) -> dict[str, Any]:
    """Returns the figures, and all that they depend on."""
    fields = run.config.eval
    return {
        **bpd_record(result),
        "num_images": result.num_images,
        "split": fields.split,
        "num_steps": grid.num_steps,
        "spacing": fields.spacing,
        "variance": build.bound_variance(run.config),
        "clip": fields.clip,
        "approximate_cdf": fields.approximate_cdf,
        "num_terms": fields.num_terms,
        "nfe": fields.num_terms or grid.num_steps,
        "seed": fields.seed,
        **job.measured(run),
        "not_finite": {
            f"{time:g}": int(n) for time, n in zip(grid.time, result.not_finite, strict=False) if n
        },
    }


def bpd_record(result: BitsPerDim) -> dict[str, Any]:
    """Returns the totals as JSON holds them, null where a figure is not finite."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    estimates = {
        name: getattr(result, name) for name in ("total", "rate", "prior", "distortion", "rmse")
    }
    return {
        name: {"value": number(estimate.value), "stderr": number(estimate.stderr)}
        for name, estimate in estimates.items()
    }


def _summary(record: dict[str, Any]) -> str:
    """Returns the totals in one line, and in another what they depend on."""
    total, rate, distortion, rmse = (
        "not finite"
        if record[name]["value"] is None
        else f"{record[name]['value']:.4f} ± {record[name]['stderr'] or np.nan:.4f}"
        for name in ("total", "rate", "distortion", "rmse")
    )
    terms = (
        f"{record['nfe']} of {record['num_steps']}"
        if record["num_terms"]
        else f"all {record['nfe']}"
    )
    return (
        f"{total} bits/dim = rate {rate} + distortion {distortion}; RMSE {rmse} grey levels\n"
        f"of {record['num_images']} {record['split']} images, {terms} terms each, variance {record['variance']}, "
        f"checkpoint {record['step']}"
    )


def _save_arrays(folder: Path, result: BitsPerDim, grid: Grid) -> list[Path]:
    """Writes bpd.npz and the plots; returns the files."""
    time, steps = grid.time[:-1], np.arange(grid.num_steps, dtype=np.float64)
    rate, rmse = rate_distortion(result.prior.value, result.contributions, result.x0_mse)
    path = folder / "bpd.npz"
    results.write_npz(
        path,
        time=time,
        terms=result.terms,
        terms_stderr=result.terms_stderr,
        prior=np.float64(result.prior.value),
        x0_mse=result.x0_mse,
        eps_mse=result.eps_mse,
        count=result.count,
        not_finite=result.not_finite,
        rate=rate,
        rmse=rmse,
    )
    # A step that no image drew is no gap: lines go on to the next one.
    drawn = (result.count > 0) | (result.not_finite > 0)
    time, steps, terms, rate, rmse = (a[drawn] for a in (time, steps, result.terms, rate, rmse))
    bound_plots.save_terms(folder / "bpd_terms.png", time, terms, result.prior.value)
    bound_plots.save_progress(folder / "bpd_progress.png", steps, rate, rmse)
    bound_plots.save_rate_distortion(folder / "bpd_rate_distortion.png", rate, rmse)
    return [path, *sorted(folder.glob("bpd_*.png"))]
