"""Resizing of images as two matrix products, one over the columns and one over the rows.

The matrices are made in float64 on the host, from the rule of the library whose features are to be matched. Libraries
agree on hardly anything here (where pixels lie, the cubic's parameter, what is beyond the border, whether an image that
shrinks is smoothed first), which is what makes published FIDs differ, so each rule has a name.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Rule:
    """How an axis is resized.

    Attributes:
      kernel: Weight of a pixel by its distance from the place that is read, in pixels.
      antialias: Whether an image that shrinks is smoothed, by a kernel as wide as a new pixel; the weights are then
        those of the pixels inside the image, divided by their sum. Else the image goes on beyond its border as at it.
      half_pixel: Whether pixel i lies at i + 1/2, rather than at i.
    """

    kernel: Callable[[np.ndarray], np.ndarray]
    antialias: bool
    half_pixel: bool = True


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns Keys' kernel with slope a at distance 1 (IEEE Trans. ASSP 29, 1981, Equation 4)."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


RULES = {
    # torch's interpolate with align_corners=False, as in pytorch-fid.
    "bilinear": Rule(_linear, antialias=False),
    # resize_bilinear of TensorFlow 1, as inside the graph of 2015 and in torch-fidelity.
    "bilinear_tensorflow": Rule(_linear, antialias=False, half_pixel=False),
    # PIL, and torch with antialias=True.
    "bilinear_antialias": Rule(_linear, antialias=True),
    "bicubic_antialias": Rule(_cubic(-0.5), antialias=True),
    # torch's interpolate.
    "bicubic": Rule(_cubic(-0.75), antialias=False),
}


@functools.cache
def resize_matrix(
    size: int, new_size: int, rule: str, scale: float | None = None
) -> Float[np.ndarray, "{new_size} {size}"]:
    """Returns the matrix in float64 that resizes an axis.

    Args:
      size: Length of the axis.
      new_size: Length of the resized axis.
      rule: A name in `RULES`.
      scale: New pixels per old one, if that is not new_size / size (torch's `scale_factor`).
    """
    how, step = RULES[rule], size / new_size if scale is None else 1 / scale
    shift = 0.5 if how.half_pixel else 0.0
    places = (np.arange(new_size)[:, None] + shift) * step - shift
    stretch = max(step, 1) if how.antialias else 1
    if how.antialias:
        weights = how.kernel((np.arange(size) - places) / stretch)
        matrix = weights / weights.sum(axis=1, keepdims=True)
    else:
        pixels = np.arange(math.floor(places[0, 0]) - 1, math.floor(places[-1, 0]) + 3)
        matrix = np.zeros((new_size, size))
        np.add.at(matrix.T, pixels.clip(0, size - 1), how.kernel(pixels - places).T)
    matrix.flags.writeable = False
    return matrix


def resize(
    images: Float[Array, "b h w c"],
    size: tuple[int, int],
    rule: str,
    scales: tuple[float, float] | None = None,
) -> Float[Array, "b h2 w2 c"]:
    """Resizes images.

    Args:
      images: Images, NHWC, float32.
      size: New height and width.
      rule: A name in `RULES`. Cubic rules overshoot the range of the images.
      scales: See `resize_matrix`, for the height and the width.
    """
    scale_h, scale_w = scales or (None, None)
    rows = jnp.asarray(resize_matrix(images.shape[1], size[0], rule, scale_h), images.dtype)
    columns = jnp.asarray(resize_matrix(images.shape[2], size[1], rule, scale_w), images.dtype)
    # GPUs and TPUs would round the pixels to 11 or 8 bits first.
    exact = lax.Precision.HIGHEST
    images = jnp.einsum("bhwc,qw->bhcq", images, columns, precision=exact)
    return jnp.einsum("ph,bhcq->bpqc", rows, images, precision=exact)
