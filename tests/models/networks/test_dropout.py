"""Dropout: rate and scale, and on what a mask depends."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.networks.layers import Dropout

RATE = 0.3
IMAGES, SHAPE = 64, (8, 8, 4)
X = jnp.asarray(np.random.default_rng(0).normal(size=(IMAGES, *SHAPE)), jnp.float32)
KEYS = jax.random.split(jax.random.key(1), IMAGES)


class Two(nn.Module):
    """Two places of one network."""

    @nn.compact
    def __call__(self, x: Any, keys: Any) -> Any:
        return Dropout(RATE, name="one")(x, keys), Dropout(RATE, name="other")(x, keys)


def test_the_rate_of_values_becomes_zero_and_the_others_keep_the_mean(compiled):
    y = np.asarray(compiled(Dropout(RATE).apply)({}, X, KEYS))
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(X)[kept] / (1 - RATE), rtol=1e-6)
    # Five standard deviations of the share of so many independent draws.
    deviation = 5 * np.sqrt(RATE * (1 - RATE) / y.size)
    np.testing.assert_allclose(kept.mean(), 1 - RATE, atol=deviation)


@pytest.mark.parametrize(("rate", "keys"), [(RATE, None), (0.0, KEYS)])
def test_without_keys_or_rate_nothing_changes(rate, keys):
    np.testing.assert_array_equal(Dropout(rate).apply({}, X, keys), X)


def test_values_images_and_places_are_dropped_independently():
    one, other = (np.asarray(y) != 0 for y in Two().apply({}, X, KEYS))
    flat = one.reshape(-1)
    pairs = {
        "places": (one, other),
        "images": (one[1:], one[:-1]),
        "places of two images": (one[1:], other[:-1]),
        "values": (flat[1:], flat[:-1]),
        "pixels": (one[:, 1:], one[:, :-1]),
    }
    for name, (a, b) in pairs.items():
        correlation = np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]
        # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n).
        np.testing.assert_allclose(correlation, 0, atol=5 / np.sqrt(a.size), err_msg=name)


def test_a_mask_depends_on_the_key_of_its_image_alone():
    whole = np.asarray(Dropout(RATE).apply({}, X, KEYS))
    order = np.random.default_rng(2).permutation(IMAGES)[: IMAGES // 2]
    np.testing.assert_array_equal(Dropout(RATE).apply({}, X[order], KEYS[order]), whole[order])
