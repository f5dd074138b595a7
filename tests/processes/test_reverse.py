"""The reverse step against densities integrated on a grid and the paper's own forms of its KL."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from diffusion_jax.errors import InputError
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.reverse import VARIANCES, p_posterior, posterior_kl, prior_kl
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays

T = 50
SCHEDULE = make_schedule("linear", T)
PROCESS = DDPM(SCHEDULE)
BETA = schedule_arrays(SCHEDULE).betas.astype(float)
ALPHA_BAR = np.cumprod(1 - BETA)


def integrated_kl(q: tuple[Any, Any], p: tuple[Any, Any]) -> float:
    """KL of two normal densities, (mean, std) each, by quadrature."""

    def log_density(x, mean, std):
        return -(((x - mean) / std) ** 2) / 2 - np.log(std * np.sqrt(2 * np.pi))

    def integrand(x):
        return np.exp(log_density(x, *q)) * (log_density(x, *q) - log_density(x, *p))

    mean, std = q
    value, _ = integrate.quad(
        integrand, mean - 12 * std, mean + 12 * std, epsabs=1e-14, epsrel=1e-10, limit=200
    )
    return value


def chain(grid) -> tuple[np.ndarray, ...]:
    """beta, alpha_bar and the alpha_bar before, of the steps of a grid, by its times alone."""
    alpha_bar = ALPHA_BAR[grid.time[:-1].astype(int)]
    before = np.append(alpha_bar[1:], 1.0)
    return 1 - alpha_bar / before, alpha_bar, before


def log_variances(grid, variance: str, fraction: float) -> np.ndarray:
    """By the papers' words: beta, beta_tilde, or between them in log; the last beta_tilde is the one before."""
    beta, alpha_bar, before = chain(grid)
    beta_tilde = beta * (1 - before) / (1 - alpha_bar)
    beta_tilde[-1] = beta_tilde[-2]
    of_fixed_large = np.append(beta[:-1], beta_tilde[-1])
    return {
        "fixed_small": np.log(beta_tilde),
        "fixed_large": np.log(of_fixed_large),
        "learned": fraction * np.log(beta) + (1 - fraction) * np.log(beta_tilde),
    }[variance]


