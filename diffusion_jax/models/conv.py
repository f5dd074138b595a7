"""Convolutions and matrix products whose gradients keep their speed on the CPU, also inside `lax.scan`.

The gradients that JAX derives for a convolution have dimension orders that XLA's CPU backend computes
slowly, and in a loop body hands to a naive implementation (17 and more times slower). Here both are
written for that backend, for stride 1:

  dx = conv(dy, rot180(w)^T)          dw[i, j] = sum_{b,h,w} x[b, h + i, w] dy[b, h, w - j]

the latter as one matrix product for all i and j, a few images at a time so that what it reads stays in
the cache. A convolution of stride s is one of stride 1 over the s x s pixels of each block as channels.
On other platforms the derived gradients are the fast ones and are kept. The three products are each
other's transposes (`bilinear`), so that derivatives of any order and mode have them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.models.bilinear import bilinear, varying_alike

PIXELS_AT_ONCE = 1024  # Rows of the matrix product: 500 to 4000 were alike, 8000 slower.
Padding = tuple[tuple[int, int], tuple[int, int]]  # Rows above and below, columns left and right.


def conv(
    x: Float[Array, "b h w c"], w: Float[Array, "kh kw c d"], stride: int = 1
) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of x with w under "SAME" padding.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO.
      stride: Step of both image axes; the output is ceil(H / stride) x ceil(W / stride).
    """
    return _conv(x, w, stride, _same(x, w, stride))


