"""Halving, doubling and blurring against convolutions with zeros put in between, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.ops.resample import blur, double, halve

FILTERS = [(1, 1), (1, 3, 3, 1), (1, 2), (1, 4, 6, 3, 2, 1)]
X = np.random.default_rng(0).normal(size=(2, 8, 6, 3))


def along(x, axis, fir, pads, up=1, down=1):
    """Zeros between and around, then a correlation with the filter, then every `down`-th value, of one axis."""
    x = np.moveaxis(x, axis, -1)
    spread = np.zeros((*x.shape[:-1], x.shape[-1] * up))
    spread[..., ::up] = x * up
    padded = np.pad(spread, [(0, 0)] * (x.ndim - 1) + [pads])
    taps = np.array(fir, np.float64) / np.sum(fir)
    out = np.apply_along_axis(lambda row: np.correlate(row, taps, "valid"), -1, padded)
    return np.moveaxis(out[..., ::down], -1, axis)


def both(x, fir, *args, **kwargs):
    return along(along(x, 1, fir, *args, **kwargs), 2, fir, *args, **kwargs)


@pytest.mark.parametrize("fir", FILTERS)
def test_halving_is_a_filter_and_every_other_pixel(fir):
    pad = len(fir) // 2 - 1
    value = halve(jnp.asarray(X, jnp.float32), fir)
    np.testing.assert_allclose(value, both(X, fir, (pad, pad), down=2), atol=1e-6)


@pytest.mark.parametrize("fir", FILTERS)
def test_doubling_is_its_transpose_times_four(fir):
    image, half = jnp.asarray(X, jnp.float32), jnp.zeros((2, 4, 3, 3), jnp.float32)
    (transposed,) = jax.linear_transpose(lambda y: halve(y, fir), jnp.zeros((2, 16, 12, 3)))(image)
    np.testing.assert_allclose(double(image, fir), 4 * transposed, atol=2e-6)
    assert double(half, fir).shape == (2, 8, 6, 3)


def test_doubling_is_a_filter_of_the_image_with_zeros_in_between():
    # upfirdn of StyleGAN2: for four taps, two zeros before and one after.
    value = double(jnp.asarray(X, jnp.float32), (1, 3, 3, 1))
    np.testing.assert_allclose(value, both(X, (1, 3, 3, 1), (2, 1), up=2), atol=2e-6)


@pytest.mark.parametrize("fir", FILTERS)
def test_every_other_blurred_pixel_is_a_halved_one(fir):
    x = jnp.asarray(X, jnp.float32)
    blurred = blur(x, fir)
    assert blurred.shape == (2, 9, 7, 3)
    np.testing.assert_allclose(blurred[:, 1:-1:2, 1:-1:2], halve(x, fir), atol=1e-6)


def test_without_a_filter_they_are_means_and_repeated_pixels():
    x = jnp.asarray(X, jnp.float32)
    means = X.reshape(2, 4, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(halve(x), means, atol=1e-6)
    np.testing.assert_array_equal(double(x), np.repeat(np.repeat(x, 2, 1), 2, 2))


@pytest.mark.parametrize("fir", [(1, 2, 1), (1, -1)])
def test_an_odd_filter_and_one_without_a_sum_are_errors(fir):
    with pytest.raises(InputError, match="even number of taps with a positive sum"):
        halve(jnp.zeros((1, 4, 4, 1)), fir)
