"""Bilinear operations with gradients written by hand, differentiable in both modes any number of times.

`jax.custom_vjp` forbids forward mode, and `jax.custom_jvp` leaves the transposition of its tangents to
JAX. So these are JAX primitives: df = f(da, b) + f(a, db), and the transposes of both
terms are further bilinear operations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from diffusion_jax.ops.operation import implement, varying_alike

Product = Callable[[Array, Array, Any], Array]


def bilinear(
    name: str,
    function: Product,
    shape: Callable[[tuple[int, ...], tuple[int, ...], Any], tuple[int, ...]],
    to_first: Product,
    to_second: Product,
    *,
    by_rows: bool,
    on_cpu: Product | None = None,
) -> Product:
    """Returns `function` as an operation with these transposes.

    Args:
      name: Name of the operation in printed programs.
      function: (a, b, options) -> f, linear in a and in b, which have the rank and the type of f;
        options are hashable.
      shape: (shape of a, shape of b, options) -> shape of f.
      to_first: (df, b, options) -> da, the transpose of a -> f.
      to_second: (a, df, options) -> db, the transpose of b -> f.
      by_rows: Whether row i of f depends on a's row i alone, for any number of rows.
      on_cpu: Implementation on the CPU; None: `function`.
    """
    operation = Primitive(name)

    def result(a: Any, b: Any, *, options: Hashable) -> Any:
        return a.update(shape=shape(a.shape, b.shape, options), weak_type=False)

    def apply(a: Array, b: Array, options: Any) -> Array:
        return operation.bind(*varying_alike(a, b), options=options)

    def batch(arrays: Any, axes: Any, *, options: Hashable) -> tuple[Array, int]:
        a, b = arrays
        if by_rows and axes[1] is None:
            a = jnp.moveaxis(a, axes[0], 0)
            f = apply(a.reshape(-1, *a.shape[2:]), b, options)
            return f.reshape(*a.shape[:2], *f.shape[1:]), 0
        return jax.vmap(lambda a, b: function(a, b, options), in_axes=axes)(a, b), 0

    operation.def_abstract_eval(result)
    ad.defbilinear(  # Its arguments are as the caller passed them, possibly NumPy's.
        operation,
        lambda df, a, b, *, options: to_first(jnp.asarray(df), jnp.asarray(b), options),
        lambda df, a, b, *, options: to_second(jnp.asarray(a), jnp.asarray(df), options),
    )
    batching.primitive_batchers[operation] = batch
    implement(operation, _by_name(function), on_cpu and _by_name(on_cpu))
    return apply


def _by_name(function: Product) -> Callable[..., Array]:
    return lambda a, b, *, options: function(a, b, options)
