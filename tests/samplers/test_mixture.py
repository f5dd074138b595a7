"""Every sampler on a mixture of normal distributions with its best denoiser, and that denoiser itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture_data import (
    COVARIANCE,
    MEANS,
    STDS,
    WEIGHTS,
    flow,
    ks_distance,
    make_sampler,
    optimal,
)
from slow import slow_but

from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import SAMPLERS, image_keys, sample_loop

PROCESS = DDPM(make_schedule("linear", 1000))


@pytest.mark.parametrize("t", [0, 100, 600, 999])
def test_the_denoiser_of_the_mixture_is_the_mean_of_x0_given_x_t_by_sums_over_the_plane(t):
    axis = np.linspace(-2, 2, 401)
    x0 = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2)
    density = np.exp(-((x0 - MEANS) ** 2).sum(-1) / (2 * STDS**2)) / STDS**2 @ WEIGHTS
    point = PROCESS.at(jnp.full(3, t))
    signal, std = float(point.signal[0]), float(point.std[0])
    x_t = signal * np.array([[-0.6, -0.4], [0.1, 0.2], [0.5, 0.5]]) + std * np.array([0.5, -1.0])
    weight = density[:, None] * np.exp(-((x_t - signal * x0) ** 2).sum(-1) / (2 * std**2))
    mean = np.einsum("nb,nbd->bd", weight, np.broadcast_to(x0, (len(x0), 3, 2)))
    mean /= weight.sum(0)[:, None]
    prediction = optimal(jnp.asarray(x_t, jnp.float32), point)
    # float32; at t = 0 the step of 0.01 is std, where such sums have an error of exp(-2 pi^2).
    np.testing.assert_allclose(prediction.x0, mean, atol=1e-5)
    np.testing.assert_allclose(prediction.eps, (x_t - signal * mean) / std, atol=1e-3)


# First-order solvers are not there yet in 50 steps: their error may be as large as that of sampling.
COARSE = {"ancestral": 0.01, "ddim": 0.01, "pndm": 0.01}


# In `test_score_samplers`, for every process.
OF_SCORES = {"euler_maruyama", "langevin", "predictor_corrector", "reverse_diffusion"}


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["ancestral", "ddim", "dpmpp_2m"],
        [name for name in SAMPLERS if name not in OF_SCORES],
    ),
)
def test_every_sampler_draws_the_mixture_in_50_steps_or_its_own_number(name):
    grid = make_grid(
        PROCESS, SAMPLERS[name].num_steps or 50, "leading" if name == "pndm" else "logsnr"
    )
    options = {"variance": "fixed_small"} if name == "ancestral" else {}
    sampler, n = make_sampler(name, PROCESS, grid, options), 20_000
    draw = jax.jit(lambda keys: sample_loop(optimal, sampler, keys, (2,)).images)
    x = np.asarray(draw(image_keys(1, jnp.arange(n))), np.float64)
    # 1.95 / sqrt(n): exact samples are above it once in a thousand times.
    assert ks_distance(x).max() < 1.95 / np.sqrt(n) + COARSE.get(name, 0)
    # Five standard errors of a variance of about 0.35, less for a bounded distribution.
    error = 5 * 0.35 * np.sqrt(2 / n) + 2 * COARSE.get(name, 0)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=error)


def test_the_exact_flow_carries_noised_draws_of_the_mixture_to_the_mixture(rng):
    grid, n = make_grid(PROCESS, 10, "logsnr"), 2000
    # Standard normal noise is x_T but for a signal of 0.006.
    x = flow(grid, rng.normal(size=(n, 2)), 0, 9, num_steps=200)
    # The noise of 0.01 left at t = 0 is an eighth of the narrowest component's width.
    assert ks_distance(x).max() < 1.95 / np.sqrt(n)
