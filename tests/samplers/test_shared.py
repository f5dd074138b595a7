"""Several samples from one x_t: on normal data, where p(x_0 | x_t) is known in closed form."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from diffusion_jax.models.denoiser import Denoise, Prediction, complete
from diffusion_jax.parallel.sharding import make_mesh
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0, per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays
from diffusion_jax.samplers import (
    Shared,
    ancestral,
    image_keys,
    nearest_point,
    sample_loop,
    shared_structure,
)
from diffusion_jax.samplers.batches import make_shared_sampler

MEAN, STD = 0.2, 0.4
T = 400
PROCESS = DDPM(make_schedule("cosine", T))
SAMPLER = ancestral(make_grid(PROCESS), variance="fixed_small")
SHAPE = (8, 8, 1)
NUM_IMAGES, NUM_SAMPLES = 6, 40


def optimal(means: jax.Array) -> Denoise:
    """E[x_0 | x_t] of pixels that are independent and N(mean of the image, STD^2)."""

    def denoise(x_t: jax.Array, point: Point) -> Prediction:
        gain = point.signal * STD**2 / (point.signal**2 * STD**2 + point.std**2)
        mean = jnp.broadcast_to(per_image(means, x_t), x_t.shape)
        x0 = mean + per_image(gain, x_t) * (x_t - per_image(point.signal, x_t) * mean)
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    return denoise


@jax.jit
def draw(point: jax.Array) -> Shared:
    keys = image_keys(1, jnp.arange(NUM_IMAGES))
    denoise = optimal(jnp.full(NUM_IMAGES, MEAN))
    return shared_structure(denoise, SAMPLER, keys, SHAPE, point, NUM_SAMPLES)


def chain_variance(alpha_bar: np.ndarray) -> float:
    """Variance of x_0 given x_t that the steps from the last time on reach, each being affine in x."""
    variance = 0.0
    for t in range(len(alpha_bar) - 1, -1, -1):
        a, a_prev = alpha_bar[t], alpha_bar[t - 1] if t else 1.0
        beta, gain = 1 - a / a_prev, np.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        slope = (np.sqrt(a_prev) * beta * gain + np.sqrt(1 - beta) * (1 - a_prev)) / (1 - a)
        variance = slope**2 * variance + beta * (1 - a_prev) / (1 - a)
    return variance


@pytest.mark.parametrize(
    ("t", "discretization"), [slow(399, 0.03), slow(300, 0.03), (200, 0.03), (100, 0.05), (20, 0.2)]
)
def test_samples_from_one_x_t_have_the_mean_and_variance_of_x0_given_x_t(t, discretization):
    x_t, x0_hat, samples = map(np.asarray, draw(nearest_point(SAMPLER.grid, t)))
    alpha_bar = np.cumprod(1 - schedule_arrays(PROCESS.schedule).betas.astype(float)[: t + 1])
    # Bayes' rule: precisions add up.
    a = alpha_bar[-1]
    exact = 1 / (1 / STD**2 + a / (1 - a))
    mean = exact * (MEAN / STD**2 + np.sqrt(a) * x_t / (1 - a))
    np.testing.assert_allclose(x0_hat, mean, atol=1e-5)
    variance = chain_variance(alpha_bar)
    n, deviation = samples.size, samples - mean[:, None]
    # Five standard errors. Each step keeps the mean, since E[x_s | x_t] is linear in E[x_0 | x_t].
    assert abs(deviation.mean()) < 5 * np.sqrt(variance / n)
    assert np.mean(deviation**2) == pytest.approx(variance, rel=5 * np.sqrt(2 / n))
    # What is left between the chain and p(x_0 | x_t) is due to the finite number of steps.
    assert variance == pytest.approx(exact, rel=discretization)
    # No two samples share their noise, nor do two images.
    flat = (deviation / np.sqrt(variance)).reshape(NUM_IMAGES * NUM_SAMPLES, -1)
    pairs = np.abs(flat @ flat.T / flat.shape[1])[~np.eye(len(flat), dtype=bool)]
    assert pairs.max() < 6.5 / np.sqrt(flat.shape[1])


def test_after_the_last_noise_all_samples_are_the_same():
    _, x0_hat, samples = draw(nearest_point(SAMPLER.grid, 0))
    np.testing.assert_array_equal(samples, jnp.broadcast_to(samples[:, :1], samples.shape))
    np.testing.assert_allclose(samples[:, 0], x0_hat, atol=1e-6)  # The last step goes to x0_hat.


def test_x_t_is_that_of_the_images_own_run():
    keys, denoise = image_keys(1, jnp.arange(NUM_IMAGES)), optimal(jnp.full(NUM_IMAGES, MEAN))
    run = jax.jit(lambda: sample_loop(denoise, SAMPLER, keys, SHAPE, num_frames=5))()
    for frame, point in enumerate((0, 100, 200, 300)):
        # The same steps in another program: rounding.
        np.testing.assert_allclose(draw(point).x_t, run.frames_x_t[frame], atol=1e-5)


def test_a_time_has_the_nearest_point_that_a_step_begins_at():
    grid = make_grid(
        PROCESS, None, (4, 7, 20, 30)
    )  # Points 3, 2, 1, 0; the data, at -1, is point 4.
    found = [nearest_point(grid, t) for t in (0, 4, 6, 13, 25, 26, 399)]
    assert found == [3, 3, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("devices", [slow(1), 8])
def test_one_program_draws_all_points_on_any_number_of_devices(devices):
    short = ancestral(make_grid(PROCESS, 20), variance="fixed_small")
    classes = jnp.array([-0.5, 0.0, 0.5])

    def rows(params, seed, point, indices, labels):
        denoise = optimal(params * classes[labels])
        return shared_structure(denoise, short, image_keys(seed, indices), SHAPE, point, 2)

    chex.clear_trace_counter()
    counted: Any = chex.assert_max_traces(rows, n=1)
    sampler = make_shared_sampler(counted, make_mesh(devices), 4, num_classes=3)
    for point in (0, 10, 19):
        drawn = sampler(jnp.float32(1), 3, point, (2, 0))
        indices, labels = jnp.arange(4), jnp.array([2, 0, 2, 0])
        expected = jax.jit(rows)(jnp.float32(1), 3, point, indices, labels)
        for one, other in zip(drawn, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)  # Rounding in another program.
