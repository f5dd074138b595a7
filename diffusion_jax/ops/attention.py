"""Scaled dot-product attention (Vaswani et al., 2017)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m d"]
) -> Float[Array, "b n d"]:
    """Returns softmax(q k^T / sqrt(c)) v; the products with k and the softmax are float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values; the result has the type of their product with weights of the queries' type.
    """
    logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bqk,bkc->bqc", weights, v)
