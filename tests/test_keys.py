"""Keys are Threefry's, whatever they were made by: so an image's noise depends on no other image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.keys import fold_in, image_normal, stream, threefry
from diffusion_jax.samplers import first_noise, image_keys

SHAPE = (3, 3, 1)


@pytest.fixture(params=["threefry2x32", "rbg", "unsafe_rbg"])
def generator(request):
    with jax.default_prng_impl(request.param):
        yield request.param


def test_the_noise_of_an_image_is_the_same_in_every_batch_and_by_every_default(generator):
    alone = first_noise(image_keys(0, np.array([2])), SHAPE)[0]
    for batch in ([0, 1, 2, 3], [2, 3]):
        among = first_noise(image_keys(0, np.array(batch)), SHAPE)[batch.index(2)]
        np.testing.assert_array_equal(among, alone)
    with jax.default_prng_impl("threefry2x32"):
        np.testing.assert_array_equal(first_noise(image_keys(0, np.array([2])), SHAPE)[0], alone)


def test_keys_of_ones_own_give_the_same_noise_in_every_batch(generator):
    """Of `rbg`, a draw under `vmap` is of the whole batch."""
    keys = jax.random.split(jax.random.key(7), 4)
    plain = image_normal(keys, SHAPE)
    np.testing.assert_array_equal(image_normal(keys[2:3], SHAPE)[0], plain[2])
    together = image_normal(fold_in(keys, 0), SHAPE)
    np.testing.assert_array_equal(image_normal(fold_in(keys[2:3], 0), SHAPE)[0], together[2])
    assert len(np.unique(np.asarray(together))) == together.size


def test_untyped_keys_are_the_typed_ones():
    np.testing.assert_array_equal(
        jax.random.key_data(threefry(jax.random.PRNGKey(5))), jax.random.key_data(jax.random.key(5))
    )


def test_threefry_keys_stay_as_they_are():
    key = stream(0, "sample")
    assert threefry(key) is key


@pytest.mark.parametrize("key", [0, np.arange(4), jnp.zeros(2), None])
def test_a_seed_in_place_of_a_key_is_one_line_that_says_how_to_make_one(key):
    with pytest.raises(InputError, match="a key is needed.*jax.random.key"):
        threefry(key)
