"""Attention of one head over the pixels of small images as two Pallas kernels, which never store its weights.

A grid step has some images in the vector memory: both products with the pixels, the softmax between them and the maps
before and after. The backward kernel computes all of it again, and adds up the gradients of the maps over the grid.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from diffusion_jax.ops.linear import Arrays

_LOGITS = (
    2**20
)  # Bytes of float32 logits of a grid step, of which the backward kernel has a few arrays.
_IMAGES = 8  # Of a grid step, whose work is written out.


def forward(x: Array, a: Array, offset: Array, u: Array, *, interpret: bool = False) -> Array:
    """Returns softmax((x a + offset) x^T) x u.

    Args:
      x: Pixels, (b, n, c), bfloat16.
      a: Matrix of the products, (c, c), float32; rounded to bfloat16.
      offset: Added to the first product, (c,), float32.
      u: Matrix of the result, (c, c), float32; rounded likewise.
      interpret: Whether the kernel is interpreted, on any platform.
    """
    (b, n, c), grid, images, matrix, row = x.shape, *_blocks(x)
    product = 2 * b * n * c * c
    return pl.pallas_call(
        _forward_kernel,
        grid=grid,
        in_specs=[images, matrix, row, matrix],
        out_specs=images,
        out_shape=_like(x, x.shape, x.dtype),
        cost_estimate=pl.CostEstimate(
            flops=2 * product + 4 * b * n * n * c,
            bytes_accessed=2 * x.nbytes + 4 * c * c,
            transcendentals=b * n * n,
        ),
        interpret=interpret,
        compiler_params=_order("parallel"),
    )(x, a.astype(x.dtype), offset[None], u.astype(x.dtype))


def backward(
    x: Array, d_out: Array, a: Array, offset: Array, u: Array, *, interpret: bool = False
) -> Arrays:
    """Returns the gradients of x, a, offset and u.

    Args:
      x: Pixels, (b, n, c), bfloat16.
      d_out: Gradient of `forward`'s result.
      a: As in `forward`.
      offset: As in `forward`.
      u: As in `forward`.
      interpret: Whether the kernel is interpreted, on any platform.
    """
    (b, n, c), grid, images, matrix, row = x.shape, *_blocks(x)
    product = 2 * b * n * c * c
    dx, da, d_offset, du = pl.pallas_call(
        _backward_kernel,
        grid=grid,
        in_specs=[images, images, matrix, row, matrix],
        out_specs=[images, matrix, row, matrix],
        out_shape=[
            _like(x, x.shape, x.dtype),
            _like(x, (c, c)),
            _like(x, (1, c)),
            _like(x, (c, c)),
        ],
        cost_estimate=pl.CostEstimate(
            flops=5 * product + 12 * b * n * n * c,
            bytes_accessed=3 * x.nbytes + 12 * c * c,
            transcendentals=b * n * n,
        ),
        interpret=interpret,
        compiler_params=_order("arbitrary"),
    )(x, d_out, a.astype(x.dtype), offset[None], u.astype(x.dtype))
    return dx, da, d_offset[0], du


def _blocks(x: Array) -> tuple[tuple[int], pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Returns the grid, and the blocks of images, of a matrix of the channels and of a row of it."""
    b, n, c = x.shape
    most = max(1, min(_IMAGES, _LOGITS // (4 * n * n)))
    count = next(k for k in range(most, 0, -1) if b % k == 0)
    images = pl.BlockSpec((count, n, c), lambda i: (i, 0, 0))
    matrix = pl.BlockSpec((c, c), lambda i: (0, 0))
    return (b // count,), images, matrix, pl.BlockSpec((1, c), lambda i: (0, 0))


def _like(x: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Describes a result that varies across the devices of `jax.shard_map` as x does."""
    varying = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def _order(kind: Any) -> pltpu.CompilerParams:
    """Says whether grid steps may run in any order, or one after the other."""
    return pltpu.CompilerParams(dimension_semantics=(kind,))


def _dot(a: Array, b: Array, axis_of_a: int, axis_of_b: int) -> Array:
    axes = (((axis_of_a,), (axis_of_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _queries_and_weights(x: Array, a: Array, offset: Array) -> tuple[Array, Array]:
    queries = (_dot(x, a, 1, 0) + offset).astype(x.dtype)
    logits = _dot(queries, x, 1, 1)
    exponentials = jnp.exp(logits - logits.max(-1, keepdims=True))
    return queries, (exponentials / exponentials.sum(-1, keepdims=True)).astype(x.dtype)


def _forward_kernel(x_ref, a_ref, offset_ref, u_ref, out_ref) -> None:
    for image in range(x_ref.shape[0]):
        x = x_ref[image]
        _, weights = _queries_and_weights(x, a_ref[...], offset_ref[...])
        mixed = _dot(weights, x, 1, 0).astype(x.dtype)
        out_ref[image] = _dot(mixed, u_ref[...], 1, 0).astype(x.dtype)


def _backward_kernel(
    x_ref, d_out_ref, a_ref, offset_ref, u_ref, dx_ref, da_ref, d_offset_ref, du_ref
) -> None:
    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        for ref in (da_ref, d_offset_ref, du_ref):
            ref[...] = jnp.zeros_like(ref)

    a, offset, u = a_ref[...], offset_ref[...], u_ref[...]
    for image in range(x_ref.shape[0]):
        x, d_out = x_ref[image], d_out_ref[image]
        queries, weights = _queries_and_weights(x, a, offset)
        mixed, d_mixed = _dot(weights, x, 1, 0), _dot(d_out, u, 1, 1)
        du_ref[...] += _dot(mixed.astype(x.dtype), d_out, 0, 0)
        along = (d_mixed * mixed).sum(-1, keepdims=True)
        d_mixed = d_mixed.astype(x.dtype)
        d_weights = _dot(d_mixed, x, 1, 1)
        d_logits = (weights.astype(jnp.float32) * (d_weights - along)).astype(x.dtype)
        d_queries = _dot(d_logits, x, 1, 0)
        d_offset_ref[...] += d_queries.sum(0, keepdims=True)
        d_queries = d_queries.astype(x.dtype)
        da_ref[...] += _dot(x, d_queries, 0, 0)
        dx = _dot(d_logits, queries, 0, 0) + _dot(weights, d_mixed, 0, 0)
        dx_ref[image] = (dx + _dot(d_queries, a, 1, 1)).astype(x.dtype)
