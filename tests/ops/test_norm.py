"""The norm's own derivatives against those that JAX derives of the definition, in all their compositions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from diffusion_jax.ops import norm
from diffusion_jax.ops.cpu import norm as cpu
from diffusion_jax.parallel.sharding import make_mesh

EPSILON = 1e-5
# (images, height, width, channels), groups, rows of scale and bias, and of shift
CASES = {
    "some images": ((3, 4, 5, 6), 2, 1, 3),
    "each image has its own scale": ((3, 4, 5, 6), 2, 3, 1),
    "a group a channel": ((1, 3, 3, 4), 4, 1, 1),
    "one group": ((2, 1, 7, 5), 1, 1, 2),
}


def group_norm(*primals: Any, groups: int, swish: bool) -> Any:
    x, scale, bias, shift = primals
    return norm.group_norm(x, scale, bias, groups, EPSILON, swish, shift)


def definition(primals: Any, groups: int, swish: bool) -> Any:
    """Returns what mean and variance of a group by their definition give."""
    x, scale, bias, shift = primals
    x = x + shift[:, None, None]
    grouped = x.reshape(*x.shape[:3], groups, -1)
    centered = grouped - grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(centered).mean((1, 2, 4), keepdims=True)
    z = (centered / jnp.sqrt(variance + EPSILON)).reshape(x.shape)
    z = z * scale[:, None, None] + bias[:, None, None]
    return z / (1 + jnp.exp(-z)) if swish else z


def arrays(shape: tuple[int, ...], rows: int = 1, shifts: int = 1) -> list[jax.Array]:
    """Returns x (not of mean 0), scale, bias and shift, and a tangent of each."""
    rng = np.random.default_rng(0)
    shapes = [shape, (rows, shape[3]), (rows, shape[3]), (shifts, shape[3])] * 2
    return [jnp.asarray(rng.normal(0.5, 1, s), jnp.float32) for s in shapes]


@pytest.fixture(params=[False, True], ids=["plain", "swish"])
def swish(request):
    return request.param


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_tangent_and_gradients_are_those_of_the_definition(
    monkeypatch, case, swish, in_chunks
):
    if in_chunks:
        monkeypatch.setattr(cpu, "ELEMENTS_AT_ONCE", 1)
    shape, groups, *rows = CASES[case]
    primals, tangents = arrays(shape, *rows)[:4], arrays(shape, *rows)[4:]

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, *primals)
        return y, jax.jvp(function, primals, tangents)[1], pullback(jnp.cos(3 * y))

    value = jax.jit(lambda: all_of(lambda *a: group_norm(*a, groups=groups, swish=swish)))()
    expected = jax.jit(lambda: all_of(lambda *a: definition(a, groups, swish)))()
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Other orders of summation.


def test_derivatives_of_second_order_are_finite_differences_in_both_modes(swish):
    x, *others = arrays((2, 2, 3, 4), 1, 2)[:4]
    function = jax.jit(lambda *a: jnp.sin(group_norm(*map(jnp.asarray, a), groups=2, swish=swish)))
    check_grads(function, (x / 2, *others), order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)


def test_linearised_it_is_its_tangent(swish):
    primals, tangents = arrays((2, 3, 4, 6))[:4], arrays((2, 3, 4, 6))[4:]
    function = partial(group_norm, groups=3, swish=swish)
    linear: Any = jax.linearize(function, *primals)[1]
    _, expected = jax.jvp(function, tuple(primals), tuple(tangents))
    np.testing.assert_allclose(linear(*tangents), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, None, None, None), (2, 0, None, 2), (None, 0, 1, 0)])
def test_a_mapped_axis_gives_the_gradients_of_a_loop(swish, axes):
    shapes = [list(s) for s in ((2, 3, 2, 4), (1, 4), (1, 4), (2, 4))]
    for shape, axis in zip(shapes, axes, strict=True):
        if axis is not None:
            shape.insert(axis, 3)
    rng = np.random.default_rng(0)
    primals = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def gradients(*primals: Any) -> Any:
        def total(*a: Any) -> Any:
            return jnp.sin(group_norm(*a, groups=2, swish=swish)).sum()

        return jax.grad(total, (0, 1, 2, 3))(*primals)

    value = jax.jit(jax.vmap(gradients, in_axes=axes))(*primals)
    for i in range(3):
        one = [a if k is None else a.take(i, k) for a, k in zip(primals, axes, strict=True)]
        for a, b in zip(value, gradients(*one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_gradients_are_those_of_the_whole_batch(check_vma, swish):
    x, scale, bias, shift = arrays((8, 2, 3, 4), 1, 8)[:4]

    def gradients(*primals: Any) -> Any:
        def total(x: Any, shift: Any, scale: Any, bias: Any) -> Any:
            return jnp.sin(group_norm(x, scale, bias, shift, groups=2, swish=swish)).sum()

        return jax.grad(total, (0, 1, 2, 3))(*primals)

    def inside(*primals: Any) -> Any:
        dx, d_shift, *others = gradients(*primals)
        return dx, d_shift, *(others if check_vma else jax.lax.psum(others, "data"))

    specs = PartitionSpec("data"), PartitionSpec("data"), PartitionSpec(), PartitionSpec()
    split = jax.shard_map(
        inside, mesh=make_mesh(), in_specs=specs, out_specs=specs, check_vma=check_vma
    )
    primals = x, shift, scale, bias
    for a, b in zip(jax.jit(split)(*primals), gradients(*primals), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Sums in another order.


def test_a_channel_that_is_constant_has_finite_derivatives(swish):
    primals = jnp.full((1, 2, 2, 2), 3.0), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2))
    y, pullback = jax.vjp(lambda *a: group_norm(*a, groups=2, swish=swish), *primals)
    assert all(np.isfinite(a).all() for a in (y, *pullback(jnp.ones_like(y))))


def test_bfloat16_images_are_read_and_written_so_and_computed_with_in_float32(swish):
    """Of the definition on the rounded images, results and gradients differ by their own rounding to 8 bits."""
    primals = arrays((2, 8, 8, 8), 1, 2)[:4]
    x, *others = primals[0].astype(jnp.bfloat16), *primals[1:]
    y, pullback = jax.vjp(lambda *a: group_norm(*a, groups=2, swish=swish), x, *others)
    exact = x.astype(jnp.float32), *others
    expected, exact_pullback = jax.vjp(lambda *a: definition(a, 2, swish), *exact)
    dy = jnp.cos(3 * expected).astype(jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
    pairs = zip(pullback(dy), exact_pullback(dy.astype(jnp.float32)), strict=True)
    for (a, b), kind in zip(pairs, ("bfloat16", "float32", "float32", "float32"), strict=True):
        assert a.dtype == kind
        # dz is rounded as well, before the sums over its group are taken off.
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2**-7 * scale)


def test_platforms_other_than_the_cpu_get_the_same_operations():
    """The mean of a group as a product, and a gradient that is not computed in parts, against the CPU's."""
    primals = arrays((3, 4, 5, 6), 3, 3)[:4]
    fixed = norm._fixed((primals[0],), *primals[1:], norm._Form(2, EPSILON, True))
    (product,), (reshaped,) = (
        f((fixed.own,), (), 2) for f in (norm._by_product, norm._by_reshaping)
    )
    np.testing.assert_allclose(product, reshaped, rtol=1e-6, atol=1e-7)
    dy = jnp.cos(primals[0])
    whole = norm._summed(norm._vjp_of_each)((dy,), fixed.arrays, norm._Form(2, EPSILON, True))
    _, pullback = jax.vjp(lambda *a: group_norm(*a, groups=2, swish=True), *primals)
    for a, b in zip(whole, pullback(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_images_in_parts_are_normalized_and_differentiated_as_those_side_by_side(swish):
    """Groups of three channels, of parts of four and eight: one group has channels of both."""
    primals, tangents = arrays((3, 4, 5, 12), 1, 3)[:4], arrays((3, 4, 5, 12), 1, 3)[4:]

    def in_parts(*primals: Any) -> Any:
        x, scale, bias, shift = primals
        parts = x[..., :4], x[..., 4:]
        ys = norm.group_norm(parts, scale, bias, 4, EPSILON, swish, shift)
        assert [y.shape[-1] for y in ys] == [4, 8]
        return jnp.concatenate(ys, axis=-1)

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, *primals)
        return y, jax.jvp(function, primals, tangents)[1], pullback(jnp.cos(3 * y))

    value = jax.jit(lambda: all_of(in_parts))()
    whole = jax.jit(lambda: all_of(partial(group_norm, groups=4, swish=swish)))()
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Other orders of summation.
