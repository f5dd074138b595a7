"""UniPC: steps by hand from the paper's linear systems, orders of convergence, evaluations, and memory."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import counted, flow, optimal, slopes

from diffusion_jax.errors import InputError
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import dpmpp_3m, first_noise, image_keys, sample_loop, unipc

PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (2, 2, 1)
TIMES = (20, 120, 300, 500, 750, 950)
ALPHA_BAR = np.cumprod(1 - (1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999))
TWO = jnp.arange(2)  # Indices of images.


def bent(params, x_t, t, labels):
    """A prediction of x_0 that is not linear and depends on the time."""
    return jnp.sin(1.5 * x_t) + 0.001 * t[:, None, None, None]


BENT = DiffusionModel(PROCESS, "x0", bent).denoiser(None)


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 exp((1 - u) z) u^(k - 1) / (k - 1)! du, by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(30)
    u = (nodes + 1) / 2
    return float(weights @ (np.exp((1 - u) * z) * u ** (k - 1))) / 2 / factorial(k - 1)


def update(x, alpha, sigma, h, m_0, others) -> np.ndarray:
    """Zhao et al. (2023), Algorithms 1 and 2 for data prediction: others are pairs (r_k, m_k)."""
    B = np.expm1(-h)
    r = np.array([r_k for r_k, _ in others])
    powers = r ** np.arange(len(r))[:, None]
    b = [-h * factorial(n) * phi(n + 1, -h) / B for n in range(1, len(r) + 1)]
    rho = [0.5] if len(r) == 1 else np.linalg.solve(powers, b)
    D = sum((rho[k] / r[k] * (m_k - m_0) for k, (_, m_k) in enumerate(others)), 0 * x)
    return sigma[1] / sigma[0] * x - alpha[1] * (np.expm1(-h) * m_0 + B * D)


def path_by_hand(order: int, keys: jax.Array) -> list[np.ndarray]:
    """Returns what the predictor says after each of six steps in the paper's notation, in float64."""
    alpha, sigma = (np.sqrt(a[list(TIMES[::-1])]) for a in (ALPHA_BAR, 1 - ALPHA_BAR))
    lambdas = np.log(alpha / sigma)
    x = predicted = np.asarray(first_noise(keys, SHAPE), np.float64)
    m, path = [], []

    def take_step(x: np.ndarray, i: int, last: int) -> np.ndarray:
        """From point i - 1 to i with m_{i-1} and the others up to m_last."""
        h, p = lambdas[i] - lambdas[i - 1], min(order, i, 7 - i)
        others = [(j, m[j]) for j in [*range(i - 2, i - 1 - p, -1), *range(i, last + 1)]]
        scaled = [((lambdas[j] - lambdas[i - 1]) / h, m_j) for j, m_j in others]
        return update(x, alpha[[i - 1, i]], sigma[[i - 1, i]], h, m[i - 1], scaled)

    for i, t in enumerate(TIMES[::-1]):
        m.append(np.sin(1.5 * predicted) + 0.001 * t)
        if i > 0:
            x = take_step(x, i, last=i)  # UniC, from the corrected x before.
        if i == 5:
            return [*path, m[-1]]
        predicted = take_step(x, i + 1, last=i)  # UniP.
        path.append(predicted)
    return path


@pytest.mark.parametrize("order", [1, 2, 3])
def test_six_steps_are_the_predictor_and_the_corrector_of_the_paper(order):
    keys = image_keys(3, TWO)
    sampler = unipc(make_grid(PROCESS, None, TIMES), order=order)
    result = sample_loop(BENT, sampler, keys, SHAPE, num_frames=7)
    assert result.frames_x_t is not None and result.frames_x0 is not None
    # Six float32 steps.
    np.testing.assert_allclose(
        result.frames_x_t[1:], np.stack(path_by_hand(order, keys)), atol=1e-5
    )
    np.testing.assert_array_equal(result.images, result.frames_x0[5])  # It ends at x0_hat.


def errors_of(make_sampler, numbers: list[int]) -> list[float]:
    """Largest errors half of the way along grids of these numbers of steps, on normal data."""
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    keys, errors = image_keys(0, jnp.arange(5)), []
    for num_steps in numbers:
        grid, stop = make_grid(PROCESS, num_steps + 1, "logsnr"), num_steps // 2
        run = sample_loop(
            optimal, make_sampler(grid), keys, SHAPE, x_init=jnp.float32(x_T), stop=stop
        )
        errors.append(float(np.abs(run.images - flow(grid, x_T, 0, stop)).max()))
    return errors


@pytest.mark.parametrize(
    ("order", "numbers"), [(1, [80, 160]), (2, [40, 80, 160]), (3, [20, 40, 80])]
)
def test_the_corrector_raises_the_order_of_the_predictor_by_one(order, numbers):
    # With more steps of order 4 float32 shows.
    errors = errors_of(lambda grid: unipc(grid, order=order), numbers)
    np.testing.assert_allclose(slopes(errors), order + 1, atol=0.2)


def test_of_the_default_order_it_is_more_precise_than_its_predictor_alone():
    (corrected,), (predicted,) = errors_of(unipc, [40]), errors_of(dpmpp_3m, [40])
    assert corrected < predicted / 3


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_there_is_one_evaluation_a_step_and_one_step_is_the_prediction(num_steps):
    sampler, keys = unipc(make_grid(PROCESS, num_steps)), image_keys(0, TWO)
    denoise, calls = counted(BENT)
    images = sample_loop(denoise, sampler, keys, SHAPE).images
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == num_steps
    assert np.isfinite(images).all() and np.abs(images).max() < 2.1
    if num_steps == 1:
        expected = BENT(first_noise(keys, SHAPE), PROCESS.at(jnp.full(2, 999))).x0
        np.testing.assert_allclose(images, expected, atol=1e-6)


def test_a_run_that_starts_later_begins_with_no_memory_as_on_a_shorter_grid():
    keys, x = image_keys(5, TWO), jax.random.normal(jax.random.key(1), (2, *SHAPE))
    long, short = (unipc(make_grid(PROCESS, None, times)) for times in (TIMES, TIMES[:4]))
    one = sample_loop(BENT, long, keys, SHAPE, x_init=x, start=2).images
    other = sample_loop(BENT, short, keys, SHAPE, x_init=x).images
    np.testing.assert_allclose(one, other, atol=1e-6)  # The same steps in two loops: rounding.


@pytest.mark.parametrize("num_steps", [2, 20])
def test_jsd_whose_last_step_erases_the_image_is_sampled_without_nan(num_steps):
    process = DDPM(make_schedule("jsd", 20))
    denoise = DiffusionModel(process, "eps", lambda p, x, t, labels: 0.5 * x).denoiser(None)
    images = sample_loop(
        denoise, unipc(make_grid(process, num_steps)), image_keys(0, TWO), SHAPE
    ).images
    assert np.isfinite(images).all()


@pytest.mark.parametrize("order", [0, 4])
def test_an_order_that_there_is_not_is_one_clear_line(order):
    with pytest.raises(InputError, match=f"^order is {order}; it must be 1, 2 or 3$"):
        unipc(make_grid(PROCESS, 5), order=order)
