"""The Gaussian process against the one-step kernel iterated, and against Bayes' rule on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.processes import gaussian
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Point
from diffusion_jax.processes.schedules import SCHEDULES, make_schedule, schedule_arrays

SCHEDULE = make_schedule("linear", 60, 1e-3, 0.2)
PROCESS = DDPM(SCHEDULE)


def images(rng, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
def test_q_sample_has_the_moments_of_the_iterated_kernel(compiled, name):
    schedule = make_schedule(name, 60)
    point = DDPM(schedule).at(jnp.arange(60))
    ones, zeros = jnp.ones((60, 1, 1, 1)), jnp.zeros((60, 1, 1, 1))
    q_sample = compiled(gaussian.q_sample)
    scale = q_sample(point, ones, zeros)[:, 0, 0, 0]
    std = q_sample(point, zeros, ones)[:, 0, 0, 0]

    mean, variance = 1.0, 0.0
    for step, beta in enumerate(schedule_arrays(schedule).betas.astype(float)):
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        # jsd ends at 0, kept at 2e-9. The betas are read in float32: 60 relative errors of 6e-8 add
        # up, times 1 / (1 - beta) = 1e3 for cosine.
        np.testing.assert_allclose(scale[step], mean, rtol=6e-5, atol=1e-8)
        np.testing.assert_allclose(std[step] ** 2, variance, rtol=5e-6)


def test_q_sample_agrees_with_simulating_the_chain(rng):
    n, steps = 40_000, 10
    x = np.full(n, 0.8)
    for beta in schedule_arrays(SCHEDULE).betas[:steps].astype(float):
        x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.normal(size=n)
    point = PROCESS.at(jnp.full((n,), steps - 1))
    direct = gaussian.q_sample(point, jnp.full((n, 1), 0.8), images(rng, n, 1))
    # Five standard errors of a difference of means, and of a relative difference of variances.
    np.testing.assert_allclose(np.mean(direct), x.mean(), atol=5 * x.std() * np.sqrt(2 / n))
    np.testing.assert_allclose(np.var(direct), x.var(), rtol=5 * np.sqrt(2 * 2 / n))


@pytest.mark.parametrize("t", [1, 2, 20, 59])
def test_q_posterior_is_bayes_rule_on_a_grid(compiled, t):
    x0, x_t = 0.4, -0.3
    betas = schedule_arrays(SCHEDULE).betas.astype(float)
    prior_mean, prior_variance = x0, 0.0
    for beta in betas[:t]:
        prior_mean, prior_variance = (
            np.sqrt(1 - beta) * prior_mean,
            (1 - beta) * prior_variance + beta,
        )
    grid = np.linspace(-12, 12, 2_400_001) * np.sqrt(prior_variance) + prior_mean
    log_density = -((grid - prior_mean) ** 2) / (2 * prior_variance)
    log_density += -((x_t - np.sqrt(1 - betas[t]) * grid) ** 2) / (2 * betas[t])
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = weights @ grid
    variance = weights @ (grid - mean) ** 2

    posterior = compiled(
        lambda x0, x_t, i: gaussian.q_posterior(make_grid(PROCESS), x0, x_t, step=i)
    )(jnp.full((1, 1, 1, 1), x0), jnp.full((1, 1, 1, 1), x_t), jnp.array([59 - t]))
    # Sums over the grid are exact to 1e-9; the rest is float32.
    np.testing.assert_allclose(posterior.mean.item(), mean, atol=1e-6)
    np.testing.assert_allclose(posterior.variance.item(), variance, rtol=2e-6)
    np.testing.assert_allclose(posterior.log_variance.item(), np.log(variance), atol=2e-6)


def test_first_posterior_is_the_clean_image(rng):
    x0, x_t = images(rng, 3, 4, 4, 1), images(rng, 3, 4, 4, 1)
    posterior = gaussian.q_posterior(make_grid(PROCESS), x0, x_t, step=jnp.full(3, 59))
    np.testing.assert_array_equal(posterior.mean, x0)
    np.testing.assert_array_equal(posterior.variance, 0)
    assert posterior.variance.shape == posterior.log_variance.shape == (3, 1, 1, 1)


# Variance preserving, variance exploding, and neither: (signal, std) of five images.
PAIRS = {
    "vp": PROCESS.at(jnp.array([0, 5, 20, 40, 59])),
    "ve": Point(jnp.arange(5.0), jnp.ones(5), jnp.array([0.05, 0.3, 1.0, 4.0, 20.0])),
    "other": Point(jnp.arange(5.0), jnp.array([0.9, 2.0, 0.3, 1.0, 0.1]), jnp.linspace(0.1, 2, 5)),
}


@pytest.mark.parametrize("point", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("shape", [(2,), (4, 4, 3), ()])
def test_conversions_between_eps_x0_and_v_are_inverse(compiled, rng, shape, point):
    x0, eps = images(rng, 5, *shape), images(rng, 5, *shape)

    def convert(x0, eps):
        x_t = gaussian.q_sample(point, x0, eps)
        v = gaussian.v_from_x0_eps(point, x0, eps)
        return (
            (gaussian.x0_from_eps(point, x_t, eps), x0),
            (gaussian.eps_from_x0(point, x_t, x0), eps),
            (gaussian.x0_from_v(point, x_t, v), x0),
            (gaussian.eps_from_v(point, x_t, v), eps),
        )

    for value, expected in compiled(convert)(x0, eps):
        # Dividing by a signal or std >= 0.03 relative to the other magnifies a rounding of 1e-7.
        np.testing.assert_allclose(value, expected, atol=3e-5)


def test_v_is_the_derivative_of_x_t_along_the_angle(rng):
    # Salimans & Ho (2022): x_phi = cos(phi) x0 + sin(phi) eps and v = dx/dphi.
    t, x0, eps = 30, rng.normal(size=7), rng.normal(size=7)
    phi = np.arccos(np.sqrt(np.prod(1 - schedule_arrays(SCHEDULE).betas[: t + 1].astype(float))))
    x = [np.cos(angle) * x0 + np.sin(angle) * eps for angle in (phi - 1e-6, phi + 1e-6)]
    v = gaussian.v_from_x0_eps(
        PROCESS.at(jnp.array([t])),
        jnp.asarray(x0[None], jnp.float32),
        jnp.asarray(eps[None], jnp.float32),
    )
    np.testing.assert_allclose(v[0], (x[1] - x[0]) / 2e-6, atol=2e-6)


def test_score_is_the_gradient_of_the_log_density(compiled, rng):
    # For one clean image, q(x_t | x_0) is normal and its score is known from autodiff of the log
    # density.
    point, x0, eps = PROCESS.at(jnp.array([3, 30])), images(rng, 2, 5), images(rng, 2, 5)
    x_t = gaussian.q_sample(point, x0, eps)
    alpha_bar = jnp.asarray(
        np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))[np.array([3, 30])],
        jnp.float32,
    )

    def log_density(x):
        residual = x - jnp.sqrt(alpha_bar)[:, None] * x0
        return -jnp.sum(residual**2 / (2 * (1 - alpha_bar[:, None])))

    score = compiled(gaussian.score_from_eps)(point, eps)
    np.testing.assert_allclose(score, jax.grad(log_density)(x_t), rtol=1e-4, atol=1e-4)


def test_clipping_limits_pixels_to_their_range():
    clipped = gaussian.clip_x0(jnp.array([[-3.0, -1.0, 0.25, 1.0, 7.0]]))
    np.testing.assert_array_equal(clipped, [[-1, -1, 0.25, 1, 1]])


@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_are_finite_on_every_step_of_every_schedule(rng, name):
    point = DDPM(make_schedule(name, 100)).at(jnp.arange(100))
    x, y = images(rng, 100, 3), images(rng, 100, 3)
    for function in (
        gaussian.x0_from_eps,
        gaussian.eps_from_x0,
        gaussian.x0_from_v,
        gaussian.eps_from_v,
    ):
        assert np.isfinite(function(point, x, y)).all()


def test_steps_of_a_grid_that_is_not_variance_preserving_are_those_of_the_joint_normal():
    # Signal and std at three points of a process that neither preserves nor explodes the variance.
    signal, std = np.array([0.4, 0.9, 1.1]), np.array([3.0, 0.7, 0.2])
    grid = Grid(np.arange(3.0), np.log(signal), std, prior_std=3.0)
    table = gaussian.steps(grid)
    for i in range(2):
        # Cov of (x_s, x_t) given x_0: x_t = a x_s + noise, and a is what makes x_t's mean right.
        a = signal[i] / signal[i + 1]
        covariance = a * std[i + 1] ** 2
        gain = covariance / std[i] ** 2
        np.testing.assert_allclose(table.signal[i], a)
        np.testing.assert_allclose(table.variance[i], std[i] ** 2 - a**2 * std[i + 1] ** 2)
        np.testing.assert_allclose(table.coef_xt[i], gain)
        np.testing.assert_allclose(table.coef_x0[i], signal[i + 1] - gain * signal[i])
        np.testing.assert_allclose(table.posterior_variance[i], std[i + 1] ** 2 - gain * covariance)
