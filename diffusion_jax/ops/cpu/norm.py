"""The gradient of group normalization on the CPU, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from diffusion_jax.ops.cpu.chunks import map_images
from diffusion_jax.ops.linear import Arrays

ELEMENTS_AT_ONCE = 2**17  # 512 KiB in float32.


def by_chunks(
    gradients_of_each: Callable[[Array, Arrays, Any], Arrays],
) -> Callable[[Array, Arrays, Any], Arrays]:
    """Returns the same function, computed for a few images at a time.

    Args:
      gradients_of_each: (dy, fixed, form) -> gradients of each image; arrays of `fixed` have a row per image, or one
        for all.
    """

    def in_chunks(dy: Array, fixed: Arrays, form: Any) -> Arrays:
        divided = [a.shape[0] == dy.shape[0] for a in fixed]

        def of_some(dy: Array, *some: Array) -> Arrays:
            chosen = iter(some)
            arrays = [next(chosen) if d else a for a, d in zip(fixed, divided, strict=True)]
            return gradients_of_each(dy, tuple(arrays), form)

        of_images = [a for a, d in zip(fixed, divided, strict=True) if d]
        return map_images(of_some, dy, *of_images, pixels=ELEMENTS_AT_ONCE // dy.shape[3])

    return in_chunks
