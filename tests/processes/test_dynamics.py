"""SDEs against closed forms: the kernels of VP, sub-VP and VE, normal data, and Benes's SDE, which is not affine."""

import jax
import jax.numpy as jnp
import nonlinear_sde
import numpy as np
import pytest
from scipy.stats import kstest, norm
from slow import slow_after, slow_but

from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.exact import flow_likelihood
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.dynamics import (
    normal_prior,
    of_process,
    probability_flow,
    reverse,
    simulate,
    simulate_along,
)
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.ode import solve
from diffusion_jax.processes.schedules import make_schedule
from diffusion_jax.processes.sde import VE, VP, SubVP

N = 10_000
MEAN, STD = 0.6, 0.5  # Of normal data.
PROCESSES = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_min=0.1, sigma_max=10.0),
    "ddpm": DDPM(make_schedule("linear", 100)),
}


def keys(n: int = N) -> jax.Array:
    return indexed(jax.random.key(3), jnp.arange(n))


def is_normal(x, mean, variance, bias: float) -> None:
    """Five standard errors of the moments of N draws, and the relative bias of the rule."""
    x, spread = np.asarray(x, float).ravel(), np.sqrt(variance)
    np.testing.assert_allclose(x.mean(), mean, atol=spread * (5 / np.sqrt(N) + bias))
    np.testing.assert_allclose(x.var(), variance, rtol=5 * np.sqrt(2 / N) + bias)
    # 1.95 / sqrt(n) is exceeded once in a thousand.
    assert kstest(x, "norm", (mean, spread)).statistic < 1.95 / np.sqrt(N) + bias


@pytest.mark.parametrize("name", slow_but(["vp"], PROCESSES))
def test_simulation_has_the_moments_of_the_closed_form_at_each_images_own_time(name):
    process = PROCESSES[name]
    sde = of_process(process)
    shares = jnp.where(jnp.arange(2 * N) % 2 == 0, 0.2, 0.5)
    times = sde.start + (sde.end - sde.start) * shares
    x0 = jnp.full((2 * N, 1), 0.7)
    x = jax.jit(lambda x, t: simulate(sde, keys(2 * N), x, sde.start, t, 100))(x0, times)
    start = process.at(jnp.array([sde.start]))
    for i in range(2):
        point = process.at(times[i : i + 1])
        signal = float(point.signal[0] / start.signal[0])
        variance = float(point.std[0] ** 2 - (signal * start.std[0]) ** 2)
        # Of VE's 100 steps sigma^2 grows by up to 1 + 2 * 2.3 / 100 in each: the left end's is half of that too little.
        # The others' signals are off by at most the sum of (rate dt)^2 / 2, 0.02.
        is_normal(x[i::2], 0.7 * signal, variance, bias=0.03)


def test_the_sde_of_a_process_ends_in_its_prior_and_its_coefficients_are_the_rates():
    sde = of_process(VP())
    assert (sde.start, sde.end) == (0.0, 999.0)
    t = jnp.array([0.0, 499.5])
    # beta(u) = 0.1 + 19.9 u, by a time that is 999 u.
    beta = np.array([0.1, 0.1 + 19.9 / 2]) / 999
    np.testing.assert_allclose(sde.diffusion(t), np.sqrt(beta), rtol=1e-5)
    np.testing.assert_allclose(
        sde.drift(jnp.ones((2, 3)), t), np.outer(-beta / 2, np.ones(3)), rtol=1e-5
    )
    x = of_process(VE(sigma_max=50.0)).prior.sample(keys(), (1,))
    is_normal(x, 0, 2500, bias=0)


def normal_score(process):
    def score(x, t):
        point = process.at(t)
        variance = (point.signal * STD) ** 2 + point.std**2
        return (MEAN * per_image(point.signal, x) - x) / per_image(variance, x)

    return score


@pytest.mark.parametrize("name", slow_after(1, ["vp", "ve"]))
def test_the_reverse_sde_takes_the_last_marginal_of_normal_data_to_the_first(name, rng):
    process = PROCESSES[name]
    back = reverse(of_process(process), normal_score(process))
    least = back.start + 1e-3 * (back.end - back.start)
    first, last = (marginal(process, t) for t in (least, back.end))
    x = jnp.asarray(last[0] + np.sqrt(last[1]) * rng.normal(size=(N, 1)), jnp.float32)
    x = jax.jit(lambda x: simulate(back, keys(), x, back.end, least, 400))(x)
    # Each of 400 steps is at most 0.05 of the time in which x relaxes (beta 20, or 2 log 100 for VE).
    is_normal(x, *first, bias=0.04)


