"""Resizing rules, against PIL, JAX and the rules pixel by pixel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.features.resize import RULES, resize, resize_matrix

SIZES = [(8, 8), (32, 20), (60, 41), (19, 13)]
NEW = (19, 13)


def pictures(size, channels=3):
    return np.random.default_rng(0).integers(0, 256, (1, *size, channels)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("rule", "resample"),
    [
        ("bilinear_antialias", Image.Resampling.BILINEAR),
        ("bicubic_antialias", Image.Resampling.BICUBIC),
    ],
)
def test_antialiased_rules_are_those_of_pil(size, rule, resample):
    x = pictures(size)
    ours = resize(jnp.asarray(x), NEW, rule)
    for channel in range(3):
        pil = Image.fromarray(x[0, ..., channel], mode="F").resize((NEW[1], NEW[0]), resample)
        np.testing.assert_allclose(ours[0, ..., channel], np.asarray(pil), atol=2e-4)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_is_that_of_jax_without_antialias(size):
    x = jnp.asarray(pictures(size))
    theirs = jax.image.resize(x, (1, *NEW, 3), "linear", antialias=False)
    np.testing.assert_allclose(resize(x, NEW, "bilinear"), theirs, atol=2e-3)


@pytest.mark.parametrize(("size", "new"), [(8, 19), (32, 19), (19, 19), (3, 40), (40, 3)])
def test_tensorflow_rule_reads_between_the_pixel_at_the_scaled_index_and_the_next(size, new):
    x = np.random.default_rng(0).normal(size=size)
    expected = []
    for i in range(new):
        place = i * size / new
        low = math.floor(place)
        high = min(low + 1, size - 1)
        expected.append(x[low] + (x[high] - x[low]) * (place - low))
    np.testing.assert_allclose(
        resize_matrix(size, new, "bilinear_tensorflow") @ x, expected, atol=1e-12
    )


@pytest.mark.parametrize(
    ("size", "new", "scale"), [(8, 19, None), (32, 19, None), (37, 16, 16.1 / 37), (7, 9, 9.1 / 7)]
)
def test_bicubic_has_four_pixels_and_repeats_those_at_the_border(size, new, scale):
    x = np.random.default_rng(0).normal(size=size)
    a, expected = -0.75, []
    for i in range(new):
        place = (i + 0.5) * (size / new if scale is None else 1 / scale) - 0.5
        low, t = math.floor(place), place - math.floor(place)
        outer = [a * (s**3 - 5 * s**2 + 8 * s - 4) for s in (t + 1, 2 - t)]
        inner = [(a + 2) * s**3 - (a + 3) * s**2 + 1 for s in (t, 1 - t)]
        pixels = [x[min(max(low + k, 0), size - 1)] for k in (-1, 0, 1, 2)]
        weights = (outer[0], *inner, outer[1])
        expected.append(sum(w * pixel for w, pixel in zip(weights, pixels, strict=True)))
    np.testing.assert_allclose(resize_matrix(size, new, "bicubic", scale) @ x, expected, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_a_flat_image_and_an_image_of_the_new_size(rule):
    x = jnp.asarray(pictures(NEW, 1))
    np.testing.assert_allclose(resize(x, NEW, rule), x, atol=1e-4)
    flat = jnp.full((2, 30, 7, 1), 200.0)
    np.testing.assert_allclose(resize(flat, NEW, rule), 200.0, rtol=1e-6)


def test_rows_of_a_scaled_matrix_do_not_depend_on_the_number_of_pixels():
    long, short = resize_matrix(37, 16, "bicubic", 0.4), resize_matrix(37, 12, "bicubic", 0.4)
    np.testing.assert_array_equal(long[:12], short)
