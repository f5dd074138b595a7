"""Layers of the U-Net: normalization, convolution, time embedding, residual and attention blocks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import standard_normal
from diffusion_jax.ops.attention import attention
from diffusion_jax.ops.convolution import conv, conv_of_doubled, matmul
from diffusion_jax.ops.norm import group_norm

Dtype = Any
# What a recomputed block may keep (`jax.checkpoint_policies`): results of the 3x3 convolutions, and of the attention's
# products. What is left, norms and swish, costs little to compute again.
SAVEABLE = CONV, ATTENTION = ("conv", "attention")


# Ho et al. initialize every kernel with variance 1 / fan_avg; the last layer of a residual path is zero,
# so that each block starts as the identity and the network's first output is 0.
def default_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws uniformly with variance 2 / (fan_in + fan_out), Glorot & Bengio (2010)."""
    *window, fan_in, fan_out = shape
    limit = math.sqrt(6 / ((fan_in + fan_out) * math.prod(window)))
    # Drawn flat: random bits of a shaped array take XLA's CPU backend five times as long to compile.
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


zero_init = nn.initializers.zeros


def time_embedding(t: Float[Array, " b"], channels: int) -> Float[Array, "b c"]:
    """Returns the sinusoidal embedding of t (Vaswani et al., 2017), as Ho et al. (2020) use it.

    Columns are sin(t f_i), then cos(t f_i), with f_i = 10000^(-i / (channels / 2 - 1)).

    Args:
      t: Times; any real number.
      channels: Even number of columns, at least 4.

    Raises:
      InputError: Another number of columns.
    """
    if channels < 4 or channels % 2:
        raise InputError(f"channels is {channels}; it must be even, and at least 4")
    half = channels // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


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
    """Group normalization (Wu & He, 2018), in float32.

    Attributes:
      groups: Number of equal groups; None: as `group_count` chooses.
      epsilon: Added to the variance.
      swish: Whether swish follows.
    """

    groups: int | None = None
    epsilon: float = 1e-6
    swish: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = group_count(channels, self.groups)
        return group_norm(x.astype(jnp.float32), scale, bias, groups, self.epsilon, self.swish)


class Dense(nn.Module):
    """Linear map of the last axis with a bias, computed in `dtype` from float32 parameters."""

    features: int
    kernel_init: nn.initializers.Initializer = default_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y: Array = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class ClassEmbedding(nn.Module):
    """Embedding of a class: rows drawn from N(0, 1), as in Dhariwal & Nichol (2021).

    Label `num_classes` stands for no class, as in classifier-free guidance (Ho & Salimans, 2022); its row is
    the last. Labels outside 0 to `num_classes` give NaN.
    """

    num_classes: int
    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, labels: Int[Array, " b"] | None) -> Float[Array, "b e"]:
        if labels is None:
            raise ValueError(f"a model of {self.num_classes} classes needs labels")
        rows = self.param("embedding", standard_normal, (self.num_classes + 1, self.features))
        found = rows.at[labels].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return found.astype(self.dtype)


class Conv(nn.Module):
    """3×3 convolution with a bias, computed in `dtype` from float32 parameters.

    Attributes:
      features: Channels of the output.
      stride: Step of both image axes.
      doubled: Whether the image is first upsampled twofold, by repeating its pixels.
      kernel_init: Initializer of the kernel.
      dtype: Type of the computation.
    """

    features: int
    stride: int = 1
    doubled: bool = False
    kernel_init: nn.initializers.Initializer = default_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        if self.doubled:
            y = conv_of_doubled(x, kernel)  # It sums the kernel's weights before rounding them.
        else:
            y = conv(x, kernel.astype(self.dtype), self.stride)
        y = checkpoint_name(y, CONV)
        return y + bias.astype(self.dtype)[None, None, None, :]


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
        keep, size = 1 - self.rate, math.prod(x.shape[1:])

        def mask(key: Array) -> Array:  # Drawn flat, as a shaped draw is slow on the CPU.
            return jax.random.bernoulli(jax.random.fold_in(key, place), keep, (size,))

        return jnp.where(jax.vmap(mask)(keys).reshape(x.shape), x / keep, 0)


class ResBlock(nn.Module):
    """Residual block of Ho et al. (2020): norm, swish, conv, + time, norm, swish, dropout, conv."""

    features: int
    dropout: float
    dtype: Dtype
    norm: Callable[..., nn.Module] = GroupNorm

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        emb: Float[Array, "b e"],
        dropout_keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w d"]:
        h = self.norm(swish=True, name="norm1")(x)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        shift = Dense(self.features, dtype=self.dtype, name="time_proj")(nn.swish(emb))
        h = self.norm(swish=True, name="norm2")(h + shift[:, None, None, :])
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = Conv(self.features, kernel_init=zero_init, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h


class SelfAttention(nn.Module):
    """Single-head self-attention over the pixels, with a residual connection."""

    dtype: Dtype
    norm: Callable[..., nn.Module] = GroupNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape

        def dense(name: str, init: nn.initializers.Initializer = default_init) -> Dense:
            return Dense(c, kernel_init=init, dtype=self.dtype, name=name)

        normed = self.norm(name="norm")(x).reshape(b, h * w, c)
        q, k, v = dense("query")(normed), dense("key")(normed), dense("value")(normed)
        attended = checkpoint_name(attention(q, k, v), ATTENTION)
        out = dense("out", zero_init)(attended)
        return x + out.reshape(b, h, w, c)


class Downsample(nn.Module):
    """Halves height and width with a strided convolution."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        return Conv(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbor, then a convolution."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        return Conv(x.shape[-1], doubled=True, dtype=self.dtype, name="conv")(x)
