"""Layers that networks are made of: normalization, linear maps, convolution, dropout."""

from __future__ import annotations

import math
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import InputError
from diffusion_jax.ops import attention
from diffusion_jax.ops.convolution import conv, matmul, pointwise
from diffusion_jax.ops.doubled import conv_of_doubled
from diffusion_jax.ops.hashing import random_bits
from diffusion_jax.ops.norm import group_norm
from diffusion_jax.ops.parts import Images, Parts, as_type, parts_of, sizes_of
from diffusion_jax.ops.window import Padding

Dtype = Any
Linear = tuple[Array, Array]  # Kernel and bias.
# What a recomputed block may keep (`jax.checkpoint_policies`): results of the 3x3 convolutions, and of the attention's
# products. What is left, norms and swish, costs little to compute again.
CONV = "conv"
SAVEABLE = (CONV, attention.RESULT)


# Ho et al. initialize every kernel with variance 1 / fan_avg; the last layer of a residual path is zero,
# so that each block starts as the identity and the network's first output is 0.
def default_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws uniformly with variance 2 / (fan_in + fan_out), Glorot & Bengio (2010)."""
    *window, fan_in, fan_out = shape
    limit = math.sqrt(6 / ((fan_in + fan_out) * math.prod(window)))
    # Drawn flat: random bits of a shaped array take XLA's CPU backend five times as long to compile.
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


zero_init = nn.initializers.zeros


def group_count(channels: int, groups: int | None = None) -> int:
    """Returns the number of groups of a norm over this many channels.

    Args:
      channels: Number of channels.
      groups: The number wanted; None: the largest divisor of `channels` that is at most 32 and leaves
        at least four channels per group.

    Raises:
      InputError: `groups` does not divide `channels`.
    """
    if groups is None:
        most = max(1, min(32, channels // 4))
        return next(n for n in range(most, 0, -1) if channels % n == 0)
    if channels % groups:
        raise InputError(
            f"norm_groups is {groups}; it must divide the channels of every norm, of which one has {channels}"
        )
    return groups


class GroupNorm(nn.Module):
    """Group normalization (Wu & He, 2018), computed in float32 and rounded to the type of its input.

    `shift` is added to the input before; `modulation`, (s, t), makes (1 + s) z + t of its result z, before swish. They
    are numbers per image, or for all, and channel: `ops.norm` has no pass over the images for them.

    Attributes:
      groups: Number of equal groups; None: as `group_count` chooses.
      epsilon: Added to the variance.
      swish: Whether swish follows.
    """

    groups: int | None = None
    epsilon: float = 1e-6
    swish: bool = False

    @nn.compact
    def __call__(
        self,
        x: Images,
        shift: Float[Array, "#b c"] | None = None,
        modulation: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
    ) -> Images:
        channels = sum(sizes_of(x))
        scale = self.param("scale", nn.initializers.ones, (channels,))[None]
        bias = self.param("bias", nn.initializers.zeros, (channels,))[None]
        if modulation is not None:
            factor, added = modulation
            scale, bias = scale * (1 + factor), bias * (1 + factor) + added
        groups = group_count(channels, self.groups)
        return group_norm(x, scale, bias, groups, self.epsilon, self.swish, shift)


class Affine(nn.Module):
    """Kernel and bias of a linear map, float32; `affine` applies them.

    Attributes:
      features: Channels of its output.
      kernel_init: Initializer of the kernel.
    """

    features: int
    kernel_init: nn.initializers.Initializer = default_init

    @nn.compact
    def __call__(self, channels: int) -> Linear:
        kernel = self.param("kernel", self.kernel_init, (channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def affine(x: Parts, kernel: Float[Array, "c d"], bias: Float[Array, " d"]) -> Float[Array, "*b d"]:
    """Returns x kernel + bias, computed in the type of x.

    Args:
      x: Inputs; images perhaps in parts.
      kernel: Float32.
      bias: Float32.
    """
    kernel = kernel.astype(parts_of(x)[0].dtype)
    if isinstance(x, tuple) or x.ndim == 4:
        return add_bias(pointwise(x, kernel), bias)
    return add_bias(matmul(x, kernel), bias)


class Dense(nn.Module):
    """Linear map of the last axis with a bias, computed in `dtype` from float32 parameters."""

    features: int
    kernel_init: nn.initializers.Initializer = default_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Parts) -> Float[Array, "*b d"]:
        kernel = self.param("kernel", self.kernel_init, (sum(sizes_of(x)), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return affine(as_type(x, self.dtype), kernel, bias)


def add_bias(y: Float[Array, "*b c"], bias: Float[Array, " c"]) -> Float[Array, "*b c"]:
    """Returns y + bias in the type of y.

    The sum is float32, and so is that of the bias's gradient, which XLA then fuses into the operation that makes it.

    Args:
      y: Outputs of a linear map.
      bias: Number added to each channel, float32.
    """
    return (y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)


class Conv(nn.Module):
    """3×3 convolution with a bias, computed in `dtype` from float32 parameters.

    Attributes:
      features: Channels of the output.
      stride: Step of both image axes.
      padding: Zeros around the images, as `ops.convolution.conv` takes them.
      doubled: Whether the image is first upsampled twofold, by repeating its pixels; with "SAME" and stride 1.
      kernel_init: Initializer of the kernel.
      dtype: Type of the computation.

    `without_bias` returns the convolution and the bias, for a norm that adds it (`GroupNorm`).
    """

    features: int
    stride: int = 1
    padding: str | Padding = "SAME"
    doubled: bool = False
    kernel_init: nn.initializers.Initializer = default_init
    dtype: Dtype = jnp.float32

    def __call__(self, x: Parts) -> Float[Array, "b oh ow d"]:
        return add_bias(*self.without_bias(x))

    @nn.compact
    def without_bias(self, x: Parts) -> tuple[Float[Array, "b oh ow d"], Float[Array, " d"]]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, sum(sizes_of(x)), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = as_type(x, self.dtype)
        if self.doubled:
            assert not isinstance(x, tuple)
            y = conv_of_doubled(x, kernel)  # It sums the kernel's weights before rounding them.
        else:
            y = conv(x, kernel.astype(self.dtype), self.stride, self.padding)
        return checkpoint_name(y, CONV), bias


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) with a mask per image that depends only on its key and this module's path.

    So the output for an image does not depend on the rest of its batch or on its device.

    Attributes:
      rate: Share of the values that become 0; the others are divided by 1 - rate.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, " b *dims"], keys: Key[Array, " b"] | None
    ) -> Float[Array, " b *dims"]:
        if keys is None or self.rate == 0:
            return x
        place = zlib.crc32("/".join(self.path).encode())
        words = jax.vmap(lambda key: jax.random.key_data(jax.random.fold_in(key, place)))(keys)
        keep = 1 - self.rate
        kept = random_bits(words, x.shape[1:]) < jnp.uint32(min(round(keep * 2**32), 2**32 - 1))
        return jnp.where(kept, x * (1 / keep), 0)
