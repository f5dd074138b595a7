"""Named streams of random numbers, so that no two uses of one seed ever meet, and the noise drawn from keys."""

import math
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def stream(seed: int | Array, name: str) -> Key[Array, ""]:
    """Returns the key of the stream of that name: fold_in(key(seed), crc32(name))."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def indexed(key: Key[Array, ""], indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """Returns a key for each index: fold_in(key, i)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def folded(keys: Key[Array, " b"], data: int | Int[Array, ""]) -> Key[Array, " b"]:
    """Returns the keys of stream number `data` of each key: fold_in(key, data)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def at_time(keys: Key[Array, " b"], time: Float[Array, " b"]) -> Key[Array, " b"]:
    """Returns a key for each key and the time that goes with it, by the bits of the time as a float32."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(time, jnp.float32), jnp.uint32)
    return jax.vmap(jax.random.fold_in)(keys, bits)


def standard_normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise, the same numbers as normal(key, shape)."""
    # XLA compiles and runs a flat draw several times faster on the CPU (8 draws of 32 x 32 x 3 by
    # `image_normal`: 0.8 against 4.4 s, 0.3 against 1.8 ms).
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def image_normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, " b ..."]:
    """Returns standard normal noise of that shape for each image, from its own key."""
    return jax.vmap(lambda key: standard_normal(key, shape))(keys)
