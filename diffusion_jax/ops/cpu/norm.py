"""The gradient of group normalization on the CPU, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion_jax.ops.cpu.chunks import map_images
from diffusion_jax.ops.linear import Arrays, Map

ELEMENTS_AT_ONCE = 2**17  # 512 KiB in float32.


def by_chunks(vjp_of_each: Callable[..., Arrays]) -> Map:
    """Returns the transpose of the norm's tangent, computed for a few images at a time.

    Args:
      vjp_of_each: (dy, x, mean, inverse, scale, bias, form=...) -> the gradient of x, and those of scale and
        bias for each image.
    """

    def transpose(cotangents: Arrays, fixed: Arrays, form: Any) -> Arrays:
        (dy,), (*of_images, scale, bias) = cotangents, fixed
        dx, d_scale, d_bias = map_images(
            lambda dy, *fixed: vjp_of_each(dy, *fixed, scale, bias, form=form),
            dy,
            *of_images,
            pixels=ELEMENTS_AT_ONCE // dy.shape[3],
        )
        return dx, d_scale.sum(0), d_bias.sum(0)

    return transpose