@pytest.mark.parametrize("num_steps", [T, 7])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_variance_is_the_papers_at_every_step_and_the_mean_the_posteriors(
    compiled, rng, variance, num_steps
):
    grid = make_grid(PROCESS, num_steps)
    beta, alpha_bar, before = chain(grid)
    step = jnp.arange(num_steps)
    x0_hat, x_t = rng.normal(size=(2, num_steps, 3))
    fraction = np.full((num_steps, 3), 0.3)

    def run(x0_hat, x_t, fraction):
        return p_posterior(grid, x0_hat, x_t, step=step, variance=variance, fraction=fraction)

    p = compiled(run)(*(jnp.asarray(a, jnp.float32) for a in (x0_hat, x_t, fraction)))
    expected = log_variances(grid, variance, 0.3)
    np.testing.assert_allclose(p.log_variance[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(p.variance[:-1, 0], np.exp(expected)[:-1], rtol=2e-6)
    assert (p.variance[-1] == 0).all()  # No noise is added in the step to the data.
    coef_x0 = np.sqrt(before) * beta / (1 - alpha_bar)
    coef_xt = np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
    mean = coef_x0[:, None] * x0_hat + coef_xt[:, None] * x_t
    np.testing.assert_allclose(p.mean, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("t", [1, 2, 20, T - 1])
def test_kl_is_the_integral_of_the_log_ratio_of_the_two_densities(compiled, variance, t):
    x0, x0_hat, x_t, fraction, step = 0.4, 0.1, 0.3, 0.7, T - 1 - t
    beta, alpha_bar, before = (values[step] for values in chain(make_grid(PROCESS)))
    coef_x0 = np.sqrt(before) * beta / (1 - alpha_bar)
    coef_xt = np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
    q_std = np.sqrt(beta * (1 - before) / (1 - alpha_bar))
    log_variance = log_variances(make_grid(PROCESS), variance, fraction)[step]
    expected = integrated_kl(
        (coef_x0 * x0 + coef_xt * x_t, q_std),
        (coef_x0 * x0_hat + coef_xt * x_t, np.exp(log_variance / 2)),
    )
    kl = compiled(
        lambda x0, x0_hat, f: posterior_kl(
            make_grid(PROCESS), x0, x0_hat, step=jnp.array([step]), variance=variance, fraction=f
        )
    )(*(jnp.full((1, 1), value) for value in (x0, x0_hat, fraction)))
    # The squared difference of x0 and x0_hat is rounded to float32.
    np.testing.assert_allclose(kl[0, 0], expected, rtol=2e-6)


def test_kl_of_equal_distributions_is_zero(compiled):
    x0 = jnp.linspace(-1, 1, T - 1)[:, None]
    step = jnp.arange(T - 1)
    for variance in ("fixed_small", "learned"):
        kl = compiled(
            lambda x0, variance=variance: posterior_kl(
                make_grid(PROCESS),
                x0,
                x0,
                step=step,
                variance=variance,
                fraction=jnp.zeros_like(x0),
            )
        )(x0)
        np.testing.assert_array_equal(kl, 0)


def test_kl_in_terms_of_means_is_kl_in_terms_of_noise(rng):
    """Eq. 8, the distance of the means, against Eq. 12, the distance of eps from its prediction."""
    t = np.arange(1, T)
    x0, eps, eps_hat = rng.normal(size=(3, T - 1, 4))
    a, s = np.sqrt(ALPHA_BAR[t])[:, None], np.sqrt(1 - ALPHA_BAR[t])[:, None]
    x0_hat = (a * x0 + s * eps - s * eps_hat) / a
    beta, alpha = BETA[t][:, None], 1 - BETA[t][:, None]
    ratio = (1 - BETA[t]) * (1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t])
    assert ((0 < ratio) & (ratio < 1)).all()
    constant = {  # KL of variances alone; beta_tilde / beta is the ratio of Eq. 7.
        "fixed_small": 0.0,
        "fixed_large": [
            (r - 1 - np.log(r)) / 2 for r in (1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t])
        ],
    }
    for variance, sigma2 in {
        "fixed_large": beta,
        "fixed_small": beta * ((1 - ALPHA_BAR[t - 1]) / (1 - ALPHA_BAR[t]))[:, None],
    }.items():
        weight = beta**2 / (2 * sigma2 * alpha * (1 - ALPHA_BAR[t])[:, None])
        expected = weight * (eps - eps_hat) ** 2 + np.reshape(constant[variance], (-1, 1))
        kl = posterior_kl(
            make_grid(PROCESS),
            jnp.asarray(x0, jnp.float32),
            jnp.asarray(x0_hat, jnp.float32),
            step=jnp.asarray(T - 1 - t),
            variance=variance,
        )
        # x0 and x0_hat are rounded to float32 before their difference is taken.
        np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-6)


def test_prior_kl_is_the_integral_and_keeps_its_digits_where_it_is_tiny(compiled):
    for process in (PROCESS, DDPM(make_schedule("linear", 1000))):
        grid = make_grid(process)
        alpha_bar = np.exp(2 * grid.log_signal[0])
        q = np.sqrt(alpha_bar) * 0.8, np.sqrt(1 - alpha_bar)
        expected = integrated_kl(q, (0.0, 1.0))
        kl = compiled(lambda x, grid=grid: prior_kl(grid, x))(jnp.full((1, 1), 0.8))
        np.testing.assert_allclose(kl[0, 0], expected, rtol=2e-6)


def test_gradients_of_the_kl_are_finite_in_every_step_the_last_included():
    grid = make_grid(DDPM(make_schedule("jsd", 20)))

    def total(x0_hat, fraction):
        kl = posterior_kl(
            grid,
            jnp.ones((20, 2)),
            x0_hat,
            step=jnp.arange(20),
            variance="learned",
            fraction=fraction,
        )
        return kl.sum()

    for gradient in jax.grad(total, (0, 1))(jnp.zeros((20, 2)), jnp.full((20, 2), 0.5)):
        assert np.isfinite(gradient).all()


def test_learned_variances_of_a_network_without_them_are_refused():
    x = jnp.zeros((1, 2))
    with pytest.raises(InputError, match="variance is 'learned', but the network has no channels"):
        p_posterior(make_grid(PROCESS), x, x, step=jnp.array([3]), variance="learned")
    with pytest.raises(
        InputError, match="unknown variance 'fixed'.*fixed_large, fixed_small, learned"
    ):
        posterior_kl(make_grid(PROCESS), x, x, step=jnp.array([3]), variance="fixed")
