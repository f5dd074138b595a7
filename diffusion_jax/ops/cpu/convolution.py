"""The three products of a convolution, written for XLA's CPU backend.

The gradients that JAX derives for a convolution have dimension orders that this backend computes slowly,
and, inside a loop, with a naive implementation (17 or more times slower). Here all are convolutions
of stride 1 in the order that it computes fast, and matrix products of a few images at a time:

  dx = conv(dy, rot180(w)^T)          dw[i, j] = sum_{b,h,w} x[b, h + i, w] dy[b, h, w - j]

A convolution of stride s is one of stride 1 over the s x s pixels of each block as channels. Where it
pays, half of the multiplications are saved (`winograd`).
"""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from diffusion_jax.ops.cpu import winograd
from diffusion_jax.ops.cpu.chunks import sum_over_images
from diffusion_jax.ops.window import Window, plain, transpose

PIXELS_AT_ONCE = 2048  # Rows of the matrix products: 500 to 4000 were alike, 8000 slower.
# What the transforms of `winograd` need to pay: with less work, starting their many operations takes longer;
# with narrower outputs, their tiles are half empty.
PRODUCTS_THAT_PAY = 100_000_000
WIDTH_THAT_PAYS = 7
CHANNELS_THAT_PAY = 32
PIXELS_OF_A_CHANNEL = 16  # Per channel; up to this many, turning the kernel around does not pay.


def convolve(x: Array, w: Array, window: Window) -> Array:
    """Returns the convolution of x with w."""
    if _is_product(window):
        rows = x.reshape(-1, x.shape[3])
        product = jnp.matmul(rows, w[0, 0], preferred_element_type=jnp.float32)
        return product.astype(x.dtype).reshape(*x.shape[:3], -1)
    if _transforms_pay(x, w.shape[3], window):
        return winograd.convolve(x, w, *window.padding)
    return plain(x, w, window)


def to_image(dy: Array, w: Array, window: Window) -> Array:
    """Returns the transpose of x -> convolve(x, w) at dy."""
    if window.stride > 1:
        shape = (dy.shape[0], *window.image, w.shape[2])
        dx = to_image(dy, _kernel_of_blocks(w, window), _over_blocks(window))
        return transpose(lambda x: _blocks(x, window), shape, dx)
    window, (b, height, width, _), c = window.transposed(), dy.shape, w.shape[2]
    if _transforms_pay(dy, c, window) and b * height * width <= PIXELS_OF_A_CHANNEL * c:
        return winograd.convolve_turned(dy, w, *window.padding)
    return convolve(dy, w[::-1, ::-1].swapaxes(2, 3), window)


def to_kernel(x: Array, dy: Array, window: Window) -> Array:
    """Returns the transpose of w -> convolve(x, w) at dy."""
    if window.stride > 1:
        shape = (*window.kernel, x.shape[3], dy.shape[3])
        dw = to_kernel(_blocks(x, window), dy, _over_blocks(window))
        return transpose(lambda w: _kernel_of_blocks(w, window), shape, dw)
    if _transforms_pay(x, dy.shape[3], window):
        return winograd.kernel_gradient(x, dy, window.kernel[1], *window.padding)
    if _is_product(window):
        # Otherwise XLA fuses the computation of dy into its transposition, against the order of memory.
        rows, d_rows = (
            x.reshape(-1, x.shape[3]),
            lax.optimization_barrier(dy).reshape(-1, dy.shape[3]),
        )
        product = jnp.matmul(rows.T, d_rows, preferred_element_type=jnp.float32)
        return product.astype(dy.dtype)[None, None]
    return _matrix_product(x, dy, window)


def _is_product(window: Window) -> bool:
    """Whether the convolution is a matrix product of each pixel."""
    return window.kernel == (1, 1) and window.stride == 1 and window.padding == ((0, 0), (0, 0))


