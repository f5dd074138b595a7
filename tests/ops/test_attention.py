"""Attention against its definition in float64, one query at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from diffusion_jax.ops import attention as module

attention: Any = module.attention  # Its type does not know of unpacked arguments.


def test_attention_is_the_mean_of_values_weighted_by_the_softmax_of_scaled_products(rng):
    q, k, v = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 6))
    expected = np.zeros((2, 3, 6))
    for b, i in np.ndindex(2, 3):
        weights = np.exp(k[b] @ q[b, i] / 2)  # The square root of 4 channels.
        expected[b, i] = weights @ v[b] / weights.sum()
    found = jax.jit(attention)(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_of_bfloat16_has_weights_from_float32_products():
    # In bfloat16 both products would round to 512, and the weights be alike.
    q = jnp.asarray([[[16.0, 1.0]]], jnp.bfloat16)
    k = jnp.asarray([[[32.0, 0.0], [32.0, 1.0]]], jnp.bfloat16)
    v = jnp.asarray([[[0.0], [1.0]]], jnp.bfloat16)
    found = attention(q, k, v)
    assert found.dtype == jnp.bfloat16
    expected = 1 / (1 + np.exp(-(0.5**0.5)))
    np.testing.assert_allclose(float(found[0, 0, 0]), expected, rtol=2**-8)


def definition(*primals: Any, heads: int, scale: float) -> Any:
    """Softmax and products by JAX's own derivatives."""
    split = (a.reshape(*a.shape[:2], heads, -1) for a in primals)
    q, k, v = (jnp.moveaxis(a, 2, 1) for a in split)
    weights = jax.nn.softmax(scale * q @ k.swapaxes(2, 3), axis=-1)
    mixed = jnp.moveaxis(weights @ v, 1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)


@pytest.mark.parametrize("heads", [1, 2])
def test_tangents_and_gradients_are_those_that_jax_derives_of_the_definition(rng, heads):
    shapes = [(2, 5, 4), (2, 7, 4), (2, 7, 6)] * 2
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    primals, tangents = arrays[:3], arrays[3:]

    def all_of(function):
        y, pullback = jax.vjp(function, *primals)
        return y, jax.jvp(function, primals, tangents)[1], pullback(jnp.cos(3 * y))

    ours = jax.jit(lambda: all_of(lambda *a: attention(*a, heads, scale=0.7)))()
    expected = jax.jit(lambda: all_of(lambda *a: definition(*a, heads=heads, scale=0.7)))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)  # Other orders of summation.


def test_second_derivatives_are_finite_differences_in_both_modes(rng):
    shapes = [(1, 3, 2), (1, 4, 2), (1, 4, 3)]
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    function = jax.jit(lambda *a: jnp.sin(attention(*map(jnp.asarray, a), scale=1.3)))
    check_grads(function, arrays, order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)


def test_gradients_mapped_over_an_axis_are_those_of_a_loop(rng):
    q, k, v = (jnp.asarray(rng.normal(size=(3, 2, 4, 2)), jnp.float32) for _ in range(3))

    def gradients(q, k, v):
        return jax.grad(lambda *a: jnp.sin(attention(*a)).sum(), (0, 1, 2))(q, k, v)

    mapped = jax.jit(jax.vmap(gradients))(q, k, v)
    for i in range(3):
        for a, b in zip(mapped, gradients(q[i], k[i], v[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_gradients_of_bfloat16_are_close_to_those_of_float32(rng):
    exact = [jnp.asarray(rng.normal(size=(2, 16, 8)), jnp.bfloat16) for _ in range(3)]

    def gradients(dtype):
        arrays = [a.astype(dtype) for a in exact]
        loss = lambda *a: jnp.sin(attention(*a).astype(jnp.float32)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)

    for a, b in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert a.dtype == jnp.bfloat16
        # Weights, their gradients and the result are rounded to 8 bits, each by up to 2^-9.
        difference = np.linalg.norm(a.astype(jnp.float32) - b) / np.linalg.norm(b)
        assert difference < 2**-6
