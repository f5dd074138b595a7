"""The window of a kernel that moves over images, and XLA's convolution under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from diffusion_jax.ops.operation import varying_alike

Padding = tuple[tuple[int, int], tuple[int, int]]  # Rows above and below, columns left and right.


class Window(NamedTuple):
    """Motion of a kernel over the images, the height and width of both, and whether no platform may round them."""

    stride: int
    padding: Padding
    image: tuple[int, int]
    kernel: tuple[int, int]
    exact: bool = False

    @property
    def output(self) -> tuple[int, int]:
        sizes = zip(self.image, self.kernel, self.padding, strict=True)
        height, width = ((n + sum(edges) - k) // self.stride + 1 for n, k, edges in sizes)
        return height, width

    def transposed(self) -> Window:
        """Returns the window of the convolution that computes the images' gradient, for stride 1."""
        (kh, kw), ((top, bottom), (left, right)) = self.kernel, self.padding
        padding = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        return Window(1, padding, self.output, self.kernel)


def plain(x: Array, w: Array, window: Window) -> Array:
    """Returns the convolution of x with w by XLA."""
    strides, order = (window.stride, window.stride), ("NHWC", "HWIO", "NHWC")
    precision = lax.Precision.HIGHEST if window.exact else None
    return lax.conv_general_dilated(
        x, w, strides, window.padding, dimension_numbers=order, precision=precision
    )


def transpose(function: Callable[[Array], Array], shape: tuple[int, ...], dy: Array) -> Array:
    """Returns the transpose, at dy, of a linear function of an array of this shape."""
    example, _ = varying_alike(jnp.zeros(shape, dy.dtype), dy)
    (transposed,) = jax.linear_transpose(function, example)(dy)
    return transposed