def _transforms_pay(x: Array, features: int, window: Window) -> bool:
    (kh, kw), (_, edges), (height, width) = window.kernel, window.padding, window.output
    products = x.shape[0] * height * width * kh * kw * x.shape[3] * features
    return (
        isinstance(products, int)  # Not of a batch of any size, as in an exported program.
        and window.stride == 1
        and products >= PRODUCTS_THAT_PAY
        and x.dtype == jnp.float32
        and kw in (2, 3)
        and width >= WIDTH_THAT_PAYS
        and min(x.shape[3], features) >= CHANNELS_THAT_PAY
        and min(edges) >= 0
    )


def _matrix_product(x: Array, dy: Array, window: Window) -> Array:
    """Returns the gradient of the kernel for stride 1.

    One of the two arrays is shifted by the kernel's rows, one by its columns, and the shifts laid side by
    side as channels: then one product has all. A narrow array takes both, so that the wide one is not copied.
    """
    c, d, taps = x.shape[3], dy.shape[3], window.kernel[0] * window.kernel[1]
    rows_on_x, columns_on_x = not d * taps <= c, c * taps <= d
    sides = (1, 0, rows_on_x), (2, 1, columns_on_x)

    def of_some(x: Array, dy: Array) -> Array:
        for axis, i, on_x in sides:
            k, edges = window.kernel[i], window.padding[i]
            if on_x:
                x = _shifts(x, axis, edges, range(k), window.output[i])
            else:
                beyond = (k - 1 - edges[0], k - 1 - edges[1])
                dy = _shifts(dy, axis, beyond, reversed(range(k)), window.image[i])
        x, dy = x.reshape(-1, x.shape[3]), dy.reshape(-1, dy.shape[3])
        return jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)

    product = sum_over_images(of_some, x, dy, pixels=PIXELS_AT_ONCE)
    of_x = "".join(name for name, on_x in (("j", columns_on_x), ("i", rows_on_x)) if on_x) + "c"
    of_dy = "".join(name for name in "ji" if name not in of_x) + "d"
    sizes = dict(zip("ijcd", (*window.kernel, c, d), strict=True))
    product = product.reshape([sizes[name] for name in of_x + of_dy])
    return jnp.einsum(f"{of_x}{of_dy}->ijcd", product).astype(dy.dtype)


def _shifts(x: Array, axis: int, edges: tuple[int, int], starts: Iterable[int], size: int) -> Array:
    """Pads an axis and returns the parts of that size from these starts, side by side as channels."""
    padded = lax.pad(
        x, jnp.zeros((), x.dtype), [(*edges, 0) if i == axis else (0, 0, 0) for i in range(4)]
    )
    parts = [lax.slice_in_dim(padded, start, start + size, axis=axis) for start in starts]
    return jnp.concatenate(parts, axis=-1)


def _over_blocks(window: Window) -> Window:
    """Returns the window of stride 1 of `_kernel_of_blocks` over `_blocks`."""
    taps = [-(-k // window.stride) for k in window.kernel]
    blocks = [n + k - 1 for n, k in zip(window.output, taps, strict=True)]
    return Window(1, ((0, 0), (0, 0)), (blocks[0], blocks[1]), (taps[0], taps[1]))


def _blocks(x: Array, window: Window) -> Array:
    """Returns the padded images with the pixels of each block of stride x stride as channels."""
    (b, *size, c), s, blocks = x.shape, window.stride, _over_blocks(window).image
    edges = [
        (low, count * s - n - low, 0)
        for n, count, (low, _) in zip(size, blocks, window.padding, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    x = x.reshape(b, blocks[0], s, blocks[1], s, c).swapaxes(2, 3)
    return x.reshape(b, *blocks, -1)


def _kernel_of_blocks(w: Array, window: Window) -> Array:
    """Returns the kernel that gives over `_blocks` what w gives over the images."""
    (kh, kw, c, d), s, taps = w.shape, window.stride, _over_blocks(window).kernel
    w = jnp.pad(w, ((0, taps[0] * s - kh), (0, taps[1] * s - kw), (0, 0), (0, 0)))
    w = w.reshape(taps[0], s, taps[1], s, c, d).swapaxes(1, 2)
    return w.reshape(*taps, -1, d)
