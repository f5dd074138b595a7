"""The hash's bits against those of a fair coin: shares, correlations and places, each within what chance allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.ops.hashing import random_bits

SHAPE = (16, 16, 64)
RATE = 0.1


@pytest.fixture(scope="module")
def words():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(32))
    return jax.vmap(jax.random.key_data)(keys)


@pytest.fixture(scope="module")
def bits(words):
    return np.asarray(jax.jit(lambda w: random_bits(w, SHAPE))(words))


def test_each_bit_is_one_half_of_the_time(bits):
    ones = [(bits >> i & 1).mean() for i in range(32)]
    np.testing.assert_allclose(ones, 0.5, atol=4 * 0.5 / bits.size**0.5)  # Four standard errors.


def test_neighbors_of_any_axis_images_and_keys_are_not_correlated(words, bits):
    dropped = (bits < RATE * 2**32).astype(np.float64) - RATE
    moved = [dropped - 0] + [
        np.roll(dropped, shift, axis) for axis in range(4) for shift in (1, 2, 8)
    ]
    other = np.asarray(random_bits(words[:, ::-1], SHAPE))  # A key's halves in the other order.
    moved.append((other < RATE * 2**32) - RATE)
    itself, *others = ((dropped * m).mean() / (RATE * (1 - RATE)) for m in moved)
    assert itself == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(others, 0, atol=4.5 / bits.size**0.5)


@pytest.mark.parametrize("axes", [(1, 2, 3), (0, 1, 2), (0, 3)])
def test_counts_of_an_image_a_channel_and_a_pixel_vary_as_independent_draws(bits, axes):
    dropped = bits < RATE * 2**32
    counts = dropped.sum(axes)
    number = bits.size // counts.size
    ratio = counts.var() / (number * RATE * (1 - RATE))
    assert ratio == pytest.approx(1, abs=5 * (2 / counts.size) ** 0.5)


def test_the_bits_of_an_array_depend_on_its_words_alone(words, bits):
    alone = random_bits(words[3:4], SHAPE)
    np.testing.assert_array_equal(alone[0], bits[3])


def test_it_is_the_published_mixer():
    """Of a second word of zero, "triple32" as Wellons gives it, in integers of any length."""
    mixed = int(random_bits(jnp.asarray([[1, 0]], jnp.uint32), (1,))[0, 0])
    x = 1
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ (x >> shift)) * factor % 2**32
    assert mixed == x ^ (x >> 14)
