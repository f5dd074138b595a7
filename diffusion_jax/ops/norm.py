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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from diffusion_jax.ops.cpu import norm as cpu
from diffusion_jax.ops.linear import Arrays, Map, linear_map
from diffusion_jax.ops.parts import Images, divided, like, parts_of, sizes_of


class _Form(NamedTuple):
    groups: int
    epsilon: float
    swish: bool


class _Fixed(NamedTuple):
    """What the tangent depends on: images, and numbers per image (or of all) and channel.

    Attributes:
      parts: Images, in parts.
      own: Mean of each channel of the images.
      mean: Mean of each channel's group, of the images + shift.
      inverse: 1 / the standard deviation of that group.
      scale: Factor of the normalized images.
      bias: Added to these.
      shift: Added to the images.
    """

    parts: Arrays
    own: Array
    mean: Array
    inverse: Array
    scale: Array
    bias: Array
    shift: Array

    @classmethod
    def of(cls, arrays: Arrays) -> _Fixed:
        """Undoes `arrays`."""
        return cls(arrays[:-6], *arrays[-6:])

    @property
    def arrays(self) -> Arrays:
        """All of them."""
        return *self.parts, *self[1:]

    def each(self, *numbers: Array) -> Iterator[tuple[Array, ...]]:
        """Yields for each part the images, in float32, and its share of numbers per channel, over the pixels."""
        shares = zip(*(divided(a, sizes_of(self.parts)) for a in numbers), strict=True)
        for part, share in zip(self.parts, shares, strict=True):
            yield part.astype(jnp.float32), *map(_over_pixels, share)


