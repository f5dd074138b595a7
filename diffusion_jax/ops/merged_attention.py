"""Attention of one head over pixels, with the maps before and after it: two matrices in place of four.

On TPUs it is two Pallas kernels where they fit (`tpu.attention`), and products and `attention` elsewhere. The kernels
keep nothing for the gradient but their inputs, so of pixels that fit no platform does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching
from jaxtyping import Array, Float

from diffusion_jax.ops.attention import attention
from diffusion_jax.ops.convolution import matmul
from diffusion_jax.ops.linear import Arrays, linear_map
from diffusion_jax.ops.operation import implement, varying_alike

# Tiles of bfloat16 in the vector memory, of which the kernels' blocks are whole numbers; and pixels of an image whose
# logits, weights and their gradients fit there, with channels whose matrices and gradients do. By libtpu's compiler for
# v5e, 512 x 512 fits, and 256 x 768 does not.
ROWS, LANES, MOST_PIXELS, MOST_CHANNELS = 16, 128, 512, 512


def merged_attention(
    x: Float[Array, "b n c"],
    a: Float[Array, "c c"],
    offset: Float[Array, " c"],
    u: Float[Array, "c c"],
) -> Float[Array, "b n c"]:
    """Returns softmax((x a + offset) x^T) x u, in the type of x.

    Args:
      x: Pixels.
      a: Matrix of the products, float32.
      offset: Added to the first product, float32.
      u: Matrix of the result, float32.
    """
    return _operation(x, a, offset, u) if fits(x) else _by_products(x, a, offset, u)


def fits(x: Float[Array, "b n c"]) -> bool:
    """Whether the kernels take pixels of this shape and type.

    Args:
      x: Pixels.
    """
    pixels, channels = x.shape[1:]
    whole = pixels % ROWS == 0 and channels % LANES == 0
    small = pixels <= MOST_PIXELS and channels <= MOST_CHANNELS
    return x.dtype == jnp.bfloat16 and whole and small


def _by_products(x: Array, a: Array, offset: Array, u: Array) -> Array:
    q = matmul(x, a.astype(x.dtype)).astype(jnp.float32) + offset[None, None]
    return matmul(attention(q.astype(x.dtype), x, x, scale=1.0), u.astype(x.dtype))


@jax.custom_jvp
def _operation(x: Array, a: Array, offset: Array, u: Array) -> Array:
    return _primitive.bind(*varying_alike(x, a, offset, u), options=None)


@_operation.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    (tangent,) = _tangent(tangents, primals, None)
    return _operation(*primals), tangent


def _jvp(tangents: Arrays, primals: Arrays, _: None) -> Arrays:
    return (jax.jvp(_by_products, primals, tangents)[1],)


def _vjp(cotangents: Arrays, primals: Arrays, _: None) -> Arrays:
    return jax.vjp(_by_products, *primals)[1](cotangents[0])


def _batch(arrays: Any, axes: Any, *, options: None) -> tuple[Array, int]:
    return jax.vmap(_by_products, in_axes=axes)(*arrays), 0


def _kernels() -> Any:
    from diffusion_jax.ops.tpu import attention  # Pallas takes long to import.

    return attention


_primitive = Primitive("merged_attention")
_primitive.def_abstract_eval(lambda x, *_, options: x.update(weak_type=False))
batching.primitive_batchers[_primitive] = _batch
implement(
    _primitive,
    lambda *arrays, options: _by_products(*arrays),
    on_tpu=lambda *arrays, options: _kernels().forward(*arrays),
)
_tangent = linear_map(
    "merged_attention_tangent",
    _jvp,
    _vjp,
    transpose_on_tpu=lambda dy, primals, _: _kernels().backward(primals[0], dy[0], *primals[1:]),
)
