"""Convolutions and matrix products with gradients that are fast on every platform.

On GPUs and TPUs these are the convolution of XLA and the gradients that JAX derives for it; on the CPU
they are in `ops.cpu.convolution`. The three products, of image and kernel, of gradient and kernel, and of image and
gradient, are each other's transposes (`bilinear`), so that derivatives of any order and mode have them.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.bilinear import bilinear
from diffusion_jax.ops.cpu import convolution as cpu
from diffusion_jax.ops.window import Padding, Window, plain, transpose


def conv(
    x: Float[Array, "b h w c"],
    w: Float[Array, "kh kw c d"],
    stride: int = 1,
    padding: str | Padding = "SAME",
    *,
    exact: bool = False,
) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of x with w.

    Args:
      x: Images, NHWC.
      w: Kernel, HWIO.
      stride: Step of both image axes.
      padding: "SAME": the output is ceil(H / stride) x ceil(W / stride); "VALID": no zeros around the images; or the
        numbers of zeros, ((above, below), (left, right)).
      exact: Whether GPUs and TPUs, too, multiply in float32; by default they round to 11 or 8 bits first.
    """
    return _conv(x, w, stride, _pads(x, w, stride, padding), exact)


def matmul(x: Float[Array, "*b c"], w: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """Returns x w over the last axis of x."""
    return _matmul(x.reshape(-1, x.shape[-1]), w, None).reshape(*x.shape[:-1], -1)


def _matmul_to_second(x: Array, dy: Array, _: None) -> Array:
    # Otherwise XLA fuses the computation of dy into its transposition for dw, against the order of memory.
    return _matmul(x.T, lax.optimization_barrier(dy), None)


_matmul = bilinear(
    "matmul",
    lambda x, w, _: jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(x.dtype),
    lambda x, w, _: (x[0], w[1]),
    to_first=lambda dy, w, _: _matmul(dy, w.T, None),
    to_second=_matmul_to_second,
    by_rows=True,
)


def _conv(x: Array, w: Array, stride: int, padding: Padding, exact: bool = False) -> Array:
    (_, height, width, _), (kh, kw, _, _) = x.shape, w.shape
    return _convolution(x, w, Window(stride, padding, (height, width), (kh, kw), exact))


def _pads(x: Array, w: Array, stride: int, padding: str | Padding) -> Padding:
    if not isinstance(padding, str):
        return padding
    top, left = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), padding)
    return top, left


def _to_image_derived(dy: Array, w: Array, window: Window) -> Array:
    shape = (dy.shape[0], *window.image, w.shape[2])
    return transpose(lambda x: plain(x, w, window), shape, dy)


def _to_kernel_derived(x: Array, dy: Array, window: Window) -> Array:
    shape = (*window.kernel, x.shape[3], dy.shape[3])
    return transpose(lambda w: plain(x, w, window), shape, dy)


_convolution = bilinear(
    "convolution",
    plain,
    lambda x, w, window: (x[0], *window.output, w[3]),
    to_first=lambda dy, w, window: _to_image(dy, w, window),
    to_second=lambda x, dy, window: _to_kernel(x, dy, window),
    by_rows=True,
    on_cpu=cpu.convolve,
)
_to_image = bilinear(
    "convolution_to_image",
    _to_image_derived,
    lambda dy, w, window: (dy[0], *window.image, w[2]),
    to_first=_convolution,
    to_second=lambda dy, dx, window: _to_kernel(dx, dy, window),
    by_rows=True,
    on_cpu=cpu.to_image,
)
_to_kernel = bilinear(
    "convolution_to_kernel",
    _to_kernel_derived,
    lambda x, dy, window: (*window.kernel, x[3], dy[3]),
    to_first=lambda dw, dy, window: _to_image(dy, dw, window),
    to_second=_convolution,
    by_rows=False,
    on_cpu=cpu.to_kernel,
)
