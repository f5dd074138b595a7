"""Measures the samplers of score models, and the exact likelihood, on a mixture of normal distributions.

As in mixture.py the denoiser is the best there is, so errors are the sampler's alone; here for every process that a
sampler fits, and at u_min, the last point before the data: 20,000 samples against the mixture with the noise of that
point (Kolmogorov-Smirnov distance, the larger of the two coordinates; 95% of exact samples are below 0.0096). The exact
likelihood, with the trace of the Jacobian, is compared with the true log density of 2,000 such points; what the ODE
cannot know is how far the last distribution is from the prior, which is stated as a KL divergence.

  PYTHONPATH=tests python benchmarks/mixture_sde.py --out=mixture_sde.json
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from jaxtyping import Float
from mixture_data import MEANS, STDS, WEIGHTS, draw, ks_distance, make_sampler, optimal

from diffusion_jax.likelihood.exact import exact_likelihood
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.ncsn import NCSN
from diffusion_jax.processes.process import Process
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP
from diffusion_jax.samplers import image_keys, sample_loop

SAMPLES, POINTS = 20_000, 2000
PROCESSES: dict[str, Process] = {
    "ddpm": DDPM(make_schedule("linear", 1000)),
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_min=0.01, sigma_max=100.0),
    "ncsn": NCSN(sigma_min=0.01, sigma_max=100.0, num_timesteps=200),
}
SAMPLERS = (
    "euler_maruyama",
    "reverse_diffusion",
    "predictor_corrector",
    "ancestral",
    "ode_heun",
    "ode_adaptive",
)
SPACING = {"ode_heun": "logsnr"}


def log_density(x: Float[np.ndarray, "n 2"], signal: float, std: float) -> Float[np.ndarray, " n"]:
    """Returns the log density of signal x_0 + std eps for x_0 of the mixture."""
    variance = (signal * STDS) ** 2 + std**2
    square = ((x[:, None] - signal * MEANS[None]) ** 2).sum(-1)
    return np.log((WEIGHTS / (2 * np.pi * variance) * np.exp(-square / (2 * variance))).sum(1))


def distance(name: str, process: Process, num_steps: int) -> tuple[float, int | None]:
    """Returns the KS distance of samples at the last point before the data, and the NFE to there."""
    grid = make_grid(
        process, 2 if name == "ode_adaptive" else num_steps, SPACING.get(name, "uniform")
    )
    options: dict[str, Any] = {"variance": "fixed_small"} if name == "ancestral" else {}
    if name == "langevin":
        options = {"num_moves": 20}
    sampler, stop = make_sampler(name, process, grid, options), grid.num_steps - 1

    @jax.jit
    def drawn(keys: jax.Array) -> jax.Array:
        return sample_loop(optimal, sampler, keys, (2,), stop=stop).images

    x = np.asarray(drawn(image_keys(0, jnp.arange(SAMPLES))), np.float64)
    at = {"signal": float(grid.signal[stop]), "std": float(grid.std[stop])}
    nfe = None if name == "ode_adaptive" else sampler.cost(0, stop)  # pyright: ignore[reportOptionalCall]
    return float(ks_distance(x, **at).max()), nfe


def likelihood_error(process: Process) -> dict[str, float]:
    """Returns the mean absolute error of the exact log-likelihood in nats per dimension, and the prior's KL."""
    grid = make_grid(process, 2)
    rng = np.random.default_rng(0)

    def noised(i: int) -> Float[np.ndarray, "n 2"]:
        return grid.signal[i] * draw(rng, POINTS) + grid.std[i] * rng.normal(size=(POINTS, 2))

    x = noised(1)
    solve = jax.jit(lambda x: exact_likelihood(optimal, grid, process, x))
    result = solve(jnp.asarray(x, jnp.float32))
    error = np.asarray(result.log_likelihood) - log_density(x, grid.signal[1], grid.std[1])
    last = noised(0)
    log_prior = -(last**2).sum(1) / (2 * grid.prior_std**2) - np.log(2 * np.pi * grid.prior_std**2)
    gap = log_density(last, grid.signal[0], grid.std[0]) - log_prior
    return {
        "error": float(np.abs(error).mean() / 2),
        "evaluations": float(result.evaluations.mean()),
        "prior_kl": float(gap.mean() / 2),
        "prior_kl_stderr": float(gap.std() / np.sqrt(POINTS) / 2),
    }


def main() -> None:
    """Prints two tables, and writes the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    arguments = parser.parse_args()
    distances: dict[str, dict[str, list[float]]] = {}
    for name in arguments.processes:
        fitting = (*SAMPLERS, "langevin") if name in ("ve", "ncsn") else SAMPLERS
        distances[name] = {}
        for sampler in fitting:
            steps = arguments.steps[:1] if sampler == "ode_adaptive" else arguments.steps
            row = [distance(sampler, PROCESSES[name], n)[0] for n in steps]
            distances[name][sampler] = row
            print(f"  {name} {sampler}: {row}", flush=True)
    header = ["process", "sampler", *(f"KS, {n} steps" for n in arguments.steps)]
    rows = [
        [
            name,
            sampler,
            *(f"{value:.4f}" for value in row),
            *[""] * (len(arguments.steps) - len(row)),
        ]
        for name, of_name in distances.items()
        for sampler, row in of_name.items()
    ]
    report.print_table(header, rows)
    likelihoods = {name: likelihood_error(PROCESSES[name]) for name in arguments.processes}
    print()
    header = ["process", "error of log p, nats/dim", "evaluations", "KL of the prior, nats/dim"]
    rows = []
    for name, row in likelihoods.items():
        kl = f"{row['prior_kl']:.1e} ± {row['prior_kl_stderr']:.0e}"
        rows.append([name, f"{row['error']:.1e}", f"{row['evaluations']:.0f}", kl])
    report.print_table(header, rows)
    report.write(arguments.out, {"distances": distances, "likelihoods": likelihoods})


if __name__ == "__main__":
    main()
