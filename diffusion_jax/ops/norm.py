"""Group normalization (Wu & He, 2018), and the swish that follows it, with a gradient that is one operation.

All of its arithmetic is float32, and images are read and written in their own type. For the gradient, x alone is kept.
What is added to x before, such as a bias or an embedding of the time, is a number per image and channel: the moments of
x + shift follow from those of x, and the gradient of the shift from sums that the gradient of x needs anyway. So no
pass over the images is spent on it.

XLA's CPU backend recomputes the whole chain of the gradient that JAX derives in each of its consumers. Here the
gradient is an operation of its own (`linear`), on the CPU a few images at a time (`cpu.norm`): it reads its inputs
and writes its output once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.cpu import norm as cpu
from diffusion_jax.ops.linear import Arrays, Map, linear_map


class _Form(NamedTuple):
    groups: int
    epsilon: float
    swish: bool


class _Fixed(NamedTuple):
    """What the tangent depends on: images, and numbers per image (or of all) and channel.

    Attributes:
      x: Images.
      own: Mean of each channel of x.
      mean: Mean of each channel's group, of x + shift.
      inverse: 1 / the standard deviation of that group.
      scale: Factor of the normalized images.
      bias: Added to these.
      shift: Added to x.
    """

    x: Array
    own: Array
    mean: Array
    inverse: Array
    scale: Array
    bias: Array
    shift: Array


def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "#b c"],
    bias: Float[Array, "#b c"],
    groups: int,
    epsilon: float,
    swish: bool,
    shift: Float[Array, "#b c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Returns z = scale x_hat + bias or swish(z), x_hat being x + shift, of mean 0 and variance 1 in each group.

    Reduces over contiguous axes only, which is several times faster on the CPU than over groups of channels.

    Args:
      x: Images, NHWC; the result has their type.
      scale: Factor of each channel, of each image or of all, float32.
      bias: Added to each channel, likewise.
      groups: Number of equal groups of channels.
      epsilon: Added to the variance.
      swish: Whether to return swish(z) = z / (1 + e^-z).
      shift: Added to each channel before, likewise; None: nothing.
    """
    shift = jnp.zeros_like(bias, shape=(1, x.shape[3])) if shift is None else shift
    return _group_norm(x, scale, bias, shift, _Form(groups, epsilon, swish))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _group_norm(x: Array, scale: Array, bias: Array, shift: Array, form: _Form) -> Array:
    return _value(_fixed(x, scale, bias, shift, form), form)