def conv_of_doubled(
    x: Float[Array, "b h w c"], w: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
    """Returns conv(x', w) for x' = x with each pixel repeated twice along both axes.

    Each output pixel sees only 2 x 2 pixels of x, which ones depends on whether its row and its column
    are even. Four kernels of that size, whose weights are sums of w's, do it in 4/9 of the
    multiplications.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO, of 3 x 3 pixels.
    """
    b, height, width, _ = x.shape
    rows = []
    for i in range(2):
        of_row = _merged(w, i).swapaxes(0, 1)
        kernels = [_merged(of_row, j).swapaxes(0, 1).astype(x.dtype) for j in range(2)]
        padding = [((1 - i, i), (1 - j, j)) for j in range(2)]
        rows.append(jnp.stack([_conv(x, kernels[j], 1, padding[j]) for j in range(2)], axis=3))
    return jnp.stack(rows, axis=2).reshape(b, 2 * height, 2 * width, -1)


def _merged(w: Array, odd: int) -> Array:
    """Adds up the two rows of three that fall on the same pixel, of even or odd output rows."""
    return jnp.stack([w[0] + w[1], w[2]] if odd else [w[0], w[1] + w[2]])


def matmul(x: Float[Array, "*b c"], w: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """Returns x w over the last axis of x."""
    return _matmul(x.reshape(-1, x.shape[-1]), w, None).reshape(*x.shape[:-1], -1)


def _matmul_to_second(x: Array, dy: Array, _: None) -> Array:
    # Else what computes dy is fused into its transposition for dw, against the order of memory.
    return _matmul(x.T, lax.optimization_barrier(dy), None)


_matmul = bilinear(
    "matmul",
    lambda x, w, _: jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(x.dtype),
    lambda x, w, _: (x[0], w[1]),
    to_first=lambda dy, w, _: _matmul(dy, w.T, None),
    to_second=_matmul_to_second,
    by_rows=True,
)


class _Window(NamedTuple):
    """How a kernel moves over the images, and the height and width of both."""

    stride: int
    padding: Padding
    image: tuple[int, int]
    kernel: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        sizes = zip(self.image, self.kernel, self.padding, strict=True)
        height, width = ((n + sum(edges) - k) // self.stride + 1 for n, k, edges in sizes)
        return height, width


def _conv(x: Array, w: Array, stride: int, padding: Padding) -> Array:
    (_, *image, _), (*kernel, _, _) = x.shape, w.shape
    return _convolution(
        x, w, _Window(stride, padding, (image[0], image[1]), (kernel[0], kernel[1]))
    )


def _same(x: Array, w: Array, stride: int) -> Padding:
    top, left = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), "SAME")
    return top, left


def _convolve(x: Array, w: Array, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        (window.stride, window.stride),
        window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_blocks(x: Array, w: Array, window: _Window) -> Array:
    """Returns the same as _convolve, by a convolution of stride 1 over blocks of pixels."""
    (b, *size, c), (*kernel, _, d), stride = x.shape, w.shape, window.stride
    x_edges, w_edges, blocks, taps = [], [], [], []
    for n, k, (low, high) in zip(size, kernel, window.padding, strict=True):
        taps.append(-(-k // stride))
        blocks.append((n + low + high - k) // stride + taps[-1])
        x_edges.append((low, blocks[-1] * stride - n - low, 0))
        w_edges.append((0, taps[-1] * stride - k, 0))
    none, zero = (0, 0, 0), jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, (none, *x_edges, none))
    w = lax.pad(w, zero.astype(w.dtype), (*w_edges, none, none))
    x = x.reshape(b, blocks[0], stride, blocks[1], stride, c).swapaxes(2, 3)
    w = w.reshape(taps[0], stride, taps[1], stride, c, d).swapaxes(1, 2)
    return _conv(x.reshape(b, *blocks, -1), w.reshape(*taps, -1, d), 1, ((0, 0), (0, 0)))


def _transposed(function: Callable[[Array], Array], shape: tuple[int, ...], dy: Array) -> Array:
    """Returns the transpose, at dy, of a linear function of an array of this shape."""
    example, _ = varying_alike(jnp.zeros(shape, dy.dtype), dy)
    (transposed,) = jax.linear_transpose(function, example)(dy)
    return transposed


def _image_gradient(dy: Array, w: Array, window: _Window) -> Array:
    shape = (len(dy), *window.image, w.shape[2])

    def for_cpu(dy: Array, w: Array) -> Array:
        if window.stride > 1:
            return _transposed(lambda x: _convolve_blocks(x, w, window), shape, dy)
        (kh, kw), ((top, bottom), (left, right)) = window.kernel, window.padding
        around = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        flipped = w[::-1, ::-1].swapaxes(2, 3)
        return _convolve(dy, flipped, _Window(1, around, window.output, window.kernel))

    def derived(dy: Array, w: Array) -> Array:
        return _transposed(lambda x: _convolve(x, w, window), shape, dy)

    return lax.platform_dependent(dy, w, cpu=for_cpu, default=derived)


def _kernel_gradient(x: Array, dy: Array, window: _Window) -> Array:
    shape = (*window.kernel, x.shape[3], dy.shape[3])

    def for_cpu(x: Array, dy: Array) -> Array:
        if window.stride > 1:
            return _transposed(lambda w: _convolve_blocks(x, w, window), shape, dy)
        return _matrix_product(x, dy, window)

    def derived(x: Array, dy: Array) -> Array:
        return _transposed(lambda w: _convolve(x, w, window), shape, dy)

    return lax.platform_dependent(x, dy, cpu=for_cpu, default=derived)


def _matrix_product(x: Array, dy: Array, window: _Window) -> Array:
    """Returns the gradient of the kernel for stride 1."""
    (b, _, width, c), (_, height, _, d) = x.shape, dy.shape
    (kh, kw), padding = window.kernel, window.padding
    fitting = max(1, PIXELS_AT_ONCE // (height * width))
    images = max(n for n in range(1, fitting + 1) if b % n == 0)
    around = [(kw - 1 - edge) for edge in padding[1]]

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        x, dy = chunk
        x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0)))
        dy = jnp.pad(dy, ((0, 0), (0, 0), around, (0, 0)))
        rows = jnp.concatenate([x[:, i : i + height] for i in range(kh)], axis=-1)
        columns = jnp.concatenate([dy[:, :, j : j + width] for j in reversed(range(kw))], axis=-1)
        product = jnp.matmul(
            rows.reshape(-1, kh * c).T,
            columns.reshape(-1, kw * d),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    chunks = (x.reshape(-1, images, *x.shape[1:]), dy.reshape(-1, images, *dy.shape[1:]))
    start, _ = varying_alike(jnp.zeros((kh * c, kw * d)), x)
    total, _ = lax.scan(add, start, chunks)
    return total.reshape(kh, c, kw, d).swapaxes(1, 2).astype(dy.dtype)


_convolution = bilinear(
    "convolution",
    _convolve,
    lambda x, w, window: (x[0], *window.output, w[3]),
    to_first=lambda dy, w, window: _to_image(dy, w, window),
    to_second=lambda x, dy, window: _to_kernel(x, dy, window),
    by_rows=True,
)
_to_image = bilinear(
    "convolution_to_image",
    _image_gradient,
    lambda dy, w, window: (dy[0], *window.image, w[2]),
    to_first=_convolution,
    to_second=lambda dy, dx, window: _to_kernel(dx, dy, window),
    by_rows=True,
)
_to_kernel = bilinear(
    "convolution_to_kernel",
    _kernel_gradient,
    lambda x, dy, window: (*window.kernel, x[3], dy[3]),
    to_first=lambda dw, dy, window: _to_image(dy, dw, window),
    to_second=_convolution,
    by_rows=False,
)
