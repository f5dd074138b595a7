"""F(4, r) against the definition of a convolution, in float64; its error and its saving."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_conv import loops

from diffusion_jax.ops.cpu import winograd


@pytest.mark.parametrize("taps", [2, 3])
def test_a_tile_is_the_correlation_of_what_it_sees_with_the_taps(taps, rng):
    kernel, image, output = winograd.transforms(taps)
    w, x = rng.normal(size=taps), rng.normal(size=taps + 3)
    tile = output @ ((kernel @ w) * (image @ x))
    np.testing.assert_allclose(tile, np.correlate(x, w, "valid"), rtol=0, atol=1e-13)


# (batch, height, width): those of the configs' networks, odd ones, and ones smaller than a tile.
SIZES = [
    (2, 32, 32),
    (2, 28, 28),
    (3, 14, 14),
    (2, 16, 16),
    (2, 8, 8),
    (2, 7, 7),
    (1, 5, 9),
    (3, 3, 6),
    (2, 1, 1),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients_are_those_of_plain_loops(size):
    rng = np.random.default_rng(0)
    shapes = (*size, 3), (3, 3, 3, 5), (*size, 5)
    x, w, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    same = (1, 1)
    y = jax.jit(lambda: winograd.convolve(x, w, same, same))()
    dx = jax.jit(lambda: winograd.convolve_turned(dy, w, same, same))()
    dw = jax.jit(lambda: winograd.kernel_gradient(x, dy, 3, same, same))()
    expected_y, expected_dx, expected_dw = loops(x, w, dy, 1)
    # The stated error is 0.8e-6 (root mean square) of the square root of the number of products; six times
    # that for the largest.
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=5e-6 * 27**0.5)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=5e-6 * 45**0.5)
    np.testing.assert_allclose(dw, expected_dw, rtol=0, atol=5e-6 * np.prod(size) ** 0.5)


@pytest.mark.parametrize("rows, columns", [((0, 1), (1, 0)), ((1, 0), (0, 1)), ((1, 1), (0, 3))])
def test_the_zeros_around_the_image_may_differ_between_the_sides(rows, columns, rng):
    x = rng.normal(size=(2, 5, 7, 3))
    w, dy = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(2, 4 + sum(rows), 6 + sum(columns), 4))
    padded = np.pad(x, ((0, 0), rows, columns, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(1, 2))
    x, w, dy = (jnp.asarray(a, jnp.float32) for a in (x, w, dy))
    y = winograd.convolve(x, w, rows, columns)
    dw = winograd.kernel_gradient(x, dy, 2, rows, columns)
    np.testing.assert_allclose(y, np.einsum("bhwcij,ijcd->bhwd", windows, w), rtol=0, atol=1e-5)
    np.testing.assert_allclose(dw, np.einsum("bhwcij,bhwd->ijcd", windows, dy), rtol=0, atol=3e-5)


def test_the_error_at_128_channels_is_the_one_that_is_stated(rng):
    x, w = rng.normal(size=(1, 6, 16, 128)), rng.normal(size=(3, 3, 128, 64))
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    y = jax.jit(lambda: winograd.convolve(x, w, (0, 0), (0, 0)))()
    exact = np.einsum(
        "bhwcij,ijcd->bhwd",
        np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), (3, 3), axis=(1, 2)),
        np.asarray(w, np.float64),
    )
    error = np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2))
    assert error < 1.0e-6  # Stated: 0.8e-6; with the points 0, ±1, ±2 it is 1.15e-6.


def test_three_taps_cost_half_of_the_multiplications_of_the_sum():
    x, w = jnp.ones((1, 8, 32, 4)), jnp.ones((3, 3, 4, 4))
    jaxpr = jax.make_jaxpr(lambda x, w: winograd.convolve(x, w, (1, 1), (1, 1)))(x, w)
    shapes = [
        (e.outvars[0].aval.shape, e.invars[1].aval.shape)
        for e in jaxpr.eqns
        if e.primitive.name == "conv_general_dilated"
    ]
    count = sum(np.prod(out) * np.prod(kernel[:3]) for out, kernel in shapes)
    assert count * 2 == 8 * 32 * 4 * 9 * 4
