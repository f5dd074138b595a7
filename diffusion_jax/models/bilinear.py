"""Bilinear operations with gradients written by hand, differentiable in both modes any number of times.

`jax.custom_vjp` forbids forward mode, and `jax.custom_jvp` leaves the transposition of its tangents to
JAX. So these are operations of JAX like its own: df = f(da, b) + f(a, db), and the transposes of both
terms are further bilinear operations.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

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
      name: Of the operation, in printed programs.
      function: (a, b, options) -> f, linear in a and in b, which have as many axes and the type that f
        has; options are hashable.
      shape: (shape of a, shape of b, options) -> shape of f.
      to_first: (df, b, options) -> da, the transpose of a -> f.
      to_second: (a, df, options) -> db, the transpose of b -> f.
      by_rows: Whether row i of f depends on a's row i alone, for any number of rows.
      on_cpu: Computes the same where the platform is the CPU; None: `function` does.
    """
    operation = Primitive(name)

    @functools.partial(jax.jit, static_argnames="options")
    def run(a: Any, b: Any, *, options: Hashable) -> Array:
        return operation.bind(a, b, options=options)

    def lowered(compute: Product) -> Any:
        compiled = jax.jit(compute, static_argnums=2)  # Lowered once for all operations alike.
        return mlir.lower_fun(
            lambda a, b, *, options: compiled(a, b, options), multiple_results=False
        )

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

    operation.def_impl(run)
    operation.def_abstract_eval(result)
    ad.defbilinear(  # Whose arguments are as the caller gave them, maybe NumPy's.
        operation,
        lambda df, a, b, *, options: to_first(jnp.asarray(df), jnp.asarray(b), options),
        lambda df, a, b, *, options: to_second(jnp.asarray(a), jnp.asarray(df), options),
    )
    batching.primitive_batchers[operation] = batch
    mlir.register_lowering(operation, lowered(function))
    if on_cpu is not None:
        mlir.register_lowering(operation, lowered(on_cpu), platform="cpu")
    return apply


def varying_alike(*arrays: Array) -> list[Array]:
    """Marks arrays inside `jax.shard_map` as differing between devices if one of them does."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    missing = [frozenset().union(*axes) - own for own in axes]
    return [
        lax.pcast(array, tuple(sorted(names)), to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    ]
