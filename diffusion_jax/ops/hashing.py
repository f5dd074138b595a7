"""Random bits of array elements by a hash, cheap enough to be drawn wherever they are used.

Threefry, JAX's own, takes a hundred operations a number, so that XLA draws the numbers once and stores them. A mixer of
32 bits takes twenty, which disappear in the operation that reads its input. It is for masks, not for keys or noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

# "triple32" of Wellons's hash-prospector, an invertible mixer. One of two multiplications showed correlations between
# rows of an image.
_SHIFTS, _FACTORS = (17, 11, 15, 14), (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)


def random_bits(words: UInt32[Array, "b 2"], shape: Sequence[int]) -> UInt32[Array, " b *dims"]:
    """Returns 32 bits for each element of arrays, which depend on its place and on its array's two words alone.

    Args:
      words: Data of a key for each array.
      shape: Shape of the arrays, of at most 2^32 elements.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    whole = (words.shape[0], *shape)
    place = jnp.zeros((), jnp.uint32)
    for axis, stride in enumerate(strides):
        index = jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1)
        place = place + index * jnp.uint32(stride)
    first, second = (words[:, i].reshape(-1, *(1,) * len(shape)) for i in range(2))
    bits = jnp.broadcast_to(place + first, whole)
    bits = (bits ^ (bits >> _SHIFTS[0])) * jnp.uint32(
        _FACTORS[0]
    ) ^ second  # The key's second half.
    for shift, factor in zip(_SHIFTS[1:3], _FACTORS[1:], strict=True):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> _SHIFTS[3])
