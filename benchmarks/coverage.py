"""Measures how often stated standard errors cover the truth: on normal data, whose bound and likelihood are known.

Data N(0, 0.25), independent in each dimension, rounded to 256 levels for the exact likelihood, with the denoiser that
is best for them. For each seed, some images are measured as `--mode=evaluate` measures a split: the bound with few of
its 1,000 terms an image or with all (total and rate over the images), and the rate of single images with the error that
is stated for each; bits per dimension by the flow, with Hutchinson's probes and dequantisation. The truth is the mean
of many other images with all terms (or probes); its own error is shown.

Of a normal estimate, one standard error covers 68.3% and 1.96 of them 95.0%; with 200 seeds these are known to 3.3% and
1.5% (one standard error).

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

from diffusion_jax.denoiser import Prediction, complete
from diffusion_jax.keys import indexed, stream
from diffusion_jax.likelihood.bound import Bound, variational_bound
from diffusion_jax.likelihood.exact import bits_per_dim, dequantised_likelihood
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0, per_image
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VP

VARIANCE = 0.25
SHAPE = (4, 4, 3)
NUM_STEPS = 1000
OWN_SEEDS, OWN_NOISES = 20, 40  # For the rates of single images.
TERMS: tuple[int | None, ...] = (3, 10, 20, 100, None)


def optimal(x_t: jax.Array, point: Point) -> Prediction:
    """The denoiser that is best for the data: E[x_0 | x_t]."""
    total = jnp.square(point.signal) * VARIANCE + jnp.square(point.std)
    x0 = per_image(point.signal * VARIANCE / total, x_t) * x_t
    return complete(point, x0, eps_from_x0(point, x_t, x0))


def images(seed: int, count: int) -> np.ndarray:
    """Returns images of 256 levels; what lies beyond [-1, 1], 5% of the pixels, is at its ends."""
    x = np.random.default_rng(seed).normal(size=(count, *SHAPE)) * math.sqrt(VARIANCE)
    level = np.clip(np.rint((x + 1) * 127.5), 0, 255)
    return (level / 127.5 - 1).astype(np.float32)


def measured_bound(num_terms: int | None) -> Callable[..., Bound]:
    """Returns (seed, number of images, which noise) -> their bound."""
    grid = DDPM(make_schedule("linear", NUM_STEPS)).grid()
    run = jax.jit(lambda x0, keys: variational_bound(optimal, grid, x0, keys, num_terms=num_terms))

    def measure(seed: int, count: int, noise: int = -1) -> Bound:
        keys = indexed(stream(seed, f"bound {noise}"), np.arange(count))
        return run(jnp.asarray(images(seed, count)), keys)

    return measure


def measured_flow(seed: int, count: int) -> np.ndarray:
    """Returns bits per dimension of each image by the flow, with one probe and one dequantisation."""
    return np.asarray(
        _flow(jnp.asarray(images(seed, count)), indexed(stream(seed, "ode"), np.arange(count))),
        float,
    )


@jax.jit
def _flow(x0: jax.Array, keys: jax.Array) -> jax.Array:
    process = VP(u_min=1e-5)
    found = dequantised_likelihood(
        optimal, process.grid(2), process, x0, keys, rtol=1e-4, atol=1e-4
    )
    return bits_per_dim(found.log_likelihood, math.prod(SHAPE))


def own_rates(whole: Callable[..., Bound], seed: int, count: int) -> np.ndarray:
    """Returns the rate of each image, the mean over the noise of many measurements with all terms."""
    rates = [np.asarray(whole(seed, count, noise).rate, float) for noise in range(OWN_NOISES)]
    return np.mean(rates, axis=0)


def covered(
    estimates: np.ndarray, errors: np.ndarray, truth: np.ndarray | float
) -> dict[str, float]:
    """Returns the shares of estimates within one and within 1.96 of their errors, and how large the errors are."""
    off = np.abs(estimates - truth)
    return {
        "68.3%": float((off <= errors).mean()),
        "95.0%": float((off <= 1.96 * errors).mean()),
        "stated / real": float(
            np.sqrt(np.square(errors).mean() / np.square(estimates - truth).mean())
        ),
        "real error": float(np.sqrt(np.square(estimates - truth).mean())),
    }


def over_images(values: list[np.ndarray], truth: float) -> dict[str, float]:
    """Returns the coverage of means over images, whose error is that of the mean."""
    means = np.array([one.mean() for one in values])
    errors = np.array([one.std(ddof=1) / math.sqrt(len(one)) for one in values])
    return covered(means, errors, truth)


def main() -> None:
    """Prints a table, and writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--images", type=int, default=50, help="of each seed")
    parser.add_argument("--truth_images", type=int, default=20_000, help="of the truth")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    whole = measured_bound(None)
    parts = [whole(10_000 + k, 2000) for k in range(arguments.truth_images // 2000)]
    truth = {
        name: np.concatenate([np.asarray(getattr(part, name), float) for part in parts])
        for name in ("total", "rate")
    }
    flow = np.concatenate(
        [measured_flow(20_000 + k, 1000) for k in range(arguments.truth_images // 1000)]
    )
    own = np.concatenate([own_rates(whole, seed, arguments.images) for seed in seeds[:OWN_SEEDS]])
    rows: dict[str, dict[str, float]] = {}
    for num_terms in TERMS:
        measure = measured_bound(num_terms)
        bounds = [measure(seed, arguments.images) for seed in seeds]
        for name in ("total", "rate"):
            values = [np.asarray(getattr(bound, name), float) for bound in bounds]
            rows[f"{name}, {num_terms or 'all'} terms"] = over_images(values, truth[name].mean())
        if num_terms is None or num_terms < 4:
            continue
        # Of a single image the truth is its own rate.
        rate, error = (
            np.concatenate(
                [np.asarray(getattr(bound, name), float) for bound in bounds[:OWN_SEEDS]]
            )
            for name in ("rate", "rate_stderr")
        )
        rows[f"rate_stderr of an image, {num_terms} terms"] = covered(rate, error, own)
    values = [measured_flow(seed, arguments.images) for seed in seeds]
    rows["ode_bpd"] = over_images(values, flow.mean())
    header = ["figure", *next(iter(rows.values()))]
    report.print_table(
        header, [[name, *(f"{v:.3f}" for v in row.values())] for name, row in rows.items()]
    )
    spread = {
        name: float(v.std() / math.sqrt(len(v))) for name, v in {**truth, "flow": flow}.items()
    }
    print(f"errors of the truth, bits/dim: {spread}")
    settings = vars(arguments) | {"out": None}
    report.write(arguments.out, {"settings": settings, "rows": rows, "truth_errors": spread})


if __name__ == "__main__":
    main()
