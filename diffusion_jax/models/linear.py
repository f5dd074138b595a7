"""Linear operations given together with their transposes, differentiable in both modes any number of times.

Like `bilinear`, for several inputs and outputs: f(v, *fixed) is linear in the arrays v and any function of
the arrays `fixed`. df = f(dv, fixed) + (the derivative by `fixed` that JAX derives).
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from diffusion_jax.models.bilinear import varying_alike

Arrays = tuple[Array, ...]
Map = Callable[[Arrays, Arrays, Any], Arrays]  # (v, fixed, options) -> outputs


def linear_map(
    name: str, function: Map, transpose: Map, *, transpose_on_cpu: Map | None = None
) -> Map:
    """Returns `function` as an operation with this transpose, which is one too.

    Args:
      name: Of the operation, in printed programs.
      function: (v, fixed, options) -> u, linear in the tuple v; options are hashable.
      transpose: (u, fixed, options) -> v, its transpose.
      transpose_on_cpu: Computes the same where the platform is the CPU; None: `transpose` does.
    """
    first, second = Primitive(name), Primitive(f"{name}_transposed")
    apply = _define(first, function, None)
    apply_transposed = _define(second, transpose, transpose_on_cpu)
    ad.primitive_transposes[first] = _transposition(apply_transposed)
    ad.primitive_transposes[second] = _transposition(apply)
    return apply


def _define(operation: Primitive, function: Map, on_cpu: Map | None) -> Map:
    operation.multiple_results = True

    def apply(v: Arrays, fixed: Arrays, options: Any) -> Arrays:
        arrays = varying_alike(*v, *fixed)
        return tuple(operation.bind(*arrays, count=len(v), options=options))

    def plain(*arrays: Array, count: int, options: Any, compute: Map = function) -> Arrays:
        return compute(arrays[:count], arrays[count:], options)

    @functools.partial(jax.jit, static_argnames=("count", "options"))
    def run(*arrays: Any, count: int, options: Hashable) -> Arrays:
        return tuple(operation.bind(*arrays, count=count, options=options))

    @functools.cache  # Tracing takes a hundred times as long as the look-up.
    def shapes(structs: tuple[jax.ShapeDtypeStruct, ...], count: int, options: Hashable) -> Any:
        return jax.eval_shape(functools.partial(plain, count=count, options=options), *structs)

    def result(*arrays: Any, count: int, options: Hashable) -> list[Any]:
        structs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)
        results = shapes(structs, count, options)
        return [arrays[0].update(shape=s.shape, dtype=s.dtype, weak_type=False) for s in results]

    def derivative(primals: Any, tangents: Any, *, count: int, options: Any) -> tuple[Any, Any]:
        fixed = primals[count:]
        tangents = [
            jnp.zeros_like(p) if type(t) is ad.Zero else t
            for p, t in zip(primals, tangents, strict=True)
        ]
        _, by_fixed = jax.jvp(
            lambda *fixed: plain(*primals[:count], *fixed, count=count, options=options),
            fixed,
            tuple(tangents[count:]),
        )
        linear = apply(tuple(tangents[:count]), fixed, options)
        outputs = apply(tuple(primals[:count]), fixed, options)
        return outputs, tuple(map(jnp.add, linear, by_fixed))

    def batch(arrays: Any, axes: Any, *, count: int, options: Any) -> tuple[Any, Any]:
        mapped = jax.vmap(functools.partial(plain, count=count, options=options), in_axes=axes)
        outputs = mapped(*arrays)
        return outputs, (0,) * len(outputs)

    def lowered(compute: Map) -> Any:
        jitted = jax.jit(
            functools.partial(plain, compute=compute), static_argnames=("count", "options")
        )
        return mlir.lower_fun(
            lambda *arrays, **options: jitted(*arrays, **options), multiple_results=True
        )

    operation.def_impl(run)
    operation.def_abstract_eval(result)
    ad.primitive_jvps[operation] = derivative
    batching.primitive_batchers[operation] = batch
    mlir.register_lowering(operation, lowered(function))
    if on_cpu is not None:
        mlir.register_lowering(operation, lowered(on_cpu), platform="cpu")
    return apply


def _transposition(apply: Map) -> Callable[..., list[Any]]:
    def rule(cotangents: Any, *arrays: Any, count: int, options: Any) -> list[Any]:
        # The arguments are as the caller gave them, maybe NumPy's.
        cotangents = tuple(jnp.asarray(ad.instantiate_zeros(c)) for c in cotangents)
        gradients = apply(cotangents, tuple(map(jnp.asarray, arrays[count:])), options)
        # A tangent that is known is one of zeros: nothing asks for its gradient.
        wanted = [ad.is_undefined_primal(a) for a in arrays[:count]]
        found = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
        return [*found, *[None] * (len(arrays) - count)]

    return rule
