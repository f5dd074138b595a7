"""Embeddings of times and classes."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.keys import standard_normal
from diffusion_jax.models.networks.layers import Dtype

TIME_EMBEDDINGS = ("ddpm", "adm", "fourier")
FOURIER_SCALE = 16.0  # Of NCSN++ in score_sde and in EDM.


def time_embedding(
    t: Float[Array, " b"], channels: int, *, endpoint: bool = True
) -> Float[Array, "b c"]:
    """Returns the sinusoidal embedding of t (Vaswani et al., 2017).

    Columns are sin(t f_i), then cos(t f_i), with f_i = 10000^(-i / (channels / 2 - 1)), as Ho et al. (2020) use it;
    without the endpoint f_i = 10000^(-i / (channels / 2)), as in improved- and guided-diffusion.

    Args:
      t: Times; any real number.
      channels: Even number of columns, at least 4.
      endpoint: Whether 1 / 10000 is among the frequencies.

    Raises:
      InputError: Another number of columns.
    """
    _check_columns(channels)
    half = channels // 2
    exponents = -math.log(10_000) / (half - endpoint) * jnp.arange(half, dtype=jnp.float32)
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(exponents)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class FourierEmbedding(nn.Module):
    """Random Fourier features of t (Tancik et al., 2020): sin(2 pi t f_i), then cos(2 pi t f_i).

    The frequencies are drawn from N(0, 16^2) and are not trained, but they are among the parameters: a checkpoint
    without them would be of no use.

    Attributes:
      channels: Even number of columns.
    """

    channels: int

    @nn.compact
    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b c"]:
        _check_columns(self.channels)
        drawn = self.param("frequencies", _frequencies, (self.channels // 2,))
        frequencies = jax.lax.stop_gradient(drawn)
        # In this order the roundings of large angles are those of score_sde.
        angles = t.astype(jnp.float32)[:, None] * frequencies[None, :] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def _frequencies(key: Array, shape: tuple[int, ...]) -> Array:
    return FOURIER_SCALE * standard_normal(key, shape)


def _check_columns(channels: int) -> None:
    if channels < 4 or channels % 2:
        raise InputError(f"channels is {channels}; it must be even, and at least 4")


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
