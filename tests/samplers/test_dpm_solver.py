"""DPM-Solver++: values by hand from the papers' formulas, orders of convergence, few steps, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import MEAN, STD, flow, optimal, slopes
from slow import slow_after

from diffusion_jax.keys import image_normal
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.models.guidance import clip_denoised
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    first_noise,
    image_keys,
    sample_loop,
)
from diffusion_jax.samplers.loop import step_keys

PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (2, 2, 1)
SOLVERS = [dpmpp_2m, dpmpp_2m_sde, dpmpp_3m]
TIMES = (50, 200, 450, 700, 900)
BETAS = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
ALPHA_BAR = np.cumprod(1 - BETAS)
TWO = jnp.arange(2)  # Indices of images.


def bent(params, x_t, t, labels):
    """A prediction of x_0 that is not linear and depends on the time."""
    return jnp.sin(1.5 * x_t) + 0.001 * t[:, None, None, None]


BENT = DiffusionModel(PROCESS, "x0", bent).denoiser(None)


def second(x, ratio, alpha, h, predictions, r):
    """Lu et al. (2022b), Algorithm 2: D = (1 + 1 / 2r) x_0 - x_0' / 2r, or x_0 if there is one alone."""
    new, *old = predictions
    d = (1 + 1 / (2 * r)) * new - old[0] / (2 * r) if old else new
    return ratio * x - alpha * (np.exp(-h) - 1) * d


def second_sde(x, ratio, alpha, h, predictions, r):
    """The same for the SDE, without its noise."""
    new, *old = predictions
    d = (1 + 1 / (2 * r)) * new - old[0] / (2 * r) if old else new
    return ratio * np.exp(-h) * x + alpha * (1 - np.exp(-2 * h)) * d


