"""JAX primitives from given functions, or others on the CPU and TPUs; `bilinear` and `linear` add derivatives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array


def implement(
    operation: Primitive,
    function: Callable[..., Any],
    on_cpu: Callable[..., Any] | None = None,
    on_tpu: Callable[..., Any] | None = None,
) -> None:
    """Registers the implementation of an operation, eager and compiled.

    Args:
      operation: It takes arrays, and the keyword `options`, which is hashable.
      function: (*arrays, options=...) -> one array, or several if the operation has `multiple_results`.
      on_cpu: Implementation on the CPU; None: `function`.
      on_tpu: Implementation on TPUs; None: `function`.
    """

    def run(*arrays: Any, options: Hashable) -> Any:
        return operation.bind(*arrays, options=options)

    def lowering(compute: Callable[..., Any]) -> Any:
        compiled = jax.jit(compute, static_argnames="options")  # Lowered once per shape.
        return mlir.lower_fun(
            lambda *arrays, options: compiled(*arrays, options=options),
            multiple_results=operation.multiple_results,
        )

    operation.def_impl(jax.jit(run, static_argnames="options"))
    mlir.register_lowering(operation, lowering(function))
    for platform, compute in (("cpu", on_cpu), ("tpu", on_tpu)):
        if compute is not None:
            mlir.register_lowering(operation, lowering(compute), platform=platform)


def varying_alike(*arrays: Array) -> list[Array]:
    """Marks arrays inside `jax.shard_map` as varying across devices if one of them does."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    missing = [frozenset().union(*axes) - own for own in axes]
    return [
        lax.pcast(array, tuple(sorted(names)), to="varying") if names else array
        for array, names in zip(arrays, missing, strict=True)
    ]
