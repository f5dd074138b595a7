"""Convolutions and matrix products with gradients that are fast on every platform.

On GPUs and TPUs these are the convolution of XLA and the gradients that JAX derives for it; on the CPU
they are in `ops.cpu.convolution`. The three products, of image and kernel, of gradient and kernel, and of image and
gradient, are each other's transposes (`bilinear`), so that derivatives of any order and mode have them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.bilinear import bilinear
from diffusion_jax.ops.cpu import convolution as cpu
from diffusion_jax.ops.linear import Arrays, linear_map
from diffusion_jax.ops.parts import Parts, divided, joined, parts_of, sizes_of
from diffusion_jax.ops.window import Padding, Window, plain, transpose


def conv(
    x: Parts,
    w: Float[Array, "kh kw c d"],
    stride: int = 1,
    padding: str | Padding = "SAME",
    *,
    exact: bool = False,
) -> Float[Array, "b oh ow d"]:
    """Returns the convolution of x with w.

    Args:
      x: Images, NHWC, perhaps in parts.
      w: Kernel, HWIO.
      stride: Step of both image axes.
      padding: "SAME": the output is ceil(H / stride) x ceil(W / stride); "VALID": no zeros around the images; or the
        numbers of zeros, ((above, below), (left, right)).
      exact: Whether GPUs and TPUs, too, multiply in float32; by default they round to 11 or 8 bits first.
    """
    parts, sizes = parts_of(x), sizes_of(x)
    pads = _pads(parts[0], w, stride, padding)
    (_, height, width, _), (kh, kw, _, _) = parts[0].shape, w.shape
    window = Window(stride, pads, (height, width), (kh, kw), exact)
    if len(parts) == 1:
        return _convolution(parts[0], w, window)
    return _of_parts(parts, w, (window, sizes))


def pointwise(x: Parts, w: Float[Array, "c d"]) -> Float[Array, "b h w d"]:
    """Returns x w over the channels of images, which keep their order in memory on TPUs as a convolution.

    Args:
      x: Images, NHWC, perhaps in parts.
      w: Matrix.
    """
    return conv(x, w[None, None])


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


# Of images in parts it is a sum of convolutions, each with the kernel's channels of one part. On the CPU, where a wider
# convolution takes less time than two, the parts are joined; their gradients are then parts of one.
_Options = tuple[Window, tuple[int, ...]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_parts(parts: Arrays, w: Array, options: _Options) -> Array:
    return _in_parts(parts, (w,), options)[0]


@_of_parts.defjvp
def _(options: _Options, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (parts, w), (d_parts, dw) = primals, tangents
    by_parts, by_kernel = _in_parts(d_parts, (w,), options), _in_kernel((dw,), parts, options)
    return _of_parts(parts, w, options), by_parts[0] + by_kernel[0]


def _sum_of_parts(parts: Arrays, kernel: Arrays, options: _Options) -> Arrays:
    window, sizes = options
    kernels = divided(kernel[0], sizes, axis=2)
    first, *others = (_convolution(x, w, window) for x, w in zip(parts, kernels, strict=True))
    return (sum(others, first),)


def _to_parts(dy: Arrays, kernel: Arrays, options: _Options) -> Arrays:
    window, sizes = options
    return tuple(_to_image(dy[0], w, window) for w in divided(kernel[0], sizes, axis=2))


def _to_kernels(dy: Arrays, parts: Arrays, options: _Options) -> Arrays:
    return (jnp.concatenate([_to_kernel(x, dy[0], options[0]) for x in parts], axis=2),)


def _of_joined(parts: Arrays, kernel: Arrays, options: _Options) -> Arrays:
    return (_convolution(joined(parts), kernel[0], options[0]),)


_in_parts = linear_map(
    "convolution_of_parts",
    _sum_of_parts,
    _to_parts,
    on_cpu=_of_joined,
    transpose_on_cpu=lambda dy, kernel, options: tuple(
        divided(_to_image(dy[0], kernel[0], options[0]), options[1])
    ),
)
_in_kernel = linear_map(
    "convolution_of_parts_by_kernel",
    lambda kernel, parts, options: _sum_of_parts(parts, kernel, options),
    _to_kernels,
    on_cpu=lambda kernel, parts, options: _of_joined(parts, kernel, options),
    transpose_on_cpu=lambda dy, parts, options: (_to_kernel(joined(parts), dy[0], options[0]),),
)
