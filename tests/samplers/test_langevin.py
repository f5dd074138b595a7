"""Langevin moves on normal data: their stationary distribution, the paper's step size, annealing, and evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.normal_data import MEAN, STD, counted, optimal

from diffusion_jax.errors import InputError
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.sde import VE, VP
from diffusion_jax.samplers import image_keys, langevin, predictor_corrector, sample_loop
from diffusion_jax.samplers.langevin import moves, step_sizes
from diffusion_jax.samplers.loop import State

SHAPE = (2, 2, 1)
PROCESS = VE(sigma_min=0.05, sigma_max=5.0)


def drawn(sampler, stop: int, n: int = 2000) -> np.ndarray:
    draw = jax.jit(lambda keys: sample_loop(optimal, sampler, keys, SHAPE, stop=stop).images)
    return np.asarray(draw(image_keys(0, jnp.arange(n))), np.float64)


def test_moves_end_at_the_stationary_distribution_of_the_discrete_chain(compiled):
    point = PROCESS.at(jnp.full(1000, np.log(0.5)))
    size = jnp.float32(0.2)
    run = compiled(
        lambda keys: (
            moves(optimal, State(*jnp.zeros((2, 1000, *SHAPE))), point, size, keys, range(60)).x
        )
    )
    x = np.asarray(run(image_keys(0, jnp.arange(1000))), np.float64)
    # With k = 1 - size / width^2, x - m becomes k (x - m) + (2 size)^(1/2) z: a variance v = k^2 v + 2 size.
    width2 = STD**2 + 0.5**2
    variance = width2 / (1 - 0.2 / (2 * width2))
    # Five standard errors; what is left of the start is below (1 - 0.2 / 0.41)^60.
    assert x.mean() == pytest.approx(MEAN, abs=5 * np.sqrt(variance / x.size))
    assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / x.size))


def test_the_step_size_is_the_papers_for_cifar10():
    """Song & Ermon (2020), Table 3: sigma from 50 to 0.01 in 232 levels, 5 moves: epsilon = 6.2e-6."""
    sigma = np.geomspace(50, 0.01, 232)
    epsilon = step_sizes(sigma[:-1] / sigma[1:], 5) * 0.01**2
    np.testing.assert_allclose(epsilon, 6.2e-6, atol=0.05e-6)


@pytest.mark.parametrize(("ratio", "count"), [(1.01, 1), (1.3, 3), (2.6, 5), (30.0, 100)])
def test_no_other_step_size_lets_the_variance_follow_sigma_more_closely(ratio, count):
    def after(eta: np.ndarray) -> np.ndarray:
        s2 = np.full_like(eta, ratio**2)
        for _ in range(count):
            s2 = (1 - eta) ** 2 * s2 + 2 * eta
        return np.abs(s2 - 1)

    chosen = after(step_sizes(np.array([ratio]), count))
    assert chosen <= after(np.linspace(1e-5, 1.999, 20_000)).min() + 1e-9


def test_annealing_has_the_variance_of_its_linear_chain_at_every_level():
    """Levels that are not geometric, each with the step size of its own ratio."""
    grid = make_grid(PROCESS, None, np.log([0.06, 0.1, 0.3, 1.0, 4.0]).tolist())
    mean, variance = 0.0, 4.0**2  # It begins with the noise of its own first level.
    for i in range(1, 5):
        level, eta = grid.std[i], step_sizes(grid.std[i - 1 : i] / grid.std[i : i + 1], 3)[0]
        size = eta * level**2
        keep = 1 - size / (level**2 + STD**2)
        for _ in range(3):
            mean, variance = MEAN + keep * (mean - MEAN), keep**2 * variance + 2 * size
        x = drawn(langevin(grid, num_moves=3), i)
        assert x.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / x.size))
        assert x.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / x.size))


@pytest.mark.parametrize(
    ("make", "nfe"),
    [
        (lambda grid: langevin(grid, num_moves=3), 3 * 3 + 1),
        (lambda grid: predictor_corrector(grid, PROCESS, corrector_steps=2), 3 * 3 + 1),
        (lambda grid: predictor_corrector(grid, PROCESS, corrector_steps=0), 4),
    ],
)
def test_moves_are_evaluations_and_the_step_to_the_data_is_one_without_noise(make, nfe):
    sampler, (denoise, calls) = make(make_grid(PROCESS, 4, "logsnr")), counted(optimal)
    keys = image_keys(0, jnp.arange(2))
    result = sample_loop(denoise, sampler, keys, SHAPE, num_frames=5)
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == nfe
    assert sampler.cost(0, 3) + sampler.cost(3, 4) == nfe
    assert result.frames_x_t is not None
    x, point = result.frames_x_t[3], sampler.grid.at(jnp.full(2, 3))
    np.testing.assert_allclose(result.images, optimal(x, point).x0, rtol=1e-5)


@pytest.mark.parametrize("make", [langevin, lambda grid: predictor_corrector(grid, PROCESS)])
def test_an_image_depends_on_its_own_key_alone_and_every_move_has_other_noise(make):
    sampler = make(make_grid(PROCESS, 4, "logsnr"))
    draw = jax.jit(lambda keys: sample_loop(optimal, sampler, keys, SHAPE).images)
    images = draw(image_keys(0, jnp.arange(4)))
    shuffled = draw(image_keys(0, jnp.array([7, 3, 0, 9])))
    np.testing.assert_array_equal(shuffled[jnp.array([2, 1])], images[jnp.array([0, 3])])
    assert np.abs(images[0] - images[1]).max() > 0.01


def test_the_noises_of_one_step_are_independent():
    """Two moves of x = 0 + 2^(1/2) (z_1 + z_2), with a score of 0, have the variance of independent ones: 4."""

    def still(x_t, point):
        return optimal(x_t, point)._replace(score=jnp.zeros_like(x_t))

    sampler, n = langevin(make_grid(PROCESS, 2), num_moves=2, step_size=1.0), 2000
    state = sampler.init(jnp.zeros((n, *SHAPE)))
    moved = sampler.advance(still, state, jnp.int32(0), image_keys(0, jnp.arange(n))).x
    expected = 4 * sampler.grid.std[1] ** 2
    assert float(moved.var()) == pytest.approx(expected, rel=5 * np.sqrt(2 / moved.size))


def test_the_corrector_adds_the_noise_that_the_signal_to_noise_ratio_asks_for():
    """Of VP from u = 0.4 to 0.3: epsilon = 2 alpha (r std_s)^2, where log alpha is minus the integral of beta."""

    def still(x_t, point):
        return optimal(x_t, point)._replace(score=jnp.zeros_like(x_t))

    process, n = VP(), 4000
    grid = make_grid(process, None, [999 * 0.3, 999 * 0.4])
    integrals = [0.1 * u + 9.95 * u**2 for u in (0.3, 0.4)]
    alpha, std2 = np.exp(integrals[0] - integrals[1]), 1 - np.exp(-integrals[0])
    sampler = predictor_corrector(grid, process, corrector_steps=3, snr=0.5)
    state = sampler.init(jnp.zeros((n, *SHAPE)))
    moved = sampler.advance(still, state, jnp.int32(0), image_keys(0, jnp.arange(n))).x
    # The predictor's own noise, and that of three moves.
    expected = 1 - alpha + 3 * 2 * (2 * alpha * 0.5**2 * std2)
    assert float(moved.var()) == pytest.approx(expected, rel=5 * np.sqrt(2 / moved.size))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: langevin(make_grid(VP(), 5)),
            r"langevin is for processes that keep the signal \(ve, ncsn\); it is",
        ),
        (
            lambda: langevin(make_grid(PROCESS, 5), num_moves=0),
            "num_moves is 0; it must be 1 or more",
        ),
        (
            lambda: langevin(make_grid(PROCESS, 5), step_size=2.0),
            "step_size is 2.0; it must be above 0",
        ),
        (
            lambda: predictor_corrector(make_grid(PROCESS, 5), PROCESS, corrector_steps=-1),
            "corrector_steps is -1; it must be 0 or more",
        ),
        (
            lambda: predictor_corrector(make_grid(PROCESS, 5), PROCESS, snr=1.0),
            "snr is 1.0; it must be above 0 and below 1",
        ),
        (
            lambda: predictor_corrector(make_grid(PROCESS, 5), PROCESS, predictor="heun"),
            "unknown predictor 'heun'; choose one of ancestral, eul",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(make, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make()
