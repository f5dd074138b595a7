"""EDM's preconditioning and the velocity against the papers' closed forms, whatever the process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses import simple_loss
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.preconditioning import edm
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.process import Point, Process
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP

PROCESSES: dict[str, Process] = {
    "ddpm": DDPM(make_schedule("cosine", 100)),
    "vp": VP(),
    "ve": VE(sigma_min=0.01, sigma_max=50.0),
}


def points_of(process: Process) -> Point:
    """Five points from close to the data to noise."""
    data, last = process.ends
    return process.at(data + (last - data) * jnp.array([0.05, 0.2, 0.5, 0.8, 1.0]))


def by_image(values: np.ndarray) -> np.ndarray:
    return values[:, None].astype(float)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_an_edm_network_is_the_denoiser_of_karras_et_al(compiled, rng, name, sigma_data):
    """D(y; sigma) = c_skip y + c_out F(c_in y; log(sigma) / 4), y = x_t / signal, in float64."""
    process, seen = PROCESSES[name], {}
    point = points_of(process)
    x_t = rng.normal(size=(5, 4)) * by_image(np.asarray(point.scale))

    def network(params, x, time, labels):
        seen.update(x=x, time=time)
        return jnp.sin(3 * x) + params * time[:, None]

    @compiled
    def run(x_t):
        predicted = DiffusionModel(process, edm(sigma_data=sigma_data), network).denoiser(0.2)(
            x_t, point
        )
        return predicted.x0, predicted.eps, seen["x"], seen["time"]

    x0, eps, given, time = run(jnp.asarray(x_t, jnp.float32))
    signal, std = (by_image(np.asarray(values)) for values in point[1:])
    y, sigma = x_t / signal, std / signal
    total = sigma**2 + sigma_data**2
    c_in, c_noise = y / np.sqrt(total), np.log(sigma) / 4
    output = np.sin(3 * c_in) + 0.2 * c_noise
    expected = sigma_data**2 / total * y + sigma * sigma_data / np.sqrt(total) * output
    # Of float32: log(sigma) is a difference of logarithms, y is large where the signal is small.
    np.testing.assert_allclose(given, c_in, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(time[:, None], c_noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-4)
    # x0 and eps are those of x_t, so (y - D) / sigma is the noise.
    np.testing.assert_allclose(eps, (y - expected) / sigma, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_inputs_and_target_of_edm_have_the_variance_1_for_data_of_its_standard_deviation(key, name):
    n, sigma_data, process = 20_000, 0.3, PROCESSES[name]
    model = DiffusionModel(process, edm(sigma_data=sigma_data), lambda params, x, *_: x)
    point = points_of(process)
    x0, eps = jax.random.normal(key, (2, 5, n)) * jnp.array([sigma_data, 1.0])[:, None, None]
    x_t = q_sample(point, x0, eps)
    given, _ = model.preconditioning.inputs(point, x_t)
    target = model.target(point, x_t, x0, eps)
    for values in (given, target):
        # Five standard errors of the variance of n normal numbers.
        np.testing.assert_allclose(values.var(1), 1, atol=5 * np.sqrt(2 / n))
    # So that nothing of the target can be read off the inputs linearly.
    np.testing.assert_allclose((given * target).mean(1), 0, atol=5 / np.sqrt(n))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_unweighted_loss_of_edm_is_the_papers_weighted_error_of_the_denoiser(rng, name):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D - x0|^2, Karras et al. (2022), Table 1."""
    process = PROCESSES[name]
    point, sigma_data = points_of(process), 0.4
    x0, eps = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 5, 8)))
    model = DiffusionModel(process, edm(sigma_data=sigma_data), lambda params, x, *_: jnp.tanh(x))
    predicted = model.predict(None, q_sample(point, x0, eps), point)
    sigma = np.asarray(point.sigma, float)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = np.asarray(predicted.x0, float) - np.asarray(x0, float)
    got = simple_loss(model, None, x0, point.time, eps)
    # Near the data x0 is predicted to float32 rounding of 1, which the weight makes 1e-4.
    np.testing.assert_allclose(got, weight * (error**2).mean(1), rtol=2e-3)


def test_a_velocity_is_the_derivative_of_the_straight_line_and_leads_along_it_to_both_ends(rng):
    """Of x_t = (1 - t) x_0 + t eps: dx_t / dt, by differences; one Euler step of any length is exact."""
    x0, eps = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 4, 6)))

    def line(t: np.ndarray) -> Point:
        time = jnp.asarray(t, jnp.float32)
        return Point(time, 1 - time, time)

    t, h = np.array([0.1, 0.4, 0.7, 0.95]), 0.01
    before, after = (q_sample(line(t + d), x0, eps) for d in (-h, h))
    difference = (after - before) / (2 * h)
    point = line(t)
    x_t = q_sample(point, x0, eps)
    model = DiffusionModel(PROCESSES["vp"], "velocity", lambda params, *_: params)
    np.testing.assert_allclose(model.target(point, x_t, x0, eps), difference, atol=1e-4)
    predicted = model.predict(difference, x_t, point)
    to_data, to_noise = x_t - t[:, None] * difference, x_t + (1 - t)[:, None] * difference
    np.testing.assert_allclose(predicted.x0, to_data, atol=1e-4)
    np.testing.assert_allclose(predicted.eps, to_noise, atol=1e-4)


def test_dropout_keys_reach_the_network_of_a_prediction_and_not_that_of_a_denoiser(key):
    seen = []

    def network(params, x, time, labels=None, dropout_keys=None):
        seen.append(dropout_keys)
        return x

    model = DiffusionModel(PROCESSES["vp"], "v", network)
    point, keys = points_of(model.process), jax.random.split(key, 5)
    model.predict(None, jnp.zeros((5, 1)), point, None, keys)
    model.denoiser(None)(jnp.zeros((5, 1)), point)
    assert seen[0] is keys and seen[1] is None
