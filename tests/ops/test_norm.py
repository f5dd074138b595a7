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
group_norm: Any = norm.group_norm  # Its type does not know of unpacked arguments.
# (images, height, width, channels), groups
CASES = {
    "some images": ((3, 4, 5, 6), 2),
    "a group a channel": ((1, 3, 3, 4), 4),
    "one group": ((2, 1, 7, 5), 1),
}


def definition(primals: Any, groups: int, swish: bool) -> Any:
    """Returns what mean and variance of a group by their definition give."""
    x, scale, bias = primals
    grouped = x.reshape(*x.shape[:3], groups, -1)
    centered = grouped - grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(centered).mean((1, 2, 4), keepdims=True)
    z = (centered / jnp.sqrt(variance + EPSILON)).reshape(x.shape)
    z = z * scale[None, None, None] + bias[None, None, None]
    return z / (1 + jnp.exp(-z)) if swish else z


def arrays(shape: tuple[int, ...]) -> list[jax.Array]:
    """Returns x (not of mean 0), scale and bias, and a tangent of each."""
    rng = np.random.default_rng(0)
    shapes = [shape, shape[3:], shape[3:]] * 2
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
    shape, groups = CASES[case]
    primals, tangents = arrays(shape)[:3], arrays(shape)[3:]

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, *primals)
        return y, jax.jvp(function, primals, tangents)[1], pullback(jnp.cos(3 * y))

    value = jax.jit(lambda: all_of(lambda *a: group_norm(*a, groups, EPSILON, swish)))()
    expected = jax.jit(lambda: all_of(lambda *a: definition(a, groups, swish)))()
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Other orders of summation.


def test_derivatives_of_second_order_are_finite_differences_in_both_modes(swish):
    x, scale, bias = arrays((2, 2, 3, 4))[:3]
    function = jax.jit(lambda *a: jnp.sin(group_norm(*map(jnp.asarray, a), 2, EPSILON, swish)))
    check_grads(function, (x / 2, scale, bias), order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)


def test_linearised_it_is_its_tangent(swish):
    *primals, dx, d_scale, d_bias = arrays((2, 3, 4, 6))
    function = partial(group_norm, groups=3, epsilon=EPSILON, swish=swish)
    linear: Any = jax.linearize(function, *primals)[1]
    _, expected = jax.jvp(function, tuple(primals), (dx, d_scale, d_bias))
    np.testing.assert_allclose(linear(dx, d_scale, d_bias), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, None, None), (2, 0, None), (None, 0, 1)])
def test_a_mapped_axis_gives_the_gradients_of_a_loop(swish, axes):
    shapes = [list(s) for s in ((2, 3, 2, 4), (4,), (4,))]
    for shape, axis in zip(shapes, axes, strict=True):
        if axis is not None:
            shape.insert(axis, 3)
    rng = np.random.default_rng(0)
    primals = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def gradients(*primals: Any) -> Any:
        def total(*a: Any) -> Any:
            return jnp.sin(group_norm(*a, 2, EPSILON, swish)).sum()

        return jax.grad(total, (0, 1, 2))(*primals)

    value = jax.jit(jax.vmap(gradients, in_axes=axes))(*primals)
    for i in range(3):
        one = [a if k is None else a.take(i, k) for a, k in zip(primals, axes, strict=True)]
        for a, b in zip(value, gradients(*one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_gradients_are_those_of_the_whole_batch(check_vma, swish):
    x, scale, bias = arrays((8, 2, 3, 4))[:3]

    def gradients(x: Any, scale: Any, bias: Any) -> Any:
        def total(*a: Any) -> Any:
            return jnp.sin(group_norm(*a, 2, EPSILON, swish)).sum()

        dx, *others = jax.grad(total, (0, 1, 2))(x, scale, bias)
        return dx, *others

    def inside(*primals: Any) -> Any:
        dx, *others = gradients(*primals)
        return dx, *(others if check_vma else jax.lax.psum(others, "data"))

    specs = PartitionSpec("data"), PartitionSpec(), PartitionSpec()
    split = jax.shard_map(
        inside, mesh=make_mesh(), in_specs=specs, out_specs=specs, check_vma=check_vma
    )
    for a, b in zip(jax.jit(split)(x, scale, bias), gradients(x, scale, bias), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Sums in another order.


def test_a_channel_that_is_constant_has_finite_derivatives(swish):
    primals = jnp.full((1, 2, 2, 2), 3.0), jnp.ones(2), jnp.zeros(2)
    y, pullback = jax.vjp(lambda *a: group_norm(*a, 2, EPSILON, swish), *primals)
    assert all(np.isfinite(a).all() for a in (y, *pullback(jnp.ones_like(y))))
