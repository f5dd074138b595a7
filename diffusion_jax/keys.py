"""Named streams of random numbers, so that no two uses of one seed ever meet."""

import zlib

import jax
from jaxtyping import Array, Key


def stream(seed: int | Array, name: str) -> Key[Array, ""]:
    """Returns the key of the stream of that name: fold_in(key(seed), crc32(name))."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