def group_norm(
    x: Images,
    scale: Float[Array, "#b c"],
    bias: Float[Array, "#b c"],
    groups: int,
    epsilon: float,
    swish: bool,
    shift: Float[Array, "#b c"] | None = None,
) -> Images:
    """Returns z = scale x_hat + bias or swish(z), x_hat being x + shift, of mean 0 and variance 1 in each group.

    Reduces over contiguous axes only, which is several times faster on the CPU than over groups of channels.

    Args:
      x: Images, NHWC, perhaps in parts; the result has their type and parts.
      scale: Factor of each channel, of each image or of all, float32.
      bias: Added to each channel, likewise.
      groups: Number of equal groups of channels.
      epsilon: Added to the variance.
      swish: Whether to return swish(z) = z / (1 + e^-z).
      shift: Added to each channel before, likewise; None: nothing.
    """
    shift = jnp.zeros_like(bias, shape=(1, scale.shape[1])) if shift is None else shift
    ys = _group_norm(parts_of(x), scale, bias, shift, _Form(groups, epsilon, swish))
    return like(ys, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _group_norm(parts: Arrays, scale: Array, bias: Array, shift: Array, form: _Form) -> Arrays:
    return _value(_fixed(parts, scale, bias, shift, form), form)


@_group_norm.defjvp
def _(form: _Form, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Arrays, Arrays]:
    fixed = _fixed(*primals, form)
    tangent = _tangent((*tangents[0], *tangents[1:]), fixed.arrays, form)
    return _value(fixed, form), tangent


@functools.partial(jax.jit, static_argnames="form")  # Traced once for all norms of a shape.
def _value(fixed: _Fixed, form: _Form) -> Arrays:
    gain = fixed.inverse * fixed.scale
    offset = fixed.bias + (fixed.shift - fixed.mean) * gain
    zs = [x * g + o for x, g, o in fixed.each(gain, offset)]
    ys = [jax.nn.swish(z) for z in zs] if form.swish else zs
    return tuple(y.astype(x.dtype) for y, x in zip(ys, fixed.parts, strict=True))


@functools.partial(jax.jit, static_argnames="form")
def _fixed(parts: Arrays, scale: Array, bias: Array, shift: Array, form: _Form) -> _Fixed:
    """Adds mean and variance of the groups: of the latter, a channel's own and that of the channels' means.

    Taken together as E (x + shift)^2 - mean^2, a shift would cost digits. A mean of x itself does: its variance is that
    of float32 sums of squares, with three digits where the mean is 30 times the deviation.
    """
    whole = [x.astype(jnp.float32) for x in parts]
    own = jnp.concatenate([x.mean((1, 2)) for x in whole], axis=1)
    square = jnp.concatenate([jnp.square(x).mean((1, 2)) for x in whole], axis=1)
    mean = _mean_of_groups(own + shift, form.groups)
    within = jnp.maximum(square - jnp.square(own), 0.0)
    variance = _mean_of_groups(within + jnp.square(own + shift - mean), form.groups)
    inverse = lax.rsqrt(variance + form.epsilon)
    return _Fixed(parts, own, mean, inverse, scale, bias, shift)


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


def _x_hats_and_slopes(fixed: _Fixed, form: _Form) -> list[tuple[Array, Array | float]]:
    """Returns x_hat, and the derivative of the output by z, of each part."""
    results = []
    numbers = fixed.shift - fixed.mean, fixed.inverse, fixed.scale, fixed.bias
    for x, offset, inverse, scale, bias in fixed.each(*numbers):
        x_hat = (x + offset) * inverse
        sigmoid = jax.nn.sigmoid(z := x_hat * scale + bias)
        results.append((x_hat, sigmoid * (1 + z * (1 - sigmoid)) if form.swish else 1.0))
    return results


def _jvp(tangents: Arrays, arrays: Arrays, form: _Form) -> Arrays:
    fixed = _Fixed.of(arrays)
    *dxs, d_scale, d_bias, d_shift = tangents
    of_parts = _x_hats_and_slopes(fixed, form)
    dxs = [dx.astype(jnp.float32) for dx in dxs]
    dxs = [
        dx + _over_pixels(d)
        for dx, d in zip(dxs, divided(d_shift, sizes_of(fixed.parts)), strict=True)
    ]
    pairs = list(zip(dxs, of_parts, strict=True))
    mean = jnp.concatenate([dx.mean((1, 2)) for dx in dxs], axis=1)
    along = jnp.concatenate([(dx * x_hat).mean((1, 2)) for dx, (x_hat, _) in pairs], axis=1)
    mean, along = (_mean_of_groups(a, form.groups) for a in (mean, along))
    numbers = mean, along, fixed.inverse, fixed.scale, d_scale, d_bias
    outputs = []
    for (dx, (x_hat, slope)), (_, mean, along, inverse, scale, by_scale, by_bias) in zip(
        pairs, fixed.each(*numbers), strict=True
    ):
        dz = scale * (dx - mean - x_hat * along) * inverse + x_hat * by_scale + by_bias
        outputs.append(slope * dz)
    return tuple(y.astype(x.dtype) for y, x in zip(outputs, fixed.parts, strict=True))


def _vjp_of_each(dys: Arrays, arrays: Arrays, form: _Form) -> Arrays:
    """Returns the gradients of the parts, and those of scale, bias and shift for each image."""
    fixed, pixels = _Fixed.of(arrays), dys[0].shape[1] * dys[0].shape[2]
    dzs, sums = [], []
    for dy, (x_hat, slope) in zip(dys, _x_hats_and_slopes(fixed, form), strict=True):
        dz = dy.astype(jnp.float32) * slope
        sums.append((dz.sum((1, 2)), (dz * x_hat).sum((1, 2))))
        dzs.append(dz.astype(dy.dtype))
    if dys[0].dtype != jnp.float32:
        # Otherwise XLA stores dz in float32, as a cast is but a rounding to it.
        dzs, sums = lax.optimization_barrier((dzs, sums))
    d_bias, d_scale = (jnp.concatenate(parts, axis=1) for parts in zip(*sums, strict=True))
    mean = _mean_of_groups(fixed.scale * d_bias, form.groups) / pixels
    along = _mean_of_groups(fixed.scale * d_scale, form.groups) / pixels
    # dx = (scale dz - mean - x_hat along) / std = p dz - q (x + offset) - r, with numbers per image and channel.
    p, q = fixed.inverse * fixed.scale, jnp.square(fixed.inverse) * along
    r, offset = fixed.inverse * mean, fixed.shift - fixed.mean
    dxs = [
        (p * dz.astype(jnp.float32) - q * (x + offset) - r).astype(dz.dtype)
        for dz, (x, p, q, r, offset) in zip(dzs, fixed.each(p, q, r, offset), strict=True)
    ]
    d_shift = p * d_bias - pixels * (q * (fixed.own + offset) + r)
    return *dxs, d_scale, d_bias, d_shift


def _summed(gradients_of_each: Callable[[Arrays, Arrays, _Form], Arrays]) -> Map:
    """Sums the gradients of scale, bias and shift over the images, where these have one row for all."""

    def vjp(cotangents: Arrays, arrays: Arrays, form: _Form) -> Arrays:
        *dxs, d_scale, d_bias, d_shift = gradients_of_each(cotangents, arrays, form)
        shared = [a.shape[0] == 1 for a in arrays[-3:]]
        pairs = zip((d_scale, d_bias, d_shift), shared, strict=True)
        return *dxs, *(d.sum(0, keepdims=True) if of_all else d for d, of_all in pairs)

    return vjp


_tangent = linear_map(
    "group_norm_tangent",
    _jvp,
    _summed(_vjp_of_each),
    transpose_on_cpu=_summed(cpu.by_chunks(_vjp_of_each)),
)
