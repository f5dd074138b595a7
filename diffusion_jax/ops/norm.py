"""Group normalization (Wu & He, 2018), and the swish that follows it, with a gradient that is one operation.

XLA's CPU backend recomputes the whole chain of the gradient that JAX derives in each of its consumers. Here the
gradient is an operation of its own (`linear`), on the CPU a few images at a time (`cpu.norm`): it reads its inputs
and writes its output once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.ops.cpu import norm as cpu
from diffusion_jax.ops.linear import Arrays, linear_map


class _Form(NamedTuple):
    groups: int
    swish: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
    swish: bool,
) -> Float[Array, "b h w c"]:
    """Returns z = scale x_hat + bias, x_hat being x of mean 0 and variance 1 in each group, or swish(z).

    Reduces over contiguous axes only, which is several times faster on the CPU than over groups of channels.

    Args:
      x: Images, NHWC, float32.
      scale: Factor of each channel.
      bias: Added to each channel.
      groups: Number of equal groups of channels.
      epsilon: Added to the variance.
      swish: Whether to return swish(z) = z / (1 + e^-z).
    """
    form = _Form(groups, swish)
    return _value(x, *_moments(x, groups, epsilon), scale, bias, form=form)


@group_norm.defjvp
def _(
    groups: int, epsilon: float, swish: bool, primals: Arrays, tangents: Arrays
) -> tuple[Array, Array]:
    (x, scale, bias), form = primals, _Form(groups, swish)
    fixed = x, *_moments(x, groups, epsilon), scale, bias
    (tangent,) = _tangent(tangents, fixed, form)
    return _value(*fixed, form=form), tangent


@functools.partial(jax.jit, static_argnames="form")  # Traced once for all norms of a shape.
def _value(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, form: _Form) -> Array:
    gain = inverse * scale[None]
    z = x * _over_pixels(gain) + _over_pixels(bias[None] - mean * gain)
    return jax.nn.swish(z) if form.swish else z


def _over_pixels(a: Float[Array, "*b c"]) -> Float[Array, "b 1 1 c"]:
    """Reshapes one number per channel, of each image or of all, to the axes of images."""
    return a.reshape(-1, 1, 1, a.shape[-1])


def _mean_of_groups(a: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    """Returns for each channel the mean over its group."""
    b, c = a.shape
    means = a.reshape(b, groups, c // groups).mean(2)
    return jnp.repeat(means, c // groups, axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _moments(
    x: Float[Array, "b h w c"], groups: int, epsilon: float
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Returns for each channel the mean of its group and 1 / its standard deviation."""
    mean = _mean_of_groups(x.mean((1, 2)), groups)
    square = _mean_of_groups(jnp.square(x).mean((1, 2)), groups)
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    return mean, jax.lax.rsqrt(variance + epsilon)


def _x_hat_and_slope(fixed: Arrays, form: _Form) -> tuple[Array, Array | float]:
    """Returns x_hat, and the derivative of the output by z."""
    x, mean, inverse, scale, bias = fixed
    x_hat = (x - _over_pixels(mean)) * _over_pixels(inverse)
    if not form.swish:
        return x_hat, 1.0
    z = x_hat * _over_pixels(scale) + _over_pixels(bias)
    sigmoid = jax.nn.sigmoid(z)
    return x_hat, sigmoid * (1 + z * (1 - sigmoid))


def _jvp(tangents: Arrays, fixed: Arrays, form: _Form) -> Arrays:
    (dx, d_scale, d_bias), (_, _, inverse, scale, _) = tangents, fixed
    x_hat, slope = _x_hat_and_slope(fixed, form)
    mean = _mean_of_groups(dx.mean((1, 2)), form.groups)
    along = _mean_of_groups((dx * x_hat).mean((1, 2)), form.groups)
    d_x_hat = (dx - _over_pixels(mean) - x_hat * _over_pixels(along)) * _over_pixels(inverse)
    dz = _over_pixels(scale) * d_x_hat + x_hat * _over_pixels(d_scale) + _over_pixels(d_bias)
    return (slope * dz,)


def _vjp_of_each(dy: Array, *fixed: Array, form: _Form) -> Arrays:
    """Returns the gradient of x, and those of scale and bias for each image."""
    _, _, inverse, scale, _ = fixed
    x_hat, slope = _x_hat_and_slope(fixed, form)
    dz = dy * slope
    d_bias, d_scale = dz.sum((1, 2)), (dz * x_hat).sum((1, 2))
    pixels = dy.shape[1] * dy.shape[2]
    mean = _mean_of_groups(scale[None] * d_bias, form.groups) / pixels
    along = _mean_of_groups(scale[None] * d_scale, form.groups) / pixels
    dx = _over_pixels(scale) * dz - _over_pixels(mean) - x_hat * _over_pixels(along)
    return dx * _over_pixels(inverse), d_scale, d_bias


def _vjp(cotangents: Arrays, fixed: Arrays, form: _Form) -> Arrays:
    dx, d_scale, d_bias = _vjp_of_each(*cotangents, *fixed, form=form)
    return dx, d_scale.sum(0), d_bias.sum(0)


_tangent = linear_map(
    "group_norm_tangent", _jvp, _vjp, transpose_on_cpu=cpu.by_chunks(_vjp_of_each)
)
