"""Attention against its definition in float64, one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.ops.attention import attention


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
