"""Convolution with fewer multiplications: F(4, r) of Winograd (1980) along rows, as in Lavin & Gray (2016).

Four neighboring outputs y of a row and the r + 3 inputs x that they see are related by the r taps w of
the kernel. With V_k the Vandermonde matrix of r + 3 points, one of them infinite, and k columns,

  y = V_4^T [(V_r w) * (V_{r+3}^{-T} x)]

which is r + 3 products instead of 4 r: half as many for r = 3. Rows of the kernel, channels and images
are unchanged, so each point is a convolution with a kernel one pixel wide. The transpose of
these steps is the gradient of the kernel.

The transforms add to the rounding: with 3 x 3 taps of 128 channels the error is 0.8e-6 of the outputs' size
(root mean square), against 0.4e-6 of the sum of all products. The points are those that make it least of
the symmetric ones tried (0, ±1, ±2: 1.15e-6).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.cpu.chunks import map_images, sum_over_images

TILE = 4  # Outputs of a row that are computed together.
POINTS = (0, 0.75, -0.75, 1.5, -1.5)  # Finite ones, for three taps; exact in binary.
PIXELS_AT_ONCE = 4096  # Fits in the cache; 2000 to 8000 were alike.

Edges = tuple[int, int]  # Zeros before and after.


class Transforms(NamedTuple):
    """Matrices whose rows are the points, except `output`, whose columns are."""

    kernel: np.ndarray
    image: np.ndarray
    output: np.ndarray


@functools.cache
def transforms(taps: int) -> Transforms:
    """Returns V_r, V_{r+3}^{-T} and V_4^T, for r of 2 or 3 taps."""
    size = taps + TILE - 1

    def vandermonde(columns: int) -> np.ndarray:
        at_infinity = np.eye(columns)[-1:]
        return np.vstack([np.vander(POINTS[: size - 1], columns, increasing=True), at_infinity])

    image = np.linalg.inv(vandermonde(size)).T
    image[np.abs(image) < 1e-12] = 0  # Rounding of the inverse.
    return Transforms(vandermonde(taps), image, vandermonde(TILE).T)


def convolve(
    x: Float[Array, "b h w c"], w: Float[Array, "kh r c d"], rows: Edges, columns: Edges
) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of stride 1 of x, padded with zeros, with w.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO, 2 or 3 pixels wide.
      rows: Zeros above and below.
      columns: Zeros to the left and right.
    """
    kernels = _combined(transforms(w.shape[1]).kernel, [w[:, j : j + 1] for j in range(w.shape[1])])

    def convolution(x: Array, point: int) -> Array:
        return lax.conv_general_dilated(
            x, kernels[point], (1, 1), (rows, (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return _by_points(convolution, x, w.shape[1], columns)


def convolve_turned(
    x: Float[Array, "b h w d"], w: Float[Array, "kh r c d"], rows: Edges, columns: Edges
) -> Float[Array, "b oh ow c"]:
    """Returns `convolve` of x with rot180(w)^T, which is slow to write out, without writing it out.

    Each point is a matrix product of the rows of pixels that the kernel sees, side by side as channels.
    For few images of many channels that is faster than the transposition, for many slower.

    Args:
      x: Images, NHWC.
      w: Kernel, 2 or 3 pixels wide.
      rows: Zeros above and below.
      columns: Zeros to the left and right.
    """
    kernel_height, taps, c, d = w.shape
    height = x.shape[1] + sum(rows) - kernel_height + 1
    turned = [w[::-1, j].swapaxes(0, 1).reshape(c, -1) for j in reversed(range(taps))]
    kernels = _combined(transforms(taps).kernel, turned)

    def product(x: Array, point: int) -> Array:
        x = jnp.pad(x, ((0, 0), rows, (0, 0), (0, 0)))
        seen = jnp.concatenate([x[:, i : i + height] for i in range(kernel_height)], axis=-1)
        return lax.dot_general(seen, kernels[point], (((3,), (1,)), ((), ())))

    return _by_points(product, x, taps, columns)


def _by_points(
    convolution: Callable[[Array, int], Array], x: Array, taps: int, columns: Edges
) -> Array:
    """Returns the images from the results of `convolution` on the transform at each point."""
    matrices, width = transforms(taps), x.shape[2] + sum(columns) - taps + 1

    def of_some(x: Array) -> Array:
        seen = _seen(x, matrices, columns, width)
        products = [convolution(part, point) for point, part in enumerate(seen)]
        y = jnp.stack(_combined(matrices.output, products), axis=3)
        return y.reshape(*y.shape[:2], -1, y.shape[-1])[:, :, :width]

    return map_images(of_some, x, pixels=PIXELS_AT_ONCE)


def kernel_gradient(
    x: Float[Array, "b h w c"],
    dy: Float[Array, "b oh ow d"],
    taps: int,
    rows: Edges,
    columns: Edges,
) -> Float[Array, "kh r c d"]:
    """Returns the sum over images and pixels of x, padded, times dy at all shifts of the kernel.

    Args:
      x: Images, NHWC.
      dy: The output of `convolve`, or its gradient.
      taps: Width of the kernel, 2 or 3.
      rows: Zeros above and below x.
      columns: Zeros to its left and right.
    """
    (_, height, _, c), (_, rows_out, width, d) = x.shape, dy.shape
    matrices, kernel_height = transforms(taps), height + sum(rows) - rows_out + 1
    beyond = [(kernel_height - 1 - edge) for edge in rows]

    def of_some(x: Array, dy: Array) -> list[Array]:
        dy = jnp.pad(dy, ((0, 0), (0, 0), (0, -width % TILE), (0, 0)))
        tiles = dy.reshape(*dy.shape[:2], -1, TILE, d)
        spread = _combined(matrices.output.T, [tiles[:, :, :, i] for i in range(TILE)])
        products = []
        for seen, part in zip(_seen(x, matrices, columns, width), spread, strict=True):
            # Shifted by each row of the kernel, side by side: one product for all of them.
            part = jnp.pad(part, ((0, 0), beyond, (0, 0), (0, 0)))
            shifted = [part[:, i : i + height] for i in reversed(range(kernel_height))]
            part = jnp.concatenate(shifted, axis=-1).reshape(-1, kernel_height * d)
            products.append(jnp.matmul(seen.reshape(-1, c).T, part))
        return products

    points = sum_over_images(of_some, x, dy, pixels=PIXELS_AT_ONCE)
    points = [point.reshape(c, kernel_height, d).swapaxes(0, 1) for point in points]
    return jnp.stack(_combined(matrices.kernel.T, points), axis=1)


def _seen(x: Array, matrices: Transforms, columns: Edges, width: int) -> list[Array]:
    """Returns the transform of the inputs of each tile of four outputs; (b, h, tiles, c) for each point."""
    size, end = len(matrices.image), -(-width // TILE) * TILE
    right = end + size - TILE - columns[0] - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (columns[0], right), (0, 0)))
    return _combined(matrices.image, [x[:, :, i : i + end : TILE] for i in range(size)])


def _combined(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """Returns the matrix times a list of arrays, as sums: a product with it would transpose them."""
    return [
        functools.reduce(
            jnp.add,
            [
                array if factor == 1 else array * np.float32(factor)
                for factor, array in zip(row, arrays, strict=True)
                if factor
            ],
        )
        for row in matrix
    ]
