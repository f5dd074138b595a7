"""Heun's method: steps by hand in sigma, order of convergence, churn, evaluations, and its options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import MEAN, STD, counted, flow, optimal, slopes

from diffusion_jax.errors import InputError
from diffusion_jax.keys import image_normal
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE
from diffusion_jax.samplers import first_noise, heun, image_keys, sample_loop
from diffusion_jax.samplers.loop import step_keys

PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (2, 2, 1)
TIMES = (100, 400, 700, 900)
ALPHA_BAR = np.cumprod(1 - (1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999))
TWO = jnp.arange(2)  # Indices of images.


def bent(params, x_t, t, labels):
    """A network that is not linear and depends on the time."""
    return jnp.sin(1.5 * x_t) + 0.001 * t[:, None, None, None]


BENT = DiffusionModel(PROCESS, "eps", bent).denoiser(None)


def sigma_at(time: float) -> float:
    """sqrt(1 - alpha_bar) / sqrt(alpha_bar), with log alpha_bar linear between timesteps."""
    before = int(time)
    after = min(before + 1, 999)
    part = time - before
    alpha_bar = ALPHA_BAR[before] ** (1 - part) * ALPHA_BAR[after] ** part
    return float(np.sqrt(1 / alpha_bar - 1))


def time_at(sigma: float) -> float:
    """By bisection."""
    low, high = 0.0, 999.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_at(middle) < sigma else (low, middle)
    return low


def path_by_hand(keys: jax.Array, churn: float, low: float, high: float, noise: float) -> list:
    """Returns x after each of four steps of Algorithm 2, in float64."""

    def slope(x: np.ndarray, sigma: float, t: float) -> np.ndarray:
        return np.sin(1.5 * x / np.sqrt(1 + sigma**2)) + 0.001 * t  # eps_hat of signal * x.

    sigmas = [*map(sigma_at, TIMES[::-1]), 0.0]
    x, path = np.asarray(first_noise(keys, SHAPE), np.float64) * np.sqrt(1 + sigmas[0] ** 2), []
    for t, sigma, following in zip(TIMES[::-1], sigmas[:-1], sigmas[1:], strict=True):
        gamma = min(churn / 4, np.sqrt(2) - 1) if low <= sigma <= high else 0
        raised = sigma * (1 + gamma)
        z = np.asarray(image_normal(step_keys(keys, jnp.float32(t)), SHAPE))
        x_hat = x + np.sqrt(raised**2 - sigma**2) * noise * z
        d = slope(x_hat, raised, time_at(raised))
        x = x_hat + (following - raised) * d
        if following > 0:
            d_2 = slope(x, following, time_at(following))
            x = x_hat + (following - raised) * (d + d_2) / 2
        path.append(x / np.sqrt(1 + following**2))
    return path


@pytest.mark.parametrize(
    ("churn", "low", "high", "noise"),
    [(0.0, 0.0, np.inf, 1.0), (1.0, 1.0, 10.0, 1.05), (9.0, 0.0, np.inf, 1.0)],
)
def test_four_steps_are_algorithm_2_of_the_paper(churn, low, high, noise):
    keys = image_keys(3, TWO)
    options = {"churn": churn, "churn_min": low, "churn_noise": noise}
    options |= {} if high == np.inf else {"churn_max": high}
    sampler = heun(make_grid(PROCESS, None, TIMES), PROCESS, **options)
    result = sample_loop(BENT, sampler, keys, SHAPE, num_frames=5)
    assert result.frames_x_t is not None and result.frames_x0 is not None
    expected = np.stack(path_by_hand(keys, churn, low, high, noise))
    # Four float32 steps; time, in float32, is known to 3e-5 where the network multiplies it by 0.001.
    np.testing.assert_allclose(result.frames_x_t[1:], expected, atol=2e-5, rtol=2e-5)
    np.testing.assert_array_equal(result.images, result.frames_x0[3])  # It ends at x0_hat.


def test_the_ode_is_solved_with_order_2():
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    keys, errors = image_keys(0, jnp.arange(5)), []
    for num_steps in (20, 40, 80):
        grid = make_grid(PROCESS, num_steps + 1, "karras")
        x = sample_loop(
            *(optimal, heun(grid, PROCESS), keys, SHAPE),
            x_init=jnp.float32(x_T),
            stop=num_steps,  # The step to the data has an error of its own.
        ).images
        errors.append(float(np.abs(x - flow(grid, x_T, 0, num_steps)).max()))
    np.testing.assert_allclose(slopes(errors), 2, atol=0.15)


@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_normal_data_are_reached_with_their_mean_and_variance(churn):
    """Far more noise than is left at the end is removed and added again."""
    sampler = heun(make_grid(PROCESS, 100, "karras"), PROCESS, churn=churn)
    draw = jax.jit(lambda k: sample_loop(optimal, sampler, k, SHAPE).images)
    images = np.asarray(draw(image_keys(0, jnp.arange(4000))), np.float64)
    n = images.size
    # Five standard errors, and the error of 100 steps.
    assert images.mean() == pytest.approx(MEAN, abs=5 * STD / np.sqrt(n) + 0.002)
    assert images.std() == pytest.approx(STD, rel=5 / np.sqrt(2 * n) + 0.01)


def draw(churn: float, times: Any, seed: int, **options: Any) -> np.ndarray:
    """Images of the seed's noise from one and the same x_T."""
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    sampler = heun(make_grid(PROCESS, None, times), PROCESS, churn=churn, **options)
    keys = image_keys(seed, TWO)
    return np.asarray(sample_loop(clip_denoised(BENT), sampler, keys, SHAPE, x_init=x).images)


