"""PNDM: steps by hand from the paper's formulas, order of convergence, evaluations, memory, and shared noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import counted, flow, optimal, slopes

from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.samplers import (
    ddim,
    first_noise,
    heun,
    image_keys,
    pndm,
    sample_loop,
    shared_structure,
)

PROCESS = DDPM(make_schedule("linear", 1000))
SHAPE = (2, 2, 1)
TIMES = (10, 150, 300, 460, 620, 780, 940)  # The times halfway are integers.
# alpha_bar at the data, time -1, and at all steps.
ALPHA_BAR = np.append(1.0, np.cumprod(1 - (1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999)))
TWO = jnp.arange(2)  # Indices of images.


def bent(params, x_t, t, labels):
    """A network that is not linear and depends on the time."""
    return jnp.sin(1.5 * x_t) + 0.001 * t[:, None, None, None]


BENT = DiffusionModel(PROCESS, "eps", bent).denoiser(None)


def transfer(x: np.ndarray, eps: np.ndarray, t: int, s: int) -> np.ndarray:
    """The transfer phi of Liu et al. (2022), as they write it, in alpha_bar."""
    a, b = ALPHA_BAR[t + 1], ALPHA_BAR[s + 1]
    below = np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b))
    return np.sqrt(b / a) * x - (b - a) / below * eps


def path_by_hand(keys: jax.Array, times: tuple[int, ...]) -> list[np.ndarray]:
    """Returns x after each step of Algorithm 2, in float64."""

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        return np.sin(1.5 * x) + 0.001 * t

    x, old, path = np.asarray(first_noise(keys, SHAPE), np.float64), [], []
    for t, s in zip(times[::-1], [*times[-2::-1], -1], strict=True):
        e = [eps(x, t)]
        old.insert(0, e[0])
        if len(old) <= 3 and s >= 0:
            middle = (t + s) // 2
            e.append(eps(transfer(x, e[0], t, middle), middle))
            e.append(eps(transfer(x, e[1], t, middle), middle))
            e.append(eps(transfer(x, e[2], t, s), s))
            combined = (e[0] + 2 * e[1] + 2 * e[2] + e[3]) / 6
        else:
            known = min(len(old), 4)
            # The integral over the step ahead of the polynomial through the last values, at 0, -1, ...
            powers = np.vander(-np.arange(known), increasing=True).T
            weights = np.linalg.solve(powers, 1 / np.arange(1, known + 1))
            combined = np.tensordot(weights, np.stack(old[:4]), 1)
        x = transfer(x, combined, t, s)
        path.append(x)
    return path


@pytest.mark.parametrize("times", [TIMES, TIMES[:3]])
def test_steps_are_the_formulas_of_the_paper(times):
    keys = image_keys(3, TWO)
    sampler = pndm(make_grid(PROCESS, None, times), PROCESS)
    result = sample_loop(BENT, sampler, keys, SHAPE, num_frames=len(times) + 1)
    assert result.frames_x_t is not None
    # Seven float32 steps, the first of which multiplies x by up to 3.
    expected = np.stack(path_by_hand(keys, times))
    np.testing.assert_allclose(result.frames_x_t[1:], expected, atol=3e-5, rtol=1e-5)


def test_the_ode_is_solved_with_order_2_as_the_paper_proves_and_far_more_precisely_than_by_ddim():
    x_T = np.linspace(-2, 2, 5)[:, None, None, None] * np.ones(SHAPE)
    keys, errors = image_keys(0, jnp.arange(5)), []

    def error(make_sampler, num_steps: int) -> float:
        """Over evenly spaced timesteps from 999 to 39, whose halves are timesteps, too."""
        grid = make_grid(PROCESS, None, tuple(range(39, 1000, 960 // num_steps)))
        sampler, x = make_sampler(grid), jnp.float32(x_T)
        drawn = sample_loop(optimal, sampler, keys, SHAPE, x_init=x, stop=num_steps).images
        return float(np.abs(drawn - flow(grid, x_T, 0, num_steps)).max())

    errors = [error(lambda grid: pndm(grid, PROCESS), n) for n in (60, 120, 240)]
    np.testing.assert_allclose(slopes(errors), 2, atol=0.2)
    assert errors[0] < error(ddim, 60) / 50


@pytest.mark.parametrize(("num_steps", "nfe"), [(1, 1), (2, 5), (3, 9), (4, 13), (6, 15)])
def test_only_the_runge_kutta_steps_have_four_evaluations(num_steps, nfe):
    sampler, keys = pndm(make_grid(PROCESS, num_steps), PROCESS), image_keys(0, TWO)
    denoise, calls = counted(BENT)
    images = sample_loop(denoise, sampler, keys, SHAPE).images
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == nfe
    assert np.isfinite(images).all()
    if num_steps == 1:
        expected = BENT(first_noise(keys, SHAPE), PROCESS.at(jnp.full(2, 999))).x0
        np.testing.assert_allclose(images, expected, rtol=1e-5)


def test_a_run_that_starts_later_begins_with_no_memory_as_on_a_shorter_grid():
    keys, x = image_keys(5, TWO), jax.random.normal(jax.random.key(1), (2, *SHAPE))
    long, short = (pndm(make_grid(PROCESS, None, times), PROCESS) for times in (TIMES, TIMES[:5]))
    one = sample_loop(BENT, long, keys, SHAPE, x_init=x, start=2).images
    other = sample_loop(BENT, short, keys, SHAPE, x_init=x).images
    np.testing.assert_allclose(one, other, atol=1e-5)  # The same steps in two loops: rounding.


@pytest.mark.parametrize("make", [pndm, heun])
def test_solvers_that_branch_draw_several_samples_from_one_point(make):
    """Under `vmap` as without: no image of another branch, and none at the data, spoils them."""
    sampler, keys = make(make_grid(PROCESS, None, TIMES), PROCESS), image_keys(3, TWO)
    shared = jax.jit(lambda: shared_structure(BENT, sampler, keys, SHAPE, 2, 3))()
    onward = sample_loop(BENT, sampler, keys, SHAPE, x_init=shared.x_t, start=2).images
    for k in range(3):
        np.testing.assert_allclose(shared.samples[:, k], onward, rtol=1e-5, atol=1e-5)
