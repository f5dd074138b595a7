"""The gradient of group normalization on the CPU, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from diffusion_jax.ops.cpu.chunks import map_images
from diffusion_jax.ops.linear import Arrays

ELEMENTS_AT_ONCE = 2**17  # 512 KiB in float32.


def by_chunks(
    gradients_of_each: Callable[[Arrays, Arrays, Any], Arrays],
) -> Callable[[Arrays, Arrays, Any], Arrays]:
    """Returns the same function, computed for a few images at a time.

    Args:
      gradients_of_each: (dys, fixed, form) -> gradients of each image, of images in parts; arrays of `fixed` have a row
        per image, or one for all.
    """

    def in_chunks(dys: Arrays, fixed: Arrays, form: Any) -> Arrays:
        divided = [a.shape[0] == dys[0].shape[0] for a in fixed]

        def of_some(*some: Array) -> Arrays:
            chosen = iter(some[len(dys) :])
            arrays = [next(chosen) if d else a for a, d in zip(fixed, divided, strict=True)]
            return gradients_of_each(some[: len(dys)], tuple(arrays), form)

        of_images = [a for a, d in zip(fixed, divided, strict=True) if d]
        pixels = ELEMENTS_AT_ONCE // sum(dy.shape[3] for dy in dys)
        return map_images(of_some, *dys, *of_images, pixels=pixels)

    return in_chunks
