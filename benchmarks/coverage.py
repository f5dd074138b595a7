"""Measures how often stated standard errors cover the truth: on normal data, whose bound and likelihood are known.

Data N(0, 0.25), independent in each dimension, rounded to 256 levels for the exact likelihood, with the denoiser that
is best for them. Again and again some images are measured as `--mode=evaluate` measures a split: the bound with few of
its 1,000 terms an image or with all (total and rate over the images), and the rate of single images with the error that
is stated for each; bits per dimension by the flow, with Hutchinson's probes and dequantization. The truth is the mean
of many other images with all terms (or probes); its own error is shown.

Of a normal estimate, one standard error covers 68.3% and 1.96 of them 95.0%; of 1,000 repetitions these shares are
known to 1.5% and 0.7% (one standard error).

  python benchmarks/coverage.py --out=coverage.json
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import report

from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.exact import bits_per_dim, dequantized_likelihood
from diffusion_jax.likelihood.vlb import variational_bound
from diffusion_jax.models.denoiser import Prediction, complete
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0, per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VP

VARIANCE = 0.25
SHAPE = (4, 4, 3)
NUM_STEPS = 1000
BATCH = 2000  # Images measured at once, of many repetitions.
TERMS: tuple[int | None, ...] = (3, 10, 20, 100, None)
OWN_BATCHES, OWN_NOISES = 1, 40  # For the rates of single images.
TRUTH, REPETITIONS = 1_000_000, 0  # Seeds that differ.


def optimal(x_t: jax.Array, point: Point) -> Prediction:
    """The denoiser that is best for the data: E[x_0 | x_t]."""
    total = jnp.square(point.signal) * VARIANCE + jnp.square(point.std)
    x0 = per_image(point.signal * VARIANCE / total, x_t) * x_t
    return complete(point, x0, eps_from_x0(point, x_t, x0))


def images(seed: int) -> jax.Array:
    """Returns a batch of images of 256 levels; what lies beyond [-1, 1], 5% of the pixels, is at its ends."""
    x = np.random.default_rng(seed).normal(size=(BATCH, *SHAPE)) * math.sqrt(VARIANCE)
    level = np.clip(np.rint((x + 1) * 127.5), 0, 255)
    return jnp.asarray(level / 127.5 - 1, jnp.float32)


def measured_bound(num_terms: int | None) -> Callable[..., dict[str, np.ndarray]]:
    """Returns (seed, which noise) -> total, rate and its error, of each image of a batch."""
    grid = make_grid(DDPM(make_schedule("linear", NUM_STEPS)))
    run = jax.jit(lambda x0, keys: variational_bound(optimal, grid, x0, keys, num_terms=num_terms))

    def measure(seed: int, noise: int = -1) -> dict[str, np.ndarray]:
        bound = run(images(seed), indexed(stream(seed, f"bound {noise}"), np.arange(BATCH)))
        names = ("total", "rate", "rate_stderr")
        return {name: np.asarray(getattr(bound, name), float) for name in names}

    return measure


def measured_flow(seed: int) -> np.ndarray:
    """Returns bits per dimension of each image by the flow, with one probe and one dequantization."""
    keys = indexed(stream(seed, "ode"), np.arange(BATCH))
    return np.asarray(_flow(images(seed), keys), float)


@jax.jit
def _flow(x0: jax.Array, keys: jax.Array) -> jax.Array:
    process = VP()
    found = dequantized_likelihood(
        optimal, make_grid(process, 2, u_min=1e-5), process, x0, keys, rtol=1e-4, atol=1e-4
    )
    return bits_per_dim(found.log_likelihood, math.prod(SHAPE))


def covered(
    estimates: np.ndarray, errors: np.ndarray, truth: np.ndarray | float
) -> dict[str, float]:
    """Returns the shares of estimates within one and within 1.96 of their errors, and how large the errors are."""
    off = np.abs(estimates - truth)
    real = np.sqrt(np.square(off).mean())
    return {
        "68.3%": float((off <= errors).mean()),
        "95.0%": float((off <= 1.96 * errors).mean()),
        "stated / real": float(np.sqrt(np.square(errors).mean()) / real),
        "real error": float(real),
    }


def over_images(batches: list[np.ndarray], size: int, truth: float) -> dict[str, float]:
    """Returns the coverage of means over `size` images, whose error is that of the mean."""
    groups = np.concatenate([batch.reshape(-1, size) for batch in batches])
    return covered(groups.mean(1), groups.std(1, ddof=1) / math.sqrt(size), truth)


def main() -> None:
    """Prints a table, and writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50, help=f"a divisor of {BATCH}")
    parser.add_argument("--batches", type=int, default=25, help=f"of {BATCH} images, repetitions")
    parser.add_argument("--truth_batches", type=int, default=25, help="other images, of the truth")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    size, batches = arguments.images, range(REPETITIONS, arguments.batches)
    others = range(TRUTH, TRUTH + arguments.truth_batches)
    whole = measured_bound(None)
    parts = [whole(seed) for seed in others]
    true = {name: np.concatenate([part[name] for part in parts]) for name in ("total", "rate")}
    true["ode_bpd"] = np.concatenate([measured_flow(seed) for seed in others])
    own = np.concatenate(
        [
            np.mean([whole(seed, noise)["rate"] for noise in range(OWN_NOISES)], axis=0)
            for seed in batches[:OWN_BATCHES]
        ]
    )
    rows: dict[str, dict[str, float]] = {}
    for num_terms in TERMS:
        measure, named = measured_bound(num_terms), f"{num_terms or 'all'} terms"
        measured = [measure(seed) for seed in batches]
        for name in ("total", "rate"):
            values = [batch[name] for batch in measured]
            rows[f"{name}, {named}"] = over_images(values, size, true[name].mean())
        if num_terms is not None and num_terms > 3:  # Of a single image the truth is its own rate.
            rate, error = (
                np.concatenate([batch[name] for batch in measured[:OWN_BATCHES]])
                for name in ("rate", "rate_stderr")
            )
            rows[f"rate_stderr of an image, {named}"] = covered(rate, error, own)
    flows = [measured_flow(seed) for seed in batches]
    rows["ode_bpd"] = over_images(flows, size, true["ode_bpd"].mean())
    table = [[name, *(f"{value:.3f}" for value in row.values())] for name, row in rows.items()]
    report.print_table(["figure", *rows["ode_bpd"]], table)
    errors = {name: float(v.std() / math.sqrt(len(v))) for name, v in true.items()}
    print(f"standard errors of the truth, bits/dim: {errors}")
    report.write(arguments.out, {"images": size, "rows": rows, "truth_errors": errors})


if __name__ == "__main__":
    main()
