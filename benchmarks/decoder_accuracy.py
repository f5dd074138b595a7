"""Measures the digits of the discretized Gaussian in float32: log p, and its derivatives by mean and log variance.

Random levels, standard deviations from 1e-4 to 10 and means up to 4,000 of them away, a third of the levels at the
open ends (`scattered` of the tests). Each number is compared with 40 digits, and the largest relative errors are
reported by the form of the decoder that computes them, by standard deviation and by distance. A probability within
1e-7 of 1 counts as 1 and a derivative below 1e-7 as 0; of those the largest absolute error is given.

log p is also compared with float64 (differences of scipy's log_ndtr) on many more points, where float64 keeps nine
digits, and float64 with the 40 digits.

  PYTHONPATH=tests python benchmarks/decoder_accuracy.py --out=decoder.json
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from jaxtyping import Bool, Float
from likelihood.decoder_reference import errors, in_40_digits, scattered
from scipy.special import log_ndtr

from diffusion_jax.likelihood.decoder import HALF_BIN, discretized_gaussian

NAMES = ("log p", "d/dmean", "d/dlog variance")
STDS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
DISTANCES = (0, 0.1, 1, 10, 100, 1000, 4000)
SMALLEST = 1e-7  # See `errors`.

Points = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


@jax.jit
def with_gradient(
    x0: jax.Array, mean: jax.Array, log_variance: jax.Array
) -> Float[jax.Array, "3 n"]:
    """Returns log p and its two derivatives."""

    def log_p(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        return discretized_gaussian(x0, mean, log_variance)

    value, pull = jax.vjp(log_p, mean, log_variance)
    return jnp.stack([value, *pull(jnp.ones_like(value))])


def regions(points: Points) -> dict[str, Bool[np.ndarray, " n"]]:
    """Returns which points are in each region."""
    x0, mean, log_variance = (np.asarray(values, float) for values in points)
    std = np.exp(log_variance / 2)
    z, h = np.abs(x0 - mean) / std, HALF_BIN / std
    open_bin = np.abs(x0) > 1 - HALF_BIN
    narrow = (h <= 1) & (z * h <= 1)
    masks = {
        "all": np.ones_like(open_bin),
        "open bin": open_bin,
        "narrow": ~open_bin & narrow,
        "tail": ~open_bin & ~narrow & (z >= h),
        "wide": ~open_bin & ~narrow & (z < h),
    }
    # The ends are rounded to float32, and so are the points.
    for low, high in zip(STDS[:-1], STDS[1:], strict=True):
        masks[f"std {low:g} to {high:g}"] = (low * 0.9999 <= std) & (std < high * 0.9999)
    for low, high in zip(DISTANCES[:-1], DISTANCES[1:], strict=True):
        masks[f"{low:g} to {high:g} std away"] = (low <= z) & (z < high)
    return masks


def in_float64(points: Points) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns log p in float64, and where it has nine digits: where the difference of two tails loses none of them."""
    x0, mean, log_variance = (np.asarray(values, float) for values in points)
    std = np.exp(log_variance / 2)
    a = np.where(x0 < -1 + HALF_BIN, -np.inf, (x0 - HALF_BIN - mean) / std)
    b = np.where(x0 > 1 - HALF_BIN, np.inf, (x0 + HALF_BIN - mean) / std)
    around = (a < 0) & (b > 0)
    outside = np.exp(log_ndtr(np.where(around, a, -np.inf)))
    outside += np.exp(log_ndtr(np.where(around, -b, -np.inf)))
    near, far = np.where(a >= 0, -a, b), np.where(a >= 0, -b, a)  # Both in the lower tail.
    near, far = np.where(around, 0.0, near), np.where(around, -np.inf, far)
    difference = log_ndtr(far) - log_ndtr(near)
    with np.errstate(divide="ignore"):
        tail = log_ndtr(near) + np.log(-np.expm1(difference))
        log_p = np.where(around, np.log1p(-outside), tail)
    # Rounding of log_ndtr and of its argument, as the difference passes it on.
    size = np.where(np.isfinite(far), np.square(far) + 1, 1.0)
    tail_error = 4 * np.finfo(float).eps * size / -np.expm1(difference)
    wide_error = 4 * np.finfo(float).eps / np.maximum(1 - outside, 1e-300)
    error = np.where(around, wide_error, tail_error)
    return log_p, (np.abs(log_p) > SMALLEST) & (error < 1e-9 * np.abs(log_p))


def against_40_digits(points: Points) -> dict[str, Any]:
    """Returns the largest relative errors by region, and the float64 reference's."""
    got, exact = np.asarray(with_gradient(*points), float), in_40_digits(*points)
    relative = errors(*points, exact, got)
    figures: dict[str, Any] = {"regions": {}}
    for name, mask in regions(points).items():
        largest = [float(values[mask].max(initial=0)) for values in relative]
        figures["regions"][name] = {"points": int(mask.sum()), "largest": largest}
    rows = [
        [name, of["points"], *(f"{value:.1e}" for value in of["largest"])]
        for name, of in figures["regions"].items()
    ]
    report.print_table(["region", "points", *NAMES], rows)
    unit = np.stack([np.ones(len(points[0])), np.exp(points[2] / 2), np.ones(len(points[0]))])
    zero = np.abs(exact * unit) <= SMALLEST
    figures["largest of what counts as 0"] = float((np.abs(got - exact) * unit)[zero].max())
    log_p, known = in_float64(points)
    of_float64 = np.abs(log_p - exact[0])[known] / np.abs(exact[0])[known]
    figures["float64"] = {"points": int(known.sum()), "largest": float(of_float64.max())}
    print(
        f"\nof what counts as 0, {int(zero.sum())} numbers, the largest absolute error is ", end=""
    )
    print(f"{figures['largest of what counts as 0']:.1e}")
    print(f"float64 against 40 digits, {known.sum()} points: {of_float64.max():.1e}")
    return figures


def main() -> None:
    """Prints a table, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20_000, help="compared with 40 digits")
    parser.add_argument("--float64_points", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    figures = against_40_digits(scattered(rng, arguments.points))
    points = scattered(rng, arguments.float64_points)
    log_p, known = in_float64(points)
    relative = np.abs(np.asarray(with_gradient(*points)[0], float) - log_p)[known]
    largest = float((relative / np.abs(log_p)[known]).max())
    print(f"log p against float64, {known.sum()} of {len(known)} points: {largest:.1e}")
    figures["against float64"] = {"points": int(known.sum()), "largest": largest}
    report.write(arguments.out, {"seed": arguments.seed, **figures})


if __name__ == "__main__":
    main()
