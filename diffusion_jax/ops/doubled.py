"""The convolution of images whose pixels are repeated, without the repetition.

On GPUs and TPUs it is one convolution with zeros between the pixels; on the CPU, where XLA multiplies these zeros, four
small ones. The three products are each other's transposes, as in `convolution`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.bilinear import Product, bilinear
from diffusion_jax.ops.convolution import conv
from diffusion_jax.ops.window import transpose


def conv_of_doubled(
    x: Float[Array, "b h w c"], w: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
    """Returns conv(x', w) for x' = x with each pixel repeated twice along both axes.

    Each output pixel sees only 2 x 2 pixels of x, chosen by the parity of its row and its column. So it is a
    convolution of x, with zeros between its pixels, with 4 x 4 sums of w's weights, of which a quarter meets pixels; on
    the CPU, four of 2 x 2 weights.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO, of 3 x 3 pixels, in a type that its sums are exact enough in.
    """
    shifts = [(i, j) for i in (0, 1) for j in (0, 1)]
    sums = sum(jnp.pad(w, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in shifts)
    return _convolution_of_doubled(x, jnp.asarray(sums).astype(x.dtype), None)


def _spread(x: Array, sums: Array, _: None) -> Array:
    return lax.conv_general_dilated(
        x,
        sums,
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_parity(x: Array, sums: Array, _: None) -> Array:
    b, height, width = x.shape[:3]
    rows = []
    for i in range(2):
        padding = [((1 - i, i), (1 - j, j)) for j in range(2)]
        columns = [conv(x, sums[i::2, j::2], 1, padding[j]) for j in range(2)]
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(b, 2 * height, 2 * width, -1)


def _of_doubled_to_image(forward: Product) -> Product:
    """Returns the transpose by the images of one of the two implementations."""

    def to_image(dy: Array, sums: Array, _: None) -> Array:
        shape = (dy.shape[0], dy.shape[1] // 2, dy.shape[2] // 2, sums.shape[2])
        return transpose(lambda x: forward(x, sums, None), shape, dy)

    return to_image


def _of_doubled_to_kernel(forward: Product) -> Product:
    """Returns the transpose by the kernel of one of the two implementations."""

    def to_kernel(x: Array, dy: Array, _: None) -> Array:
        shape = (4, 4, x.shape[3], dy.shape[3])
        return transpose(lambda sums: forward(x, sums, None), shape, dy)

    return to_kernel


_convolution_of_doubled = bilinear(
    "convolution_of_doubled",
    _spread,
    lambda x, sums, _: (x[0], 2 * x[1], 2 * x[2], sums[3]),
    to_first=lambda dy, sums, _: _doubled_to_image(dy, sums, None),
    to_second=lambda x, dy, _: _doubled_to_kernel(x, dy, None),
    by_rows=True,
    on_cpu=_by_parity,
)
_doubled_to_image = bilinear(
    "convolution_of_doubled_to_image",
    _of_doubled_to_image(_spread),
    lambda dy, sums, _: (dy[0], dy[1] // 2, dy[2] // 2, sums[2]),
    to_first=_convolution_of_doubled,
    to_second=lambda dy, dx, _: _doubled_to_kernel(dx, dy, None),
    by_rows=True,
    on_cpu=_of_doubled_to_image(_by_parity),
)
_doubled_to_kernel = bilinear(
    "convolution_of_doubled_to_kernel",
    _of_doubled_to_kernel(_spread),
    lambda x, dy, _: (4, 4, x[3], dy[3]),
    to_first=lambda dw, dy, _: _doubled_to_image(dy, dw, None),
    to_second=_convolution_of_doubled,
    by_rows=False,
    on_cpu=_of_doubled_to_kernel(_by_parity),
)