def third(x, ratio, alpha, h, lambdas, predictions):
    """The integral of the parabola through three predictions, by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    u = h * (nodes + 1) / 2
    flat = np.stack([np.ravel(p) for p in predictions])
    parabola = np.linalg.solve(np.vander(lambdas, 3), flat)
    integrand = np.exp(u - h)[:, None] * (np.vander(u, 3) @ parabola)
    return ratio * x + alpha * (h / 2 * weights @ integrand).reshape(x.shape)


def path_by_hand(solver, keys) -> list[np.ndarray]:
    """Returns x after each of five steps in the papers' notation, in float64."""
    alpha, sigma = (np.sqrt(a[list(TIMES[::-1])]) for a in (ALPHA_BAR, 1 - ALPHA_BAR))
    lambdas = np.log(alpha / sigma)
    x, predictions, path = np.asarray(first_noise(keys, SHAPE), np.float64), [], []
    for i, t in enumerate(TIMES[::-1]):
        predictions.insert(0, np.sin(1.5 * x) + 0.001 * t)
        if i == 4:
            return [*path, predictions[0]]
        h, ratio = lambdas[i + 1] - lambdas[i], sigma[i + 1] / sigma[i]
        r = (lambdas[i] - lambdas[i - 1]) / h if i else np.nan
        if solver is dpmpp_2m_sde:
            z = np.asarray(image_normal(step_keys(keys, jnp.float32(t)), SHAPE))
            x = second_sde(x, ratio, alpha[i + 1], h, predictions[:2], r)
            x = x + sigma[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * z
        elif solver is dpmpp_3m and i == 2:  # The step before the last is of order 2 again.
            back = lambdas[[2, 1, 0]] - lambdas[2]
            x = third(x, ratio, alpha[i + 1], h, back, predictions)
        else:
            x = second(x, ratio, alpha[i + 1], h, predictions[:2], r)
        path.append(x)
    return path


@pytest.mark.parametrize("solver", SOLVERS)
def test_five_steps_are_the_formulas_of_the_paper(solver):
    keys = image_keys(3, TWO)
    sampler = solver(make_grid(PROCESS, None, TIMES))
    result = sample_loop(BENT, sampler, keys, SHAPE, num_frames=6)
    assert result.frames_x_t is not None and result.frames_x0 is not None and sampler.nfe == 5
    expected = path_by_hand(solver, keys)
    # Five float32 steps.
    np.testing.assert_allclose(result.frames_x_t[1:], np.stack(expected), atol=1e-5)
    np.testing.assert_array_equal(result.images, result.frames_x0[4])  # It ends at x0_hat.


@pytest.mark.parametrize(("solver", "order"), [(dpmpp_2m, 2), (dpmpp_3m, 3)])
def test_the_ode_is_solved_with_the_order_that_the_solver_is_named_by(solver, order):
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    keys, errors = image_keys(0, jnp.arange(5)), []
    for num_steps in (40, 80, 160):
        # Half of the way: at the end, the third order's errors of earlier and of later steps nearly cancel.
        grid, stop = make_grid(PROCESS, num_steps + 1, "logsnr"), num_steps // 2
        x = sample_loop(
            optimal, solver(grid), keys, SHAPE, x_init=jnp.float32(x_T), stop=stop
        ).images
        errors.append(float(np.abs(x - flow(grid, x_T, 0, stop)).max()))
    np.testing.assert_allclose(slopes(errors), order, atol=0.2)


@pytest.mark.parametrize("solver", [dpmpp_2m, dpmpp_3m])
def test_normal_data_are_reached_more_precisely_than_by_ddim(solver):
    grid = make_grid(PROCESS, 21, "logsnr")
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    exact, keys = flow(grid, x_T, 0, 20), image_keys(0, jnp.arange(5))
    errors = [
        np.abs(
            sample_loop(optimal, s(grid), keys, SHAPE, x_init=jnp.float32(x_T), stop=20).images
            - exact
        ).max()
        for s in (ddim, solver)
    ]
    assert errors[1] < errors[0] / 5


def test_the_sde_reaches_normal_data_with_their_mean_and_variance():
    """In 25 steps, where the first-order solver of the same SDE, ancestral sampling, is not yet there."""
    grid, keys = make_grid(PROCESS, 25, "logsnr"), image_keys(0, jnp.arange(5000))
    solvers = dpmpp_2m_sde(grid), ancestral(grid, variance="fixed_small")
    draws = [
        jax.jit(lambda k, s=s: sample_loop(optimal, s, k, SHAPE).images)(keys) for s in solvers
    ]
    images, coarse = (np.asarray(drawn, np.float64) for drawn in draws)
    n = images.size
    # Five standard errors, and the error of 25 steps.
    assert images.mean() == pytest.approx(MEAN, abs=5 * STD / np.sqrt(n) + 0.002)
    assert images.std() == pytest.approx(STD, rel=5 / np.sqrt(2 * n) + 0.01)
    assert abs(coarse.std() / STD - 1) > 0.05


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_work_and_one_is_the_prediction(solver, num_steps):
    keys = image_keys(0, TWO)
    images = sample_loop(BENT, solver(make_grid(PROCESS, num_steps)), keys, SHAPE).images
    assert np.isfinite(images).all() and np.abs(images).max() < 2.1
    if num_steps == 1:
        x = first_noise(keys, SHAPE)
        expected = BENT(x, PROCESS.at(jnp.full(2, 999))).x0
        np.testing.assert_allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_that_starts_later_begins_with_no_memory_as_on_a_shorter_grid(compiled, solver):
    keys, x = image_keys(5, TWO), jax.random.normal(jax.random.key(1), (2, *SHAPE))
    long, short = (solver(make_grid(PROCESS, None, times)) for times in (TIMES, TIMES[:3]))
    run = compiled(
        lambda x: [
            sample_loop(BENT, long, keys, SHAPE, x_init=x, start=2).images,
            sample_loop(BENT, short, keys, SHAPE, x_init=x).images,
        ]
    )
    one, other = run(x)
    np.testing.assert_allclose(one, other, atol=1e-6)  # The same steps in two loops: rounding.


@pytest.mark.parametrize("solver", slow_after(1, SOLVERS))
def test_a_run_may_stop_on_its_way_and_images_do_not_depend_on_their_batch(solver):
    sampler = solver(make_grid(PROCESS, None, TIMES))

    @jax.jit
    def run(indices, stop):
        return sample_loop(BENT, sampler, image_keys(3, indices), SHAPE, stop=stop).images

    expected = path_by_hand(solver, image_keys(3, jnp.arange(4)))
    whole = {stop: run(jnp.arange(4), stop) for stop in (0, 3, 5)}
    np.testing.assert_array_equal(whole[0], first_noise(image_keys(3, jnp.arange(4)), SHAPE))
    for stop in (3, 5):
        np.testing.assert_allclose(whole[stop], expected[stop - 1], atol=1e-5)
    np.testing.assert_allclose(run(jnp.array([2]), 5), whole[5][2:3], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", slow_after(1, [20, 2]))
def test_jsd_whose_last_step_erases_the_image_is_sampled_without_nan(solver, num_steps):
    process = DDPM(make_schedule("jsd", 20))
    denoise = DiffusionModel(process, "eps", lambda p, x, t, labels: 0.5 * x).denoiser(None)
    sampler, keys = solver(make_grid(process, num_steps)), image_keys(0, TWO)
    images = sample_loop(denoise, sampler, keys, SHAPE).images
    assert np.isfinite(images).all()
    assert np.abs(sample_loop(clip_denoised(denoise), sampler, keys, SHAPE).images).max() <= 1
