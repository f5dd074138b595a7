"""Scaled dot-product attention (Vaswani et al., 2017)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m d"], heads: int = 1
) -> Float[Array, "b n d"]:
    """Returns softmax(q k^T / sqrt(c)) v for each head; the products with k and the softmax are float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values; the result has the type of their product with weights of the queries' type.
      heads: Number of equal parts that the channels of q, k and v are divided into, in their order; c and d are theirs.
    """
    if heads > 1:
        parts = _divided(q, heads), _divided(k, heads), _divided(v, heads)
        mixed = attention(*parts).reshape(q.shape[0], heads, q.shape[1], -1)
        return mixed.swapaxes(1, 2).reshape(*q.shape[:2], -1)
    logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bqk,bkc->bqc", weights, v)


def _divided(x: Float[Array, "b n c"], heads: int) -> Array:
    """Returns the heads as if they were images, (b * heads, n, c / heads)."""
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).swapaxes(1, 2).reshape(b * heads, n, c // heads)
