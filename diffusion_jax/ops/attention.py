"""Scaled dot-product attention (Vaswani et al., 2017), with a gradient that keeps its weights and its output alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from diffusion_jax.ops.linear import Arrays, linear_map

RESULT = "attention"  # Name of its result for `jax.checkpoint_policies.save_only_these_names`.


def attention(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m d"],
    heads: int = 1,
    scale: float | None = None,
) -> Float[Array, "b n d"]:
    """Returns softmax(scale q k^T) v for each head; the products with k and the softmax are float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values, of the queries' type, which the result has too.
      heads: Number of equal parts that the channels of q, k and v are divided into, in their order; c and d are theirs.
      scale: Factor of the products; None: 1 / sqrt(c).
    """
    if heads > 1:
        parts = _divided(q, heads), _divided(k, heads), _divided(v, heads)
        mixed = attention(*parts, scale=scale).reshape(q.shape[0], heads, q.shape[1], -1)
        return mixed.swapaxes(1, 2).reshape(*q.shape[:2], -1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _attention(q, k, v, scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _attention(q: Array, k: Array, v: Array, scale: float) -> Array:
    return _with_weights(q, k, v, scale)[0]


def _with_weights(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * scale, axis=-1).astype(q.dtype)
    return checkpoint_name(jnp.einsum("bqk,bkc->bqc", weights, v), RESULT), weights


def _divided(x: Float[Array, "b n c"], heads: int) -> Array:
    """Returns the heads as if they were images, (b * heads, n, c / heads)."""
    b, n, c = x.shape
    return x.reshape(b, n, heads, c // heads).swapaxes(1, 2).reshape(b * heads, n, c // heads)


@_attention.defjvp
def _(scale: float, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    q, k, v = primals
    output, weights = _with_weights(q, k, v, scale)
    (tangent,) = _tangent(tangents, (q, k, v, weights, output), scale)
    return output, tangent


def _jvp(tangents: Arrays, fixed: Arrays, scale: float) -> Arrays:
    """d out = W (dl - sum W dl) v + W dv, with dl = scale (dq k^T + q dk^T)."""
    (dq, dk, dv), (q, k, v, weights, output) = tangents, fixed
    logits = jnp.einsum("bqc,bkc->bqk", dq, k, preferred_element_type=jnp.float32)
    logits += jnp.einsum("bqc,bkc->bqk", q, dk, preferred_element_type=jnp.float32)
    moved = (weights * logits * scale).astype(q.dtype)
    along = moved.astype(jnp.float32).sum(-1, keepdims=True)
    of_values = jnp.einsum("bqk,bkc->bqc", moved, v) + jnp.einsum("bqk,bkc->bqc", weights, dv)
    return ((of_values - along * output).astype(output.dtype),)


def _vjp(cotangents: Arrays, fixed: Arrays, scale: float) -> Arrays:
    """dl = W (d out v^T - sum d out out), a sum over channels in place of one over keys."""
    (d_out,), (q, k, v, weights, output) = cotangents, fixed
    along = (d_out.astype(jnp.float32) * output).sum(-1, keepdims=True)
    d_weights = jnp.einsum("bqc,bkc->bqk", d_out, v, preferred_element_type=jnp.float32)
    d_logits = (weights * (d_weights - along) * scale).astype(q.dtype)
    dq = jnp.einsum("bqk,bkc->bqc", d_logits, k)
    dk = jnp.einsum("bqk,bqc->bkc", d_logits, q)
    return dq, dk, jnp.einsum("bqk,bqc->bkc", weights, d_out)


_tangent = linear_map("attention_tangent", _jvp, _vjp)
