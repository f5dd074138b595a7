"""The bound against simulated chains, data whose likelihood is known, and its own stratified estimate."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from slow import slow_after

from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed
from diffusion_jax.likelihood.decoder import gaussian_density
from diffusion_jax.likelihood.vlb import VLB, drawn_shares, variational_bound
from diffusion_jax.models.denoiser import Denoise, complete
from diffusion_jax.processes.ddpm import DDPM
from diffusion_jax.processes.gaussian import eps_from_x0
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point
from diffusion_jax.processes.schedules import make_schedule, schedule_arrays

T = 12
SCHEDULE = make_schedule("linear", T, 0.01, 0.6)
PROCESS = DDPM(SCHEDULE)
SHAPE = (2, 2, 1)
LEVELS = np.arange(256) / 127.5 - 1


def some_x0_hat(x, t):
    """A denoiser that is neither optimal nor linear; NumPy or JAX."""
    return 0.9 * (jnp if isinstance(x, jax.Array) else np).tanh((1.3 - 0.07 * t) * x)


def some_fraction(x, t):
    return 0.2 + 0.03 * t + 0.1 * x


def denoise(x_t: jax.Array, point: Point):
    t = point.time[:, None, None, None]
    x0 = some_x0_hat(x_t, t)
    return complete(point, x0, eps_from_x0(point, x_t, x0), some_fraction(x_t, t))


def keys_of(n: int, seed: int = 0) -> jax.Array:
    return indexed(jax.random.key(seed), jnp.arange(n))


def bound(x0, keys, *, denoise: Denoise = denoise, num_steps=None, **options: Any) -> VLB:
    grid = make_grid(PROCESS, num_steps)
    return jax.jit(lambda x0, keys: variational_bound(denoise, grid, x0, keys, **options))(x0, keys)


def log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2


def minus_log_ratio_of_chains(rng, x0, times, variance: str, n: int) -> np.ndarray:
    """-log2 of p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0) per dimension of n simulated chains.

    In float64, step by step: forward with q(x_t | x_s), backward with p(x_s | x_t) as Ho et al. write it, in terms of
    betas, and the probability of x_0's level as a difference of two values of Phi.
    """
    alpha_bar = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))[times]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    beta_tilde = beta * (1 - before) / (1 - alpha_bar)
    first = beta_tilde[1]
    x, total = np.broadcast_to(x0, (n, *x0.shape)), 0.0
    for i, t in enumerate(times):
        x_s, x = x, np.sqrt(1 - beta[i]) * x + np.sqrt(beta[i]) * rng.normal(size=x.shape)
        x0_hat, f = some_x0_hat(x, t), some_fraction(x, t)
        mean = np.sqrt(before[i]) * beta[i] / (1 - alpha_bar[i]) * x0_hat
        mean = mean + np.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - alpha_bar[i]) * x
        small = beta_tilde[i] if i else first
        large = beta[i] if i else first
        p_variance = {
            "fixed_small": small,
            "fixed_large": large,
            "learned": np.exp(f * np.log(beta[i]) + (1 - f) * np.log(small)),
        }[variance]
        total = total + log_normal(x, np.sqrt(1 - beta[i]) * x_s, beta[i])
        if i:
            total = total - log_normal(x_s, mean, p_variance)
        else:
            std = np.sqrt(p_variance)
            upper = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - mean) / std)
            lower = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - mean) / std)
            total = total - np.log(special.ndtr(upper) - special.ndtr(lower))
    total = total - log_normal(x, 0.0, 1.0)
    return total.reshape(n, -1).mean(1) / np.log(2)


@pytest.mark.parametrize(
    ("variance", "num_steps"),
    slow_after(
        1,
        [
            ("fixed_small", T),
            ("fixed_large", T),
            ("learned", T),
            ("learned", 5),
            ("fixed_large", 5),
        ],
    ),
)
def test_the_terms_add_up_to_the_expected_log_ratio_of_simulated_chains(rng, variance, num_steps):
    n = 20_000
    x0 = LEVELS[np.array([0, 100, 180, 255])].reshape(SHAPE)
    times = np.sort(make_grid(PROCESS, num_steps).time[:-1].astype(int))
    simulated = minus_log_ratio_of_chains(rng, x0, times, variance, n)
    of_key = bound(
        jnp.broadcast_to(jnp.asarray(x0, jnp.float32), (n, *SHAPE)),
        keys_of(n),
        num_steps=num_steps,
        variance=variance,
    ).total
    error = np.hypot(simulated.std(), np.std(of_key)) / np.sqrt(n)
    assert error < 0.02 * simulated.mean()
    assert abs(np.mean(of_key) - simulated.mean()) < 3 * error


def gap_to_the_exact_likelihood(num_timesteps: int, dims: int = 40_000) -> float:
    """Bound less exact -log p(x_0) of N(0, 0.25) data with its optimal denoiser, in nats per dimension."""
    process, data_variance = DDPM(make_schedule("linear", num_timesteps)), 0.25
    grid = make_grid(process)

    def optimal(x_t: jax.Array, point: Point):
        gain = point.signal * data_variance / (point.signal**2 * data_variance + point.std**2)
        x0 = gain[:, None] * x_t
        return complete(point, x0, eps_from_x0(point, x_t, x0))

    signal2, std2 = np.exp(2 * grid.log_signal[-2]), grid.std[-2] ** 2
    left = data_variance * std2 / (signal2 * data_variance + std2)  # Var(x_0 | x_1)

    def decoder(x0, mean, log_variance):
        return -jnp.square(x0 - mean) / (2 * left) - np.float32(np.log(2 * np.pi * left) / 2)

    x0 = jnp.asarray(np.random.default_rng(1).normal(size=(2, dims)) * 0.5, jnp.float32)
    value = jax.jit(
        lambda x0: (
            variational_bound(
                optimal, grid, x0, keys_of(2), variance="fixed_large", decoder=decoder
            ).total
        )
    )(x0)
    exact = -log_normal(np.asarray(x0, float), 0.0, data_variance)
    return float(np.mean(value) * np.log(2) - exact.mean())


@pytest.mark.slow
def test_on_gaussian_data_the_gap_to_the_exact_likelihood_falls_as_one_over_the_steps():
    steps = np.array([50, 140, 400])
    gaps = np.array([gap_to_the_exact_likelihood(int(n)) for n in steps])
    assert (gaps > 0).all()
    slope = np.polyfit(np.log(steps), np.log(gaps), 1)[0]
    assert abs(slope + 1) < 0.1


def test_an_image_has_the_bound_of_its_key_whatever_its_batch(rng):
    x0 = jnp.asarray(LEVELS[rng.integers(256, size=(5, *SHAPE))], jnp.float32)
    every_option: list[dict[str, Any]] = [{}, {"num_terms": 4}]
    for options in every_option:
        whole = bound(x0, keys_of(5), **options)
        alone = bound(x0[3:4], keys_of(5)[3:4], **options)
        np.testing.assert_array_equal(alone.steps[:, 0], whole.steps[:, 3])
        np.testing.assert_allclose(alone.terms[:, 0], whole.terms[:, 3], rtol=1e-5)


def test_errors_of_x0_and_eps_are_those_of_the_denoiser_at_each_point():
    n = 20_000
    x0 = jnp.full((n, 1, 1, 1), LEVELS[160], jnp.float32)
    result = bound(x0, keys_of(n))
    z = np.random.default_rng(0).normal(size=n)
    for i, t in enumerate(range(T - 1, -1, -1)):
        alpha_bar = np.cumprod(1 - schedule_arrays(SCHEDULE).betas.astype(float))[t]
        x_t = np.sqrt(alpha_bar) * LEVELS[160] + np.sqrt(1 - alpha_bar) * z
        error = (LEVELS[160] - some_x0_hat(x_t, t)) ** 2
        for simulated, measured in (
            (error, result.x0_mse[i]),
            (error * alpha_bar / (1 - alpha_bar), result.eps_mse[i]),
        ):
            expected = 4 * np.hypot(simulated.std(), np.std(measured)) / np.sqrt(n)
            assert abs(simulated.mean() - np.mean(measured)) < expected
    np.testing.assert_array_equal(result.steps[:, 0], np.arange(T))


# ---- the stratified estimate -------------------------------------------------------------------------


def test_an_estimate_has_one_step_of_each_part_and_each_step_as_often_as_its_weight_says():
    n, k = 20_000, 5
    x0 = jnp.zeros((n, 1, 1, 1))
    result = bound(x0, keys_of(n), num_terms=k)
    steps, weights = np.asarray(result.steps), np.asarray(result.weights)
    assert (steps[-1] == T - 1).all() and (weights[-1] == 1).all()  # L_0, always.
    assert (np.diff(steps, axis=0) >= 0).all()
    counts = np.bincount(steps[:-1].ravel(), minlength=T)[: T - 1]
    of_step = [weights[steps == i][0] for i in range(T - 1)]
    np.testing.assert_allclose(counts, n / np.array(of_step), atol=5 * np.sqrt(counts.max()))
    ends = np.append(0, np.cumsum(drawn_shares(make_grid(PROCESS)))) * (k - 1)
    for part in range(k - 1):
        meeting = np.flatnonzero((ends[:-1] < part + 1 - 1e-6) & (ends[1:] > part + 1e-6))
        np.testing.assert_array_equal(np.unique(steps[part]), meeting)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "jsd"])
def test_half_of_a_sample_goes_evenly_and_half_by_the_size_of_the_terms_of_white_data(schedule):
    grid = make_grid(DDPM(make_schedule(schedule, 50)))
    shares = drawn_shares(grid)
    assert shares.sum() == pytest.approx(1) and shares.min() >= 0.5 / 49
    if (
        schedule == "jsd"
    ):  # Its first step alone, from nothing of the image on, is longer than can be counted.
        return
    # Of x_0 ~ N(0, 1/4) a step's KL is (1/2) (1 / var - 1 / var') E(x_0 - x0_hat)^2 in its posterior's variances.
    signal2, std2 = np.exp(2 * grid.log_signal[:-1]), np.square(grid.std[:-1])
    left = 0.25 * std2 / (0.25 * signal2 + std2)
    terms = np.diff(signal2 / std2) / 2 * left[:-1]
    np.testing.assert_allclose(shares, terms / terms.sum() / 2 + 0.5 / 49, rtol=1e-6)


def test_an_estimate_is_unbiased_and_its_error_is_no_larger_than_it_says():
    n = 20_000
    x0 = jnp.broadcast_to(
        jnp.asarray(LEVELS[[3, 90, 128, 200]], jnp.float32).reshape(SHAPE), (n, *SHAPE)
    )
    whole, some = bound(x0, keys_of(n)), bound(x0, keys_of(n, seed=1), num_terms=6)
    for part in ("rate", "distortion", "total"):
        a, b = np.asarray(getattr(whole, part)), np.asarray(getattr(some, part))
        assert abs(a.mean() - b.mean()) < 3.5 * np.hypot(a.std(), b.std()) / np.sqrt(n)
    assert np.std(some.rate) <= 1.05 * np.sqrt(np.mean(np.square(some.rate_stderr)))
    # There was something to estimate; an even sample of the steps has more than twice the spread.
    assert 1.1 * np.std(whole.rate) < np.std(some.rate) < 1.5 * np.std(whole.rate)
    assert (whole.weights == 1).all()


def test_the_stated_error_of_terms_without_a_trend_is_the_real_one(rng):
    n, k = 20_000, 8
    terms = jnp.asarray(1 + 0.3 * rng.normal(size=(k + 1, n)), jnp.float32)
    weights = jnp.full((k + 1, n), 3.0)
    result = VLB(jnp.zeros(n), terms, jnp.zeros((k + 1, n), int), terms, terms, weights)
    # The variance of n normal numbers has a relative error of sqrt(2 / n), the mean of four pairs' squared differences
    # one of sqrt(1 / (2 n)): both are 1 % or less.
    np.testing.assert_allclose(
        np.mean(np.square(result.rate_stderr)), np.var(result.rate), rtol=0.04
    )


@pytest.mark.parametrize("k", [2, 9, 10])
def test_the_stated_error_is_not_too_small_where_one_part_has_nearly_all_the_spread(rng, k):
    """Terms 1 / t, as those of images roughly are: the last part, the least noisy, spreads most."""
    n, steps = 20_000, 1000
    t = steps - (np.arange(k)[:, None] + rng.random((k, n))) * steps / k
    terms = jnp.asarray(np.append(1 / (1 + t), np.zeros((1, n)), axis=0), jnp.float32)
    none = jnp.zeros((k + 1, n))
    weights = jnp.full((k + 1, n), steps / k)
    result = VLB(jnp.zeros(n), terms, none.astype(int), none, none, weights)
    ratio = np.mean(np.square(result.rate_stderr)) / np.var(result.rate)
    assert 0.98 < ratio < 3  # The variance of n rates is known to 2 %.


def test_the_error_of_three_of_three_hundred_terms_over_fifty_images_covers(rng):
    """On normal data with the denoiser that is best for them; an even sample covers three quarters of the time."""
    process, groups, size = DDPM(make_schedule("linear", 300)), 80, 50
    level = np.clip(np.rint((0.5 * rng.normal(size=(groups * size, 2, 2, 1)) + 1) * 127.5), 0, 255)
    x0 = jnp.asarray(level / 127.5 - 1, jnp.float32)

    def best(x_t, point):
        variance = 0.25 * point.signal**2 + point.std**2
        x0_hat = (0.25 * point.signal / variance)[:, None, None, None] * x_t
        return complete(point, x0_hat, eps_from_x0(point, x_t, x0_hat))

    def totals(keys, **options):
        return jax.jit(
            lambda: variational_bound(best, make_grid(process), x0, keys, **options).total
        )()

    exact = np.asarray(totals(keys_of(len(x0))), float).mean()
    some = np.asarray(totals(keys_of(len(x0), seed=1), num_terms=3), float)
    groups_of = some.reshape(groups, size)
    off = np.abs(groups_of.mean(1) - exact) / (groups_of.std(1, ddof=1) / np.sqrt(size))
    # Of 80 groups a share of 95 % is known to 2.4 %, one of 68 % to 5.2 %: three of these.
    assert (off < 1.96).mean() == pytest.approx(0.95, abs=0.073)
    assert (off < 1).mean() == pytest.approx(0.683, abs=0.156)


@pytest.mark.parametrize("num_terms", [0, 1, T + 1])
def test_a_number_of_terms_that_the_grid_does_not_have_is_refused(num_terms):
    with pytest.raises(InputError, match=f"num_terms is {num_terms}; .* from 2 to 12"):
        variational_bound(
            denoise, make_grid(PROCESS), jnp.zeros((1, *SHAPE)), keys_of(1), num_terms=num_terms
        )


def test_images_that_are_not_of_256_levels_are_refused_unless_the_decoder_is_another():
    x0 = jnp.full((1, *SHAPE), 0.5)
    with pytest.raises(InputError, match="images hold 0.5; .* 256 levels"):
        variational_bound(denoise, make_grid(PROCESS), x0, keys_of(1))
    result = variational_bound(
        denoise, make_grid(PROCESS, 1), x0, keys_of(1), decoder=gaussian_density
    )
    assert np.isfinite(result.total).all()


def test_one_step_alone_has_only_a_prior_and_a_decoder():
    result = bound(jnp.zeros((2, *SHAPE)), keys_of(2), num_steps=1)
    assert result.terms.shape == (1, 2)
    np.testing.assert_allclose(result.rate, result.prior)
    assert np.isfinite(result.total).all() and np.isnan(result.rate_stderr).all()


# ---- how it is computed ------------------------------------------------------------------------------


def test_other_images_keys_and_parameters_do_not_compile_it_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(scale, x0, keys):
        def scaled(x_t, point):
            return denoise(scale * x_t, point)

        return variational_bound(scaled, make_grid(PROCESS), x0, keys).total

    for seed in range(3):
        run(jnp.float32(seed), jnp.zeros((2, *SHAPE)), keys_of(2, seed))


def test_a_term_that_is_not_finite_stays_so_and_harms_no_other():
    def broken(x_t, point):
        bad = (point.time == 4)[:, None, None, None]
        prediction = denoise(x_t, point)
        return prediction._replace(x0=jnp.where(bad, jnp.nan, prediction.x0))

    result = bound(jnp.zeros((2, *SHAPE)), keys_of(2), denoise=broken)
    finite = np.isfinite(result.terms)
    assert not finite[T - 1 - 4].any() and finite.sum() == 2 * (T - 1)
    assert np.isnan(result.total).all()
