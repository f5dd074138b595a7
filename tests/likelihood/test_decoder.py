"""The discretized decoder against 40 digits, and against itself: 256 levels share the probability 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from likelihood.decoder_reference import errors, in_40_digits, scattered

from diffusion_jax.errors import InputError
from diffusion_jax.likelihood.decoder import check_levels, discretized_gaussian, gaussian_density

LEVELS = jnp.arange(256, dtype=jnp.float32) / 127.5 - 1


def with_gradient(x0, mean, log_variance, reverse: bool = True):
    """log p and its derivatives by mean and log variance, (3, n), in reverse or in forward mode."""

    def log_p(mean, log_variance):
        return discretized_gaussian(x0, mean, log_variance)

    if reverse:
        value, pull = jax.vjp(log_p, mean, log_variance)
        return jnp.stack([value, *pull(jnp.ones_like(value))])
    one, none = jnp.ones_like(mean), jnp.zeros_like(mean)
    value, by_mean = jax.jvp(log_p, (mean, log_variance), (one, none))
    return jnp.stack([value, by_mean, jax.jvp(log_p, (mean, log_variance), (none, one))[1]])


def test_value_and_gradient_have_five_digits_out_to_4000_standard_deviations(rng):
    inputs = scattered(rng, 1500)
    exact = in_40_digits(*inputs)
    arrays = [jnp.asarray(a) for a in inputs]
    for got in (
        jax.jit(with_gradient)(*arrays),
        jax.jit(lambda *a: with_gradient(*a, reverse=False))(*arrays),
        # Outside of a program, where nothing is fused: the value alone.
        np.stack([discretized_gaussian(*arrays), *exact[1:]]),
    ):
        assert np.isfinite(got).all()
        # A rounding of the standard deviation, 1e-7, moves log p far out by 2e-7 of itself, and a small 1 - p by the
        # square of the nearer edge's distance times that: at 5 std, where 1 - p is 1e-7, by 2.5e-6.
        assert errors(*inputs, exact, np.asarray(got, float)).max() < 5e-6


def test_digits_stay_where_a_mean_is_near_the_edge_of_a_bin_many_standard_deviations_wide(rng):
    x0, _, log_variance = scattered(rng, 400)
    log_variance = np.clip(log_variance, 2 * np.log(1e-4), 2 * np.log(3e-4)).astype(np.float32)
    edge = rng.uniform(-4, 4, 400) * np.exp(log_variance / 2)
    inputs = x0, (x0 + rng.choice([-1, 1], 400) * (1 / 255 + edge)).astype(np.float32), log_variance
    got = jax.jit(with_gradient)(*map(jnp.asarray, inputs))
    # Were 1/255 rounded to float32 here, errors would reach 7e-6.
    assert errors(*inputs, in_40_digits(*inputs), np.asarray(got, float)).max() < 3.5e-6


@pytest.mark.parametrize("distance", [1e-6, 0.5, 1.0, 10.0, 1e3, 1e6])
def test_no_distance_and_no_width_give_nan_or_infinity(distance):
    std = jnp.array([1e-6, 1e-4, 1 / 255, 0.1, 1.0, 100.0])[:, None]
    x0 = jnp.broadcast_to(LEVELS, (6, 256))
    got = jax.jit(with_gradient)(
        x0, x0 - distance * std, jnp.broadcast_to(2 * jnp.log(std), x0.shape)
    )
    assert np.isfinite(got).all()


def test_an_open_bin_has_the_gradient_0_far_inside_where_its_square_overflows():
    x0 = jnp.array([-1.0, 1.0])
    got = jax.jit(with_gradient)(x0, 100 * x0, jnp.full(2, -80.0))
    np.testing.assert_array_equal(got, np.zeros((3, 2)))


@pytest.mark.parametrize("std", [1e-3, 1 / 255, 0.03, 0.4, 5.0])
@pytest.mark.parametrize("mean", [-1.2, -1.0, 0.0017, 0.4, 1.0])
def test_the_256_levels_share_the_probability_one(mean, std):
    log_p = jax.jit(discretized_gaussian)(
        LEVELS, jnp.full_like(LEVELS, mean), jnp.full_like(LEVELS, 2 * np.log(std))
    )
    # A level of 1 is rounded by 6e-8, which is 6e-5 of the least standard deviation.
    np.testing.assert_allclose(np.exp(np.asarray(log_p, float)).sum(), 1, rtol=3e-5)


def test_the_tanh_approximation_is_near_in_the_middle_and_ends_at_1e_12(rng):
    mean, log_variance = jnp.zeros_like(LEVELS), jnp.full_like(LEVELS, 2 * np.log(0.2))
    exact = discretized_gaussian(LEVELS, mean, log_variance)
    near = discretized_gaussian(LEVELS, mean, log_variance, approximate_cdf=True)
    inside = np.abs(LEVELS) < 0.4  # Two standard deviations.
    np.testing.assert_allclose(near[inside], exact[inside], atol=0.02)
    assert np.abs(near - exact)[inside].max() > 1e-4  # It is another function,
    far = discretized_gaussian(LEVELS, mean - 50, log_variance, approximate_cdf=True)
    np.testing.assert_allclose(far[1:-1], np.log(1e-12), rtol=1e-6)  # and it has a floor.


def test_the_tanh_approximation_in_float32_is_its_own_in_float64():
    """As codes write it: a difference of two values of the approximate Phi, at least 1e-12."""

    def phi(z: np.ndarray) -> np.ndarray:
        return (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2

    x = np.asarray(LEVELS, float)
    for mean in (-1.3, -0.4, 0.0, 0.9):
        for std in (3e-3, 0.05, 0.2, 2.0):
            upper = np.where(x > 0.999, 1.0, phi((x + 1 / 255 - mean) / std))
            lower = np.where(x < -0.999, 0.0, phi((x - 1 / 255 - mean) / std))
            with np.errstate(divide="ignore"):
                expected = np.log(np.maximum(upper - lower, 1e-12))
            arrays = LEVELS, jnp.full(256, mean), jnp.full(256, 2 * np.log(std))
            got = jax.jit(lambda *a: discretized_gaussian(*a, approximate_cdf=True))(
                *map(jnp.float32, arrays)
            )
            # float64's own difference has 1e-16 of 1e-12 at the floor; std in float32 moves the rest by 1e-6 z^2.
            np.testing.assert_allclose(got, expected, rtol=3e-4, atol=1e-4)


def test_a_density_is_what_small_bins_divide_among_them():
    x0, mean = jnp.linspace(-0.9, 0.9, 7)[:, None], jnp.full((7, 1), 0.2)
    log_variance = jnp.full((7, 1), 2 * np.log(0.5))
    bins = discretized_gaussian(x0, mean, log_variance) - np.log(2 / 255)
    # A bin of 1/64 std: the density bends by (h^2 / 6) (z^2 - 1) over it.
    np.testing.assert_allclose(gaussian_density(x0, mean, log_variance), bins, atol=2e-4)


def test_images_of_other_values_than_the_256_levels_are_refused():
    check_levels(LEVELS)
    check_levels(np.arange(256) / 127.5 - 1)
    for wrong, named in ((0.5, "0.5"), (1.1, "1.1"), (np.nan, "nan")):
        with pytest.raises(InputError, match=f"images hold {named}; .* 256 levels"):
            check_levels(LEVELS.at[3].set(wrong))
