"""Work on a few images at a time, so that what it reads and writes in between stays in the CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from diffusion_jax.ops.operation import varying_alike


def images_at_once(batch: int, pixels_of_one: int, pixels: int) -> int:
    """Returns the largest divisor of the batch whose images have at most this many pixels; at least 1.

    Of a batch of any size, as in an exported program, it is 1.
    """
    if not isinstance(batch, int):
        return 1
    most = max(1, min(batch, pixels // max(1, pixels_of_one)))
    return next(n for n in range(most, 0, -1) if batch % n == 0)


def _chunks(arrays: tuple[Array, ...], pixels: int) -> tuple[Array, ...]:
    """Splits the first axis of each in two: chunks, and images of a chunk."""
    batch, height, width = arrays[0].shape[:3]
    images = images_at_once(batch, height * width, pixels)
    return tuple(a.reshape(batch // images, images, *a.shape[1:]) for a in arrays)


def _is_one(chunks: tuple[Array, ...]) -> bool:
    number = chunks[0].shape[0]
    return isinstance(number, int) and number == 1


def map_images(function: Callable[..., Any], *arrays: Array, pixels: int) -> Any:
    """Returns function(*arrays), which treats every image alike, computed for a few images at a time.

    Args:
      function: Arrays of n images -> tree of arrays of n images, for any n.
      arrays: Arrays of images; their number is taken from the first, (b, h, w, ...).
      pixels: Number of pixels at a time, if that is at least one image.
    """
    chunks = _chunks(arrays, pixels)
    if _is_one(chunks):
        return function(*arrays)
    _, result = lax.scan(lambda _, chunk: (None, function(*chunk)), None, chunks)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), result)


def sum_over_images(function: Callable[..., Any], *arrays: Array, pixels: int) -> Any:
    """Returns function(*arrays), which sums over images, as the sum over a few images at a time.

    Args:
      function: Arrays of n images -> tree of arrays, for any n.
      arrays: Arrays of images; their number is taken from the first, (b, h, w, ...).
      pixels: Number of pixels at a time, if that is at least one image.
    """
    chunks = _chunks(arrays, pixels)
    if _is_one(chunks):
        return function(*arrays)
    shapes = jax.eval_shape(function, *(chunk[0] for chunk in chunks))
    start = jax.tree.map(lambda s: varying_alike(jnp.zeros(s.shape, s.dtype), *arrays)[0], shapes)

    def add(total: Any, chunk: tuple[Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*chunk)), None

    total, _ = lax.scan(add, start, chunks)
    return total
