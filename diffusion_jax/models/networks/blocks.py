"""Blocks of the U-Net: residual blocks, attention, and changes of resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from diffusion_jax.models.networks.layers import (
    Affine,
    Conv,
    Dense,
    Dropout,
    Dtype,
    GroupNorm,
    Linear,
    add_bias,
    affine,
    zero_init,
)
from diffusion_jax.ops.attention import attention
from diffusion_jax.ops.merged_attention import merged_attention
from diffusion_jax.ops.parts import Parts, joined, sizes_of
from diffusion_jax.ops.resample import blur, double, halve

Resize = Literal["halve", "double"]
ALL_SIDES = ((1, 1), (1, 1))
# Pixels of a batch per channel from which on `with_merged_maps` has less to do: on TPUs the products of kernels, in
# full float32, take six times as long as others.
PIXELS_WORTH_MERGING = 4


def resized(x: Float[Array, "b h w c"], resize: Resize, fir: Sequence[float | int]) -> Array:
    """Returns images halved or doubled; see `ops.resample`.

    Args:
      x: Images, NHWC.
      resize: "halve" or "double".
      fir: Taps of the filter; empty: none.
    """
    return halve(x, fir) if resize == "halve" else double(x, fir)


class ResBlock(nn.Module):
    """Residual block: norm, swish, conv, + time, norm, swish, dropout, conv (Ho et al., 2020).

    Attributes:
      features: Channels of the output.
      dropout: Rate before the second convolution, where dropout keys are given.
      dtype: Type of the computation.
      norm: Makes the norms.
      scale_shift: Whether the embedding scales and shifts the second norm's output (Nichol & Dhariwal, 2021), rather
        than being added before it.
      resize: Whether images are halved or doubled within (BigGAN; Brock et al., 2019), in both paths, before the
        first convolution; None: neither.
      fir: Taps of the filter with which that is done; empty: means, or repeated pixels.
      project: Whether the shortcut is a linear map even if the number of channels stays.
      rescale: Whether the sum is divided by sqrt(2) (Song et al., 2021).
    """

    features: int
    dropout: float
    dtype: Dtype
    norm: Callable[..., nn.Module] = GroupNorm
    scale_shift: bool = False
    resize: Resize | None = None
    fir: Sequence[float | int] = ()
    project: bool = False
    rescale: bool = False

    @nn.compact
    def __call__(
        self,
        x: Parts,
        emb: Float[Array, "b e"],
        dropout_keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b oh ow d"]:
        h = self.norm(swish=True, name="norm1")(x)
        # Repeating the pixels and the convolution after it are one operation.
        doubled = self.resize == "double" and not self.fir
        before = None if doubled else self.resize
        if before is not None:
            h = resized(joined(h), before, self.fir)
        conv1 = Conv(self.features, doubled=doubled, dtype=self.dtype, name="conv1")
        h = self._modulated(*conv1.without_bias(h), emb)
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = Conv(self.features, kernel_init=zero_init, dtype=self.dtype, name="conv2")(h)
        # The linear map of a pixel may precede its repetition: a quarter of the work.
        if before is not None:
            x = resized(joined(x), before, self.fir)
        if sum(sizes_of(x)) != self.features or self.project:
            x = Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        shortcut = resized(joined(x), "double", ()) if doubled else joined(x)
        return summed(shortcut.astype(self.dtype), h, self.rescale)

    def _modulated(
        self, h: Float[Array, "b h w d"], bias: Float[Array, " d"], emb: Float[Array, "b e"]
    ) -> Array:
        """Applies the bias, time and class, the second norm and swish."""
        width = self.features * (2 if self.scale_shift else 1)
        projected = Dense(width, dtype=self.dtype, name="time_proj")(nn.swish(emb))
        projected = projected.astype(jnp.float32)
        norm2 = self.norm(swish=True, name="norm2")
        if not self.scale_shift:
            return norm2(h, bias[None] + projected)
        scale, shift = jnp.split(projected, 2, axis=-1)
        return norm2(h, bias[None], (scale, shift))


class SelfAttention(nn.Module):
    """Self-attention over the pixels, with a residual connection.

    Attributes:
      dtype: Type of the computation.
      norm: Makes the norm.
      heads: Number of heads, a divisor of the channels: head i has the i-th of so many equal parts of them.
      rescale: Whether the sum is divided by sqrt(2).
    """

    dtype: Dtype
    norm: Callable[..., nn.Module] = GroupNorm
    heads: int = 1
    rescale: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = self.norm(name="norm")(x).reshape(b, h * w, c)
        query, key, value = (Affine(c, name=name)(c) for name in ("query", "key", "value"))
        out = Affine(c, zero_init, name="out")(c)
        if self.heads == 1 and _worth_merging(b * h * w, c):
            mixed = with_merged_maps(normed, query, key, value, out)
        else:
            q, k, v = (affine(normed, *of) for of in (query, key, value))
            mixed = affine(attention(q, k, v, self.heads), *out)
        return summed(x, mixed.reshape(b, h, w, c), self.rescale)


def _worth_merging(rows: int, channels: int) -> bool:
    """Whether products of two kernels cost less than those of the pixels with one, which they replace."""
    return isinstance(rows, int) and rows >= PIXELS_WORTH_MERGING * channels


def with_merged_maps(
    x: Float[Array, "b n c"], query: Linear, key: Linear, value: Linear, out: Linear
) -> Float[Array, "b n c"]:
    """Returns attention of one head, output map included, with two maps of the pixels in place of four.

    (x Wq + bq)(x Wk + bk)^T = (x Wq Wk^T + bq Wk^T) x^T + what is the same for all keys, to which the softmax is blind;
    and its rows add up to 1, so Wv and bv may follow it: softmax(..) x Wv Wo + bv Wo + bo.

    Args:
      x: Pixels.
      query: Kernel and bias of the map to queries.
      key: Those to keys.
      value: Those to values.
      out: Those from the mixed values.
    """
    (wq, bq), (wk, _), (wv, bv), (wo, bo) = query, key, value, out
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    scale = x.shape[-1] ** -0.5
    a, offset = product(wq, wk.T) * scale, product(wk, bq) * scale
    return add_bias(merged_attention(x, a, offset, product(wv, wo)), product(bv, wo) + bo)


class Downsample(nn.Module):
    """Halves height and width with a strided convolution, after a filter if there is one.

    Attributes:
      features: Channels of the output; None: those of the input.
      dtype: Type of the computation.
      fir: Taps of the filter; empty: none.
      symmetric: Whether zeros are put on all sides of the image, as torch's `padding=1` does, rather than below and on
        the right alone, as "SAME" of TensorFlow and JAX does. Without a filter.
    """

    dtype: Dtype
    features: int | None = None
    fir: Sequence[float | int] = ()
    symmetric: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow d"]:
        features = x.shape[-1] if self.features is None else self.features
        padding = "VALID" if self.fir else ALL_SIDES if self.symmetric else "SAME"
        x = blur(x, self.fir) if self.fir else x
        return Conv(features, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbor, or a filter, then a convolution.

    Attributes:
      dtype: Type of the computation.
      fir: Taps of the filter; empty: none.
    """

    dtype: Dtype
    fir: Sequence[float | int] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        if not self.fir:
            return Conv(x.shape[-1], doubled=True, dtype=self.dtype, name="conv")(x)
        # The filtered image goes on beyond its border, where the convolution sees it.
        around = double(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), self.fir)[:, 1:-1, 1:-1]
        return Conv(x.shape[-1], padding="VALID", dtype=self.dtype, name="conv")(around)


def summed(x: Array, y: Array, rescale: bool) -> Array:
    """Returns x + y, or (x + y) / sqrt(2).

    Args:
      x: Feature maps.
      y: Those of a residual path.
      rescale: Whether the sum is divided by sqrt(2).
    """
    return (x + y) * math.sqrt(0.5) if rescale else x + y
