"""Linear operations given together with their transposes, differentiable in both modes any number of times.

Like `bilinear`, for several inputs and outputs: f(v, *fixed) is linear in the arrays v and any function of
the arrays `fixed`. df = f(dv, fixed) + (the derivative by `fixed` that JAX derives).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from diffusion_jax.ops.operation import implement, varying_alike

Arrays = tuple[Array, ...]
Map = Callable[[Arrays, Arrays, Any], Arrays]  # (v, fixed, options) -> outputs


def linear_map(
    name: str,
    function: Map,
    transpose: Map,
    *,
    on_cpu: Map | None = None,
    transpose_on_cpu: Map | None = None,
    transpose_on_tpu: Map | None = None,
) -> Map:
    """Returns `function` as an operation with this transpose, which is such an operation too.

    Args:
      name: Name of the operation in printed programs.
      function: (v, fixed, options) -> u, linear in the tuple v; options are hashable.
      transpose: (u, fixed, options) -> v, its transpose.
      on_cpu: Implementation on the CPU; None: `function`.
      transpose_on_cpu: That of the transpose; None: `transpose`.
      transpose_on_tpu: That of the transpose on TPUs; None: `transpose`.
    """
    first, second = Primitive(name), Primitive(f"{name}_transposed")
    apply = _define(first, function, on_cpu, None)
    apply_transposed = _define(second, transpose, transpose_on_cpu, transpose_on_tpu)
    ad.primitive_transposes[first] = _transposition(apply_transposed)
    ad.primitive_transposes[second] = _transposition(apply)
    return apply


def _define(operation: Primitive, function: Map, on_cpu: Map | None, on_tpu: Map | None) -> Map:
    operation.multiple_results = True

    def apply(v: Arrays, fixed: Arrays, options: Any) -> Arrays:
        arrays = varying_alike(*v, *fixed)
        return tuple(operation.bind(*arrays, options=(len(v), options)))

    def flat(compute: Map) -> Callable[..., Arrays]:
        def computed(*arrays: Array, options: tuple[int, Any]) -> Arrays:
            count, rest = options
            return compute(arrays[:count], arrays[count:], rest)

        return computed

    plain = flat(function)

    @functools.cache  # Tracing takes a hundred times as long as the look-up.
    def shapes(structs: tuple[jax.ShapeDtypeStruct, ...], options: Hashable) -> Any:
        return jax.eval_shape(functools.partial(plain, options=options), *structs)

    def result(*arrays: Any, options: Hashable) -> list[Any]:
        results = shapes(tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays), options)
        return [arrays[0].update(shape=s.shape, dtype=s.dtype, weak_type=False) for s in results]

    def batch(arrays: Any, axes: Any, *, options: Any) -> tuple[Any, Any]:
        outputs = jax.vmap(functools.partial(plain, options=options), in_axes=axes)(*arrays)
        return outputs, (0,) * len(outputs)

    operation.def_abstract_eval(result)
    ad.primitive_jvps[operation] = _derivative(function, apply)
    batching.primitive_batchers[operation] = batch
    implement(operation, plain, on_cpu and flat(on_cpu), on_tpu and flat(on_tpu))
    return apply


def _derivative(function: Map, apply: Map) -> Callable[..., tuple[Any, Any]]:
    def rule(primals: Any, tangents: Any, *, options: tuple[int, Any]) -> tuple[Any, Any]:
        count, rest = options
        v, fixed = tuple(primals[:count]), tuple(primals[count:])
        tangents = [
            jnp.zeros_like(p) if type(t) is ad.Zero else t
            for p, t in zip(primals, tangents, strict=True)
        ]
        dv, d_fixed = tuple(tangents[:count]), tuple(tangents[count:])
        _, by_fixed = jax.jvp(lambda *fixed: function(v, fixed, rest), fixed, d_fixed)
        return apply(v, fixed, rest), tuple(map(jnp.add, apply(dv, fixed, rest), by_fixed))

    return rule


def _transposition(apply: Map) -> Callable[..., list[Any]]:
    def rule(cotangents: Any, *arrays: Any, options: tuple[int, Any]) -> list[Any]:
        count, rest = options
        # The arguments are as the caller passed them, possibly NumPy's.
        cotangents = tuple(jnp.asarray(ad.instantiate_zeros(c)) for c in cotangents)
        gradients = apply(cotangents, tuple(map(jnp.asarray, arrays[count:])), rest)
        # A known tangent is zero: nothing asks for its gradient.
        wanted = [ad.is_undefined_primal(a) for a in arrays[:count]]
        found = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
        return [*found, *[None] * (len(arrays) - count)]

    return rule
