"""Convolution whose gradients keep their speed on the CPU, also inside `lax.scan`.

The gradients that JAX derives for a convolution have dimension orders that XLA's CPU backend computes
slowly, and in a loop body hands to a naive implementation (17 and more times slower). Here both are
written for that backend, for stride 1:

  dx = conv(dy, rot180(w)^T)          dw[i, j] = sum_{b,h,w} x[b, h + i, w] dy[b, h, w - j]

the latter as one matrix product for all i and j, a few images at a time so that what it reads stays in
the cache. A strided convolution is the one of stride 1, subsampled: its dy is spread out with zeros.
On other platforms the derived gradients are the fast ones and are kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PIXELS_AT_ONCE = 1024  # Rows of the matrix product: 1000 to 4000 were alike, 8000 slower.


def _convolve(x: Array, w: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(
    x: Float[Array, "b h w c"], w: Float[Array, "kh kw c d"], stride: int = 1
) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of x with w under "SAME" padding.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO; its height and width are odd.
      stride: Step of both image axes; the output is ceil(H / stride) x ceil(W / stride).

    Raises:
      ValueError: A kernel of even height or width, which has no middle.
    """
    if w.shape[0] % 2 == 0 or w.shape[1] % 2 == 0:
        raise ValueError(f"the kernel is {w.shape[0]}x{w.shape[1]}; both must be odd")
    return _convolve(x, w, stride)


def _spread(dy: Array, x: Array, w: Array, stride: int) -> Array:
    """Returns dy on the grid of the convolution of stride 1: zero wherever stride > 1 skips."""
    edges = []
    for axis in (1, 2):
        size, kernel, out = x.shape[axis], w.shape[axis - 1], dy.shape[axis]
        strided = lax.padtype_to_pads((size,), (kernel,), (stride,), "SAME")[0][0]
        low = kernel // 2 - strided
        edges.append((low, size - 1 - stride * (out - 1) - low, stride - 1))
    return lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _kernel_gradient(x: Array, w: Array, dy: Array) -> Array:
    b, height, width, c = x.shape
    kh, kw, _, d = w.shape
    fitting = max(1, PIXELS_AT_ONCE // (height * width))
    images = max(n for n in range(1, fitting + 1) if b % n == 0)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        x, dy = chunk
        x = jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (0, 0), (0, 0)))
        dy = jnp.pad(dy, ((0, 0), (0, 0), (kw // 2, kw // 2), (0, 0)))
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


def _forward(x: Array, w: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, w, stride), (x, w)


def _backward(stride: int, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    def for_cpu(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        dy = _spread(dy, x, w, stride)
        return _convolve(dy, w[::-1, ::-1].swapaxes(2, 3), 1), _kernel_gradient(x, w, dy)

    def derived(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_convolve, stride=stride), x, w)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=for_cpu, default=derived)


conv.defvjp(_forward, _backward)