def marginal(process, t: float) -> tuple[float, float]:
    """Mean and variance of normal data at a time."""
    point = process.at(np.array([t]))
    signal = point.signal[0]
    return signal * MEAN, (signal * STD) ** 2 + point.std[0] ** 2


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_the_probability_flow_of_normal_data_keeps_the_distance_from_the_mean_in_deviations(name):
    process = PROCESSES[name]
    sde = of_process(process)
    field = probability_flow(sde, normal_score(process))
    times = sde.end, sde.start + 1e-3 * (sde.end - sde.start)
    (mean, variance), (mean_back, variance_back) = (marginal(process, t) for t in times)
    z = np.linspace(-3, 3, 7)
    x = jnp.asarray(mean + z * np.sqrt(variance), jnp.float32)[:, None]
    end, least = (jnp.full(7, t, jnp.float32) for t in times)
    solution = jax.jit(lambda x: solve(field, x, end, least, rtol=1e-6, atol=1e-6))(x)
    assert solution.stats.finished.all()
    # The tolerances, over the steps.
    expected = mean_back + z * np.sqrt(variance_back)
    np.testing.assert_allclose(solution.y[:, 0], expected, atol=2e-4)


def test_a_drift_that_is_not_affine_takes_one_known_marginal_to_another_and_back(compiled, rng):
    x0, x1 = (nonlinear_sde.draw(rng, N, 1, t) for t in (0.0, nonlinear_sde.END))
    back = reverse(nonlinear_sde.BENES, nonlinear_sde.score)
    moves = (nonlinear_sde.BENES, x0, 0.0, nonlinear_sde.END), (back, x1, nonlinear_sde.END, 0.0)
    for sde, x, t_from, t_to in moves:
        moved = compiled(lambda x: simulate(sde, keys(), x, t_from, t_to, 50))(x)  # noqa: B023
        tau = nonlinear_sde.S + t_to

        def cdf(x, tau=tau):
            return (norm.cdf(x, tau, tau**0.5) + norm.cdf(x, -tau, tau**0.5)) / 2

        # 1.95 / sqrt(n) is exceeded once in a thousand; steps of 0.02 bias the density by about as much.
        assert kstest(np.asarray(moved[:, 0], float), cdf).statistic < 1.95 / np.sqrt(N) + 0.01
        assert kstest(np.asarray(x[:, 0], float), cdf).statistic > 0.05  # It was elsewhere.


def test_the_flow_of_a_drift_that_is_not_affine_has_the_likelihood_of_the_known_marginal(rng):
    x = nonlinear_sde.draw(rng, 20, 2, 0.0)
    field = probability_flow(nonlinear_sde.BENES, nonlinear_sde.score)
    prior = nonlinear_sde.BENES.prior.log_density
    ends = jnp.zeros(20), jnp.full(20, nonlinear_sde.END)
    result = jax.jit(lambda x: flow_likelihood(field, x, *ends, prior))(x)
    # The tolerances of 1e-5 a step.
    np.testing.assert_allclose(result.log_likelihood, nonlinear_sde.log_density(x, 0.0), atol=2e-4)


def test_euler_maruyama_has_strong_order_one_with_additive_noise(compiled, rng):
    b, fine, coarse = 200, 1024, np.array([8, 16, 32, 64])
    z = rng.normal(size=(fine, b, 2))
    x = nonlinear_sde.draw(rng, b, 2, 0.0)

    def end(n: int) -> np.ndarray:
        # Increments of one path: sums of its finest, each scaled to variance 1.
        summed = z.reshape(n, fine // n, b, 2).sum(1) / np.sqrt(fine // n)
        path = jnp.asarray(summed, jnp.float32)
        return np.asarray(
            compiled(lambda x: simulate_along(nonlinear_sde.BENES, path, x, 0.0, 1.0))(x)
        )

    exact = end(fine)
    errors = [np.sqrt(np.mean((end(n) - exact) ** 2)) for n in coarse]
    slope = np.polyfit(np.log(coarse), np.log(errors), 1)[0]
    # The reference's own error is 1/16 of the last one: the slope is off by some 0.03.
    np.testing.assert_allclose(slope, -1, atol=0.1)


def test_an_image_is_simulated_from_its_own_key():
    x = jnp.ones((4, 2, 2, 1))
    sde = of_process(VP())
    every = simulate(sde, keys(4), x, 0.0, 500.0, 3)
    one = simulate(sde, keys(4)[2:3], x[2:3], 0.0, 500.0, 3)
    np.testing.assert_allclose(
        one[0], every[2], rtol=1e-5
    )  # Programs of two shapes round differently.
    assert len(np.unique(np.asarray(every))) == every.size


def test_the_normal_prior_is_drawn_and_measured(rng):
    prior = normal_prior(3.0)
    is_normal(prior.sample(keys(N // 4), (2, 2)), 0, 9, bias=0)
    x = rng.normal(size=(5, 2, 3))
    expected = norm.logpdf(x, scale=3).sum((1, 2))
    density = prior.log_density(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(density, expected, rtol=1e-6)
