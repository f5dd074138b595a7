"""Convolution whose gradients keep their speed on the CPU, also inside `lax.scan`.

The gradients that JAX derives for a convolution have dimension orders that XLA's CPU backend either
computes slowly or, in a loop body, hands to a naive implementation (17 and more times slower). Here
both are written in canonical NHWC/HWIO form:

  dx = conv(dilate(dy), rot180(w)^T)           dw[i, j] = sum_{b,h,w} x[b, s h + i, s w + j] dy[b, h, w]

the latter as matrix products. On other platforms the derived gradients are the fast ones and are kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]
Kernel = Float[Array, "kh kw c d"]
Padding = tuple[tuple[int, int], tuple[int, int]]


def _same_padding(shape: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> Padding:
    pads = lax.padtype_to_pads(shape[1:3], kernel[:2], (stride, stride), "SAME")
    return (pads[0][0], pads[0][1]), (pads[1][0], pads[1][1])


def _convolve(x: Array, w: Array, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Image, w: Kernel, stride: int = 1) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of x with w under "SAME" padding.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO.
      stride: Step of both image axes; the output is ceil(H / stride) x ceil(W / stride).
    """
    return _convolve(x, w, stride, _same_padding(x.shape, w.shape, stride))


def _input_gradient(x: Array, w: Array, dy: Array, stride: int) -> Array:
    pads = _same_padding(x.shape, w.shape, stride)
    # dy, spread out to the input's grid and padded so that a "valid" convolution gives x's shape.
    edges = [
        (k - 1 - lo, size + lo - 1 - stride * (out - 1), stride - 1)
        for k, size, out, (lo, _) in zip(
            w.shape[:2], x.shape[1:3], dy.shape[1:3], pads, strict=True
        )
    ]
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return _convolve(spread, w[::-1, ::-1].swapaxes(2, 3), 1, ((0, 0), (0, 0)))


def _kernel_gradient(x: Array, w: Array, dy: Array, stride: int) -> Array:
    (top, bottom), (left, right) = _same_padding(x.shape, w.shape, stride)
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width, d = dy.shape[1:]
    # One matrix product per tap, in as many independent pieces as there are threads to feed.
    pieces = next(n for n in (8, 4, 2, 1) if dy.shape[0] % n == 0)
    dy = dy.reshape(pieces, -1, d)

    def tap(i: int, j: int) -> Array:
        rows = slice(i, i + stride * (height - 1) + 1, stride)
        columns = slice(j, j + stride * (width - 1) + 1, stride)
        shifted = padded[:, rows, columns].reshape(pieces, -1, x.shape[-1])
        products = jnp.einsum("pkc,pkd->pcd", shifted, dy, preferred_element_type=jnp.float32)
        return products.sum(0)

    taps = [[tap(i, j) for j in range(w.shape[1])] for i in range(w.shape[0])]
    return jnp.stack([jnp.stack(row) for row in taps]).astype(w.dtype)


def _forward(x: Array, w: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, w, stride), (x, w)


def _backward(stride: int, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def canonical(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        return _input_gradient(x, w, dy, stride), _kernel_gradient(x, w, dy, stride)

    def derived(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        padding = _same_padding(x.shape, w.shape, stride)
        return jax.vjp(lambda x, w: _convolve(x, w, stride, padding), x, w)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=canonical, default=derived)


conv.defvjp(_forward, _backward)
