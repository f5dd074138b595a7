"""Convolutions and matrix products whose gradients keep their speed on the CPU, also inside `lax.scan`.

The gradients that JAX derives for a convolution have dimension orders that XLA's CPU backend computes
slowly, and in a loop body hands to a naive implementation (17 and more times slower). Here both are
written for that backend, for stride 1:

  dx = conv(dy, rot180(w)^T)          dw[i, j] = sum_{b,h,w} x[b, h + i, w] dy[b, h, w - j]

the latter as one matrix product for all i and j, a few images at a time so that what it reads stays in
the cache. A convolution of stride s is one of stride 1 over the s x s pixels of each block as channels.
On other platforms the derived gradients are the fast ones and are kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

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


@jax.custom_vjp
def matmul(x: Float[Array, "*b c"], w: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """Returns x w over the last axis of x."""
    return jnp.matmul(x, w)


def _matmul_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, w), (x, w)


def _matmul_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = residuals
    # Else what computes dy is fused into its transposition for dw, against the order of memory.
    dy = lax.optimization_barrier(dy)
    rows, columns = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dw = jnp.matmul(rows.T, columns, preferred_element_type=jnp.float32)
    return jnp.matmul(dy, w.T), dw.astype(w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _same(x: Array, w: Array, stride: int) -> Padding:
    top, left = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), "SAME")
    return top, left


def _convolve(x: Array, w: Array, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, stride: int, padding: Padding) -> Array:
    return _convolve(x, w, stride, padding)


def _conv_of_blocks(x: Array, w: Array, stride: int, padding: Padding) -> Array:
    """Returns the same as _conv, by a convolution of stride 1 over blocks of pixels."""
    (b, *size, c), (*window, _, d) = x.shape, w.shape
    x_edges, w_edges, blocks, taps = [], [], [], []
    for n, k, (low, high) in zip(size, window, padding, strict=True):
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


def _kernel_gradient(x: Array, w: Array, dy: Array, padding: Padding) -> Array:
    b, _, width, c = x.shape
    kh, kw, _, d = w.shape
    height = dy.shape[1]
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
    total, _ = lax.scan(add, jnp.zeros((kh * c, kw * d)), chunks)
    return total.reshape(kh, c, kw, d).swapaxes(1, 2).astype(w.dtype)


def _forward(
    x: Array, w: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, stride, padding), (x, w)


def _backward(
    stride: int, padding: Padding, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    def for_cpu(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        if stride > 1:
            blocks = partial(_conv_of_blocks, stride=stride, padding=padding)
            return jax.vjp(blocks, x, w)[1](dy)
        kh, kw = w.shape[:2]
        (top, bottom), (left, right) = padding
        around = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        dx = _convolve(dy, w[::-1, ::-1].swapaxes(2, 3), 1, around)
        return dx, _kernel_gradient(x, w, dy, padding)

    def derived(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_convolve, stride=stride, padding=padding), x, w)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=for_cpu, default=derived)


_conv.defvjp(_forward, _backward)
