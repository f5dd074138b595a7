"""Images in parts, whose channels lie side by side: a skip connection without the concatenation.

What takes them treats their channels as those of one image, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array

Parts = Array | tuple[Array, ...]
Images = TypeVar("Images", bound=Parts)  # In as many parts as they came.


def parts_of(x: Parts) -> tuple[Array, ...]:
    """Returns the parts; an array is one.

    Args:
      x: Images.
    """
    return x if isinstance(x, tuple) else (x,)


def sizes_of(x: Parts) -> tuple[int, ...]:
    """Returns the number of channels of each part.

    Args:
      x: Images.
    """
    return tuple(part.shape[-1] for part in parts_of(x))


def joined(x: Parts) -> Array:
    """Returns the images as one array.

    Args:
      x: Images.
    """
    parts = parts_of(x)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def divided(a: Array, sizes: Sequence[int], axis: int = -1) -> list[Array]:
    """Splits an axis of an array as the channels of images are.

    Args:
      a: Array with an element of this axis per channel.
      sizes: Number of channels of each part.
      axis: The axis.
    """
    return jnp.split(a, list(accumulate(sizes))[:-1], axis) if len(sizes) > 1 else [a]


def as_type(x: Images, dtype: Any) -> Images:
    """Returns the images in a type.

    Args:
      x: Images.
      dtype: The type.
    """
    parts = tuple(part.astype(dtype) for part in parts_of(x))
    return like(parts, x)


def like(parts: tuple[Array, ...], x: Images) -> Images:
    """Returns parts as images in as many parts as others: one of them as an array if these are one.

    Args:
      parts: The parts.
      x: The other images.
    """
    result: Any = parts if isinstance(x, tuple) else parts[0]
    return result
