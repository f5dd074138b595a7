"""Measures how far the variational bound is above the exact -log p(x_0) where that is known: on normal data.

Data N(0, 0.25), independent in each dimension, with the denoiser and the decoder that are best for it, so that the
gap comes from the number of steps T alone: a step's posterior depends on x_0, the reverse step cannot. With DDPM's
linear schedule, whose betas are scaled with 1/T, the gap should fall as 1/T. All steps' terms are computed, in
float32 as for images; the script reports the mean gap for each T with its Monte Carlo standard error, and the slope
of log gap by log T.

The first few steps, where the noise of x_t doubles, fluctuate by one nat whatever T is, which would hide a gap of
1e-3. So each image's gap is freed of fluctuations whose mean is known: the squared error of x_0 has the mean
Var(x_0 | x_t), and x_0^2 that of the data. Their weights do not move the mean gap (they are chosen to move its error).

  python benchmarks/gaussian_bound.py --out=gaussian.json --picture=gaussian.png
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report
from jaxtyping import Float

from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.vlb import VLB, variational_bound
from diffusion_jax.models.denoiser import Prediction, complete
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0, per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Point
from diffusion_jax.processes.schedules import make_schedule

DATA_VARIANCE = 0.25
IMAGES = 100  # The standard errors come from their differences.


class Gap(NamedTuple):
    """Bound less exact -log p(x_0), mean over the images and its standard error, in nats per dimension.

    Attributes:
      raw: As it is.
      freed: Freed of fluctuations whose mean is known.
    """

    raw: tuple[float, float]
    freed: tuple[float, float]


def left_variance(grid: Grid) -> Float[np.ndarray, " n"]:
    """Returns Var(x_0 | x_t) at each point but the data, noise first."""
    signal2, std2 = np.exp(2 * grid.log_signal[:-1]), np.square(grid.std[:-1])
    return DATA_VARIANCE * std2 / (signal2 * DATA_VARIANCE + std2)


def bound_on(grid: Grid, x0: Float[np.ndarray, "b d"]) -> VLB:
    """Returns the bound with the denoiser and the decoder that are best for the data."""
    left = left_variance(grid)[-1]

    def optimal(x_t: jax.Array, point: Point) -> Prediction:
        total = jnp.square(point.signal) * DATA_VARIANCE + jnp.square(point.std)
        x0 = per_image(point.signal * DATA_VARIANCE / total, x_t) * x_t
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    def decoder(x0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        del log_variance
        return -jnp.square(x0 - mean) / (2 * left) - math.log(2 * math.pi * left) / 2

    @jax.jit
    def bound(x0: jax.Array, keys: jax.Array) -> VLB:
        return variational_bound(optimal, grid, x0, keys, decoder=decoder)

    return bound(jnp.asarray(x0), indexed(jax.random.key(0), jnp.arange(len(x0))))


def fluctuations(
    grid: Grid, x0: Float[np.ndarray, "b d"], x0_mse: Float[np.ndarray, "n b"]
) -> Float[np.ndarray, " b"]:
    """Returns what each image's gap has of fluctuations whose mean is 0."""
    left, noise = left_variance(grid), np.square(grid.std)
    snr = np.exp(2 * grid.log_signal[:-1]) / noise[:-1]
    of_terms = (
        np.diff(snr) * noise[1:-1] / noise[:-2]
    )  # KL(...) = weight (x_0 - x0_hat)^2 / 2 + ...
    weights = np.append(of_terms, 1 / left[-1]) / 2
    of_data = np.square(x0.astype(float)).mean(1) - DATA_VARIANCE
    return weights @ (x0_mse - left[:, None]) - of_data / (2 * DATA_VARIANCE)


def mean_and_stderr(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def gap(num_timesteps: int, dims: int) -> Gap:
    """Returns the gap for T = `num_timesteps`, of `IMAGES` images of so many dimensions."""
    grid = make_grid(DDPM(make_schedule("linear", num_timesteps)))
    x0 = np.random.default_rng(0).normal(size=(IMAGES, dims)) * math.sqrt(DATA_VARIANCE)
    x0 = x0.astype(np.float32)
    bound = bound_on(grid, x0)
    square = np.square(x0.astype(float)).mean(1)
    exact = (square / DATA_VARIANCE + math.log(2 * math.pi * DATA_VARIANCE)) / 2
    # The sum of the terms in float64: that of 3,200 in float32 would have an error of 1e-6.
    total = np.asarray(bound.prior, float) + np.asarray(bound.terms, float).sum(0)
    gaps = total * math.log(2) - exact
    freed = gaps - fluctuations(grid, x0, np.asarray(bound.x0_mse, float))
    return Gap(mean_and_stderr(gaps), mean_and_stderr(freed))


def slope(steps: list[int], gaps: list[Gap]) -> tuple[float, float]:
    """Returns the slope of log gap (freed) by log T, by least squares, and its Monte Carlo standard error."""
    means, stderrs = np.array([gap.freed for gap in gaps]).T
    x = np.log(steps) - np.mean(np.log(steps))
    weights = x / np.square(x).sum()
    error = np.sqrt(np.square(weights * stderrs / means).sum())
    return float(weights @ np.log(means)), float(error)


def draw(path: Path, steps: list[int], gaps: list[Gap]) -> None:
    """Writes a picture of the gaps, and of 1/T through the first of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    means, stderrs = np.array([gap.freed for gap in gaps]).T
    axes.errorbar(steps, means, 2 * stderrs, fmt="o", label="bound (2 standard errors)")
    axes.plot(steps, means[0] * steps[0] / np.array(steps), "--", color="gray", label="1/T")
    axes.set(xscale="log", yscale="log", xlabel="steps T")
    axes.set_ylabel("bound less exact −log p(x₀), nats per dimension")
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prints a table, and writes the figures as JSON and the picture if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[50 * 2**k for k in range(7)])
    parser.add_argument("--dims", type=int, default=1000, help=f"of each of {IMAGES} images")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    parser.add_argument("--picture", type=Path, help="PNG file")
    arguments = parser.parse_args()
    gaps = [gap(steps, arguments.dims) for steps in arguments.steps]
    rows = [
        [n, *(f"{value:.2e}" for value in (*gap.freed, *gap.raw)), n * gap.freed[0]]
        for n, gap in zip(arguments.steps, gaps, strict=True)
    ]
    header = ["T", "gap, nats per dimension", "stderr", "raw gap", "stderr", "T x gap"]
    report.print_table(header, rows)
    fitted, error = slope(arguments.steps, gaps)
    print(f"\nslope of log gap by log T: {fitted:.3f} +- {error:.3f}")
    if arguments.picture:
        draw(arguments.picture, arguments.steps, gaps)
    figures: dict[str, Any] = {
        str(n): gap._asdict() for n, gap in zip(arguments.steps, gaps, strict=True)
    }
    settings = {"dims": arguments.dims, "images": IMAGES}
    report.write(arguments.out, {**settings, "gaps": figures, "slope": [fitted, error]})


if __name__ == "__main__":
    main()
