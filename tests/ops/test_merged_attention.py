"""Merged attention against its definition, and the TPU's kernels, interpreted, against the products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.ops.merged_attention import _by_products, fits, merged_attention
from diffusion_jax.ops.tpu import attention as kernels
from diffusion_jax.parallel.sharding import make_mesh


def arrays(batch: int, pixels: int, channels: int, dtype: Any = jnp.float32) -> Any:
    """Returns x, a, offset and u with logits of size 1, and a gradient of the result."""
    rng = np.random.default_rng(0)
    shapes = (batch, pixels, channels), (channels, channels), (channels,), (channels, channels)
    x, a, offset, u = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    dy = jnp.asarray(rng.normal(size=x.shape), dtype)
    return (x.astype(dtype), a / channels, offset / 10, u / channels**0.5), dy


def definition(x: Any, a: Any, offset: Any, u: Any) -> Any:
    x = x.astype(jnp.float32)
    return jax.nn.softmax((x @ a + offset[None, None]) @ x.swapaxes(1, 2), axis=-1) @ x @ u


def test_it_is_the_definition_with_all_gradients():
    primals, dy = arrays(2, 12, 8)

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, *primals)
        return y, pullback(dy)

    found, expected = (jax.jit(lambda f=f: all_of(f))() for f in (merged_attention, definition))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [3, 4])
def test_the_kernels_are_the_definition_within_the_rounding_of_bfloat16(batch):
    primals, dy = arrays(batch, 64, 128, jnp.bfloat16)
    assert fits(primals[0])
    expected, pullback = jax.vjp(definition, *primals)
    value = kernels.forward(*primals, interpret=True)
    gradients = kernels.backward(primals[0], dy, *primals[1:], interpret=True)
    pairs = zip((value, *gradients), (expected, *pullback(dy.astype(jnp.float32))), strict=True)
    for a, b in pairs:
        a, b = (np.asarray(one, np.float64) for one in (a, b))
        # Four roundings to 8 bits in a row, each with an error of up to 2^-9.
        assert np.linalg.norm(a - b) < 4 * 2**-9 * np.linalg.norm(b)


def test_of_pixels_that_fit_all_modes_are_those_of_the_products():
    primals, dy = arrays(2, 16, 128, jnp.bfloat16)
    tangents = jax.tree.map(lambda p: jnp.ones_like(p) / 10, primals)

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, *primals)
        return y, pullback(dy), jax.jvp(function, primals, tangents)[1]

    found, expected = (jax.jit(lambda f=f: all_of(f))() for f in (merged_attention, _by_products))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)  # They are the same products here.

    def penalty(a: Any) -> Any:
        x, _, offset, u = primals
        gradient = jax.grad(lambda x: merged_attention(x, a, offset, u).astype(jnp.float32).sum())
        return jnp.square(gradient(x).astype(jnp.float32)).sum()

    assert np.isfinite(jax.jit(jax.grad(penalty))(primals[1])).all()  # Reverse over reverse.
    batched = jax.jit(jax.vmap(merged_attention, in_axes=(0, None, None, None)))
    x = jnp.stack([primals[0], primals[0][::-1]])
    np.testing.assert_array_equal(batched(x, *primals[1:])[1], batched(x, *primals[1:])[0][::-1])


def test_tpus_get_the_kernels_and_other_platforms_products():
    primals, _ = arrays(2, 16, 128, jnp.bfloat16)
    gradient = jax.grad(lambda *a: merged_attention(*a).astype(jnp.float32).sum(), (0, 1, 2, 3))
    whole, rows = PartitionSpec(), PartitionSpec("data")
    specs = rows, whole, whole, whole
    split = jax.shard_map(gradient, mesh=make_mesh(2), in_specs=specs, out_specs=specs)
    traced = jax.jit(split).trace(*primals)
    programs = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {name: "tpu_custom_call" in text for name, text in programs.items()} == {
        "cpu": False,
        "cuda": False,
        "tpu": True,
    }


@pytest.mark.parametrize(
    "pixels, channels, dtype",
    [
        (64, 128, jnp.float32),
        (64, 96, jnp.bfloat16),
        (49, 128, jnp.bfloat16),
        (1024, 128, jnp.bfloat16),
        (64, 640, jnp.bfloat16),
    ],
)
def test_what_the_kernels_do_not_take_goes_by_products(pixels, channels, dtype):
    assert not fits(jnp.zeros((1, pixels, channels), dtype))