@_group_norm.defjvp
def _(form: _Form, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    fixed = _fixed(*primals, form)
    (tangent,) = _tangent(tangents, fixed, form)
    return _value(fixed, form), tangent


@functools.partial(jax.jit, static_argnames="form")  # Traced once for all norms of a shape.
def _value(fixed: _Fixed, form: _Form) -> Array:
    gain = fixed.inverse * fixed.scale
    offset = fixed.bias + (fixed.shift - fixed.mean) * gain
    z = fixed.x.astype(jnp.float32) * _over_pixels(gain) + _over_pixels(offset)
    return (jax.nn.swish(z) if form.swish else z).astype(fixed.x.dtype)


@functools.partial(jax.jit, static_argnames="form")
def _fixed(x: Array, scale: Array, bias: Array, shift: Array, form: _Form) -> _Fixed:
    """Adds mean and variance of the groups: of the latter, a channel's own and that of the channels' means.

    Taken together as E (x + shift)^2 - mean^2, a shift would cost digits.
    """
    whole = x.astype(jnp.float32)
    own, square = whole.mean((1, 2)), jnp.square(whole).mean((1, 2))
    mean = _mean_of_groups(own + shift, form.groups)
    within = jnp.maximum(square - jnp.square(own), 0.0)
    variance = _mean_of_groups(within + jnp.square(own + shift - mean), form.groups)
    return _Fixed(x, own, mean, lax.rsqrt(variance + form.epsilon), scale, bias, shift)


def _over_pixels(a: Float[Array, "b c"]) -> Float[Array, "b 1 1 c"]:
    """Reshapes one number per channel, of each image or of all, to the axes of images."""
    return a.reshape(-1, 1, 1, a.shape[-1])


def _mean_of_groups(a: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Returns for each channel the mean over its group."""
    (means,) = _group_means((a,), (), groups)
    return means


def _by_product(v: Arrays, _: Arrays, groups: int) -> Arrays:
    """Multiplies by the matrix of a group's channels: sums of parts of an axis, repeated, are many operations."""
    (a,) = v
    size = a.shape[1] // groups
    group = jnp.arange(a.shape[1]) // size
    same = (group[:, None] == group[None, :]).astype(jnp.float32) / size
    return (jnp.matmul(a, same, precision=lax.Precision.HIGHEST),)


def _by_reshaping(v: Arrays, _: Arrays, groups: int) -> Arrays:
    (a,) = v
    size = a.shape[1] // groups
    return (jnp.repeat(a.reshape(-1, groups, size).mean(2), size, axis=1),)


_group_means = linear_map(
    "group_means",
    _by_product,
    _by_product,
    on_cpu=_by_reshaping,
    transpose_on_cpu=_by_reshaping,
)


def _x_hat_and_slope(fixed: _Fixed, form: _Form) -> tuple[Array, Array | float]:
    """Returns x_hat, and the derivative of the output by z."""
    centered = fixed.x.astype(jnp.float32) + _over_pixels(fixed.shift - fixed.mean)
    x_hat = centered * _over_pixels(fixed.inverse)
    if not form.swish:
        return x_hat, 1.0
    z = x_hat * _over_pixels(fixed.scale) + _over_pixels(fixed.bias)
    sigmoid = jax.nn.sigmoid(z)
    return x_hat, sigmoid * (1 + z * (1 - sigmoid))


def _jvp(tangents: Arrays, arrays: Arrays, form: _Form) -> Arrays:
    fixed, (dx, d_scale, d_bias, d_shift) = _Fixed(*arrays), tangents
    x_hat, slope = _x_hat_and_slope(fixed, form)
    dx = dx.astype(jnp.float32) + _over_pixels(d_shift)
    mean = _mean_of_groups(dx.mean((1, 2)), form.groups)
    along = _mean_of_groups((dx * x_hat).mean((1, 2)), form.groups)
    d_x_hat = (dx - _over_pixels(mean) - x_hat * _over_pixels(along)) * _over_pixels(fixed.inverse)
    dz = _over_pixels(fixed.scale) * d_x_hat + x_hat * _over_pixels(d_scale) + _over_pixels(d_bias)
    return ((slope * dz).astype(fixed.x.dtype),)


def _vjp_of_each(dy: Array, arrays: Arrays, form: _Form) -> Arrays:
    """Returns the gradient of x, and those of scale, bias and shift for each image."""
    fixed, pixels = _Fixed(*arrays), dy.shape[1] * dy.shape[2]
    x_hat, slope = _x_hat_and_slope(fixed, form)
    dz = dy.astype(jnp.float32) * slope
    d_bias, d_scale = dz.sum((1, 2)), (dz * x_hat).sum((1, 2))
    if dy.dtype != jnp.float32:
        # Otherwise XLA stores dz in float32, as a cast is but a rounding to it.
        dz, d_bias, d_scale = lax.optimization_barrier((dz.astype(dy.dtype), d_bias, d_scale))
        dz = dz.astype(jnp.float32)
    mean = _mean_of_groups(fixed.scale * d_bias, form.groups) / pixels
    along = _mean_of_groups(fixed.scale * d_scale, form.groups) / pixels
    # dx = (scale dz - mean - x_hat along) / std = p dz - q (x + offset) - r, with numbers per image and channel.
    p, q = fixed.inverse * fixed.scale, jnp.square(fixed.inverse) * along
    r, offset = fixed.inverse * mean, fixed.shift - fixed.mean
    centered = fixed.x.astype(jnp.float32) + _over_pixels(offset)
    dx = _over_pixels(p) * dz - _over_pixels(q) * centered - _over_pixels(r)
    d_shift = p * d_bias - pixels * (q * (fixed.own + offset) + r)
    return dx.astype(dy.dtype), d_scale, d_bias, d_shift


def _summed(gradients_of_each: Callable[[Array, Arrays, _Form], Arrays]) -> Map:
    """Sums the gradients of scale, bias and shift over the images, where these have one row for all."""

    def vjp(cotangents: Arrays, arrays: Arrays, form: _Form) -> Arrays:
        dx, *others = gradients_of_each(cotangents[0], arrays, form)
        shared = [a.shape[0] == 1 for a in arrays[-3:]]
        sums = [d.sum(0, keepdims=True) if s else d for d, s in zip(others, shared, strict=True)]
        return dx, *sums

    return vjp


_tangent = linear_map(
    "group_norm_tangent",
    _jvp,
    _summed(_vjp_of_each),
    transpose_on_cpu=_summed(cpu.by_chunks(_vjp_of_each)),
)