def test_without_churn_an_image_is_a_function_of_its_first_noise_alone():
    np.testing.assert_array_equal(draw(0.0, TIMES, 0), draw(0.0, TIMES, 1))
    assert np.abs(draw(1.0, TIMES, 0) - draw(1.0, TIMES, 1)).max() > 0.01


def test_no_noise_is_added_beyond_the_noisiest_time_of_the_process():
    alone = {"churn_min": 100.0}  # sigma is 157 at t = 999, and 3 at t = 500.
    np.testing.assert_array_equal(draw(1.0, (500, 999), 0, **alone), draw(0.0, (500, 999), 0))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_there_are_two_evaluations_a_step_but_one_in_the_last(num_steps):
    sampler = heun(make_grid(PROCESS, num_steps), PROCESS, churn=1.0)
    denoise, calls = counted(BENT)
    keys = image_keys(0, TWO)
    images = sample_loop(denoise, sampler, keys, SHAPE).images
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == 2 * num_steps - 1
    if num_steps == 1:  # From t = 999, where no noise is added.
        expected = BENT(first_noise(keys, SHAPE), PROCESS.at(jnp.full(2, 999))).x0
        np.testing.assert_allclose(images, expected, rtol=1e-5)


def test_a_run_to_a_point_and_one_from_there_are_together_the_whole_run():
    sampler, keys = heun(make_grid(PROCESS, None, TIMES), PROCESS, churn=2.0), image_keys(3, TWO)

    @jax.jit
    def run(x, start, stop):
        return sample_loop(BENT, sampler, keys, SHAPE, x_init=x, start=start, stop=stop).images

    x = first_noise(keys, SHAPE)
    whole = run(x, 0, 4)
    for point in (1, 3):
        np.testing.assert_array_equal(run(run(x, 0, point), point, 4), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1.0}, "churn is -1.0; it must be a finite number of at least 0"),
        ({"churn": float("nan")}, "churn is nan; it must be a finite number of at least 0"),
        ({"churn_min": -0.1}, "churn_min is -0.1; it must be a finite number of at least 0"),
        ({"churn_noise": -2.0}, "churn_noise is -2.0; it must be a finite number of at least 0"),
        (
            {"churn_min": 2.0, "churn_max": 1.0},
            "churn_max is 1.0; it must be at least churn_min, 2.0",
        ),
    ],
)
def test_an_option_out_of_its_range_is_one_clear_line(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        heun(make_grid(PROCESS, 5), PROCESS, **options)


@pytest.mark.parametrize("sigma_max", [80.0, 100.0, 1348.0])
def test_on_ve_it_is_algorithm_2_from_the_first_noise_on(sigma_max):
    """Karras et al. (2022), Algorithm 2 and Eq. 5 in float64: x_0 ~ N(0, t_0^2 I), where t_0 is 80 at most."""
    process = VE(sigma_min=0.01, sigma_max=sigma_max)

    def ideal(x: Any, sigma: Any, xp: Any = np) -> Any:
        """E[x_0 | x] of pixels from N(-0.5, 0.2^2) or N(0.5, 0.2^2), as often."""
        mode = 0.5 * xp.tanh(0.5 * x / (0.04 + sigma**2))
        return mode + 0.04 / (0.04 + sigma**2) * (x - mode)

    def network(params, x, log_sigma, labels):
        sigma = jnp.exp(log_sigma)[:, None, None, None]
        return ideal(x * jnp.hypot(1.0, sigma), sigma, jnp)  # It sees x_t / (1 + sigma^2)^(1/2).

    keys = image_keys(3, jnp.arange(64))
    sampler = heun(make_grid(process, 18, "karras"), process)
    denoise = DiffusionModel(process, "x0", network).denoiser(None)
    result = sample_loop(denoise, sampler, keys, SHAPE, num_frames=19)
    smallest = 0.01 * (sigma_max / 0.01) ** 1e-5  # At u_min.
    t = np.append(np.linspace(80 ** (1 / 7), smallest ** (1 / 7), 18) ** 7, 0)
    x = np.asarray(first_noise(keys, SHAPE), np.float64) * t[0]
    assert result.frames_x_t is not None
    np.testing.assert_allclose(result.frames_x_t[0], x, rtol=1e-6)
    for now, following in zip(t[:-1], t[1:], strict=True):
        d = (x - ideal(x, now)) / now
        after = x + (following - now) * d
        if following > 0:
            d_2 = (after - ideal(after, following)) / following
            after = x + (following - now) * (d + d_2) / 2
        x = after
    # x_t up to 300 in float32 is known to 2e-5, of which steps toward less noise keep little.
    np.testing.assert_allclose(result.images, x, atol=1e-5)
