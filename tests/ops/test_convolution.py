"""The convolution and its own derivatives against loops in float64 and against JAX's derived rule."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads
from plain_conv import loops

from diffusion_jax.ops import convolution, doubled
from diffusion_jax.ops.convolution import conv, matmul, pointwise
from diffusion_jax.ops.cpu import convolution as cpu
from diffusion_jax.ops.doubled import conv_of_doubled
from diffusion_jax.ops.linear import linear_map
from diffusion_jax.parallel.sharding import batch_sharding, make_mesh, replicated

# (batch, height, width, channels in, channels out, kernel, stride)
CASES = {
    "3x3": (2, 6, 6, 3, 4, (3, 3), 1),
    "one image, odd size": (1, 5, 5, 2, 3, (3, 3), 1),
    "batch of 3, not square": (3, 4, 7, 2, 5, (3, 3), 1),
    "stride 2, even size": (8, 6, 6, 2, 4, (3, 3), 2),
    "stride 2, odd size": (3, 5, 7, 2, 3, (3, 3), 2),
    "stride 2, one odd side": (1, 4, 5, 3, 2, (3, 3), 2),
    "smaller than the kernel": (2, 2, 1, 2, 2, (3, 3), 1),
    "1x1": (2, 3, 3, 4, 2, (1, 1), 1),
    "not square kernel": (2, 5, 4, 2, 2, (3, 5), 1),
    "even kernel": (2, 5, 4, 2, 3, (2, 4), 1),
    "stride 3, even kernel": (2, 8, 7, 2, 3, (4, 2), 3),
    "stride beyond the kernel": (2, 7, 8, 2, 3, (1, 2), 3),
    "more pixels than are taken at once": (6, 16, 17, 2, 2, (3, 3), 1),
    "the same, stride 2": (6, 33, 16, 2, 2, (3, 3), 2),
    "wide enough for fewer multiplications": (2, 4, 9, 32, 33, (3, 3), 1),
    "the same, in chunks": (6, 40, 36, 32, 32, (3, 3), 1),
    "the same, in blocks of stride 2": (2, 14, 15, 32, 32, (3, 3), 2),
    "far fewer channels in than out": (2, 5, 4, 2, 19, (3, 3), 1),
    "far fewer channels out than in": (2, 5, 4, 19, 2, (3, 3), 1),
}


@pytest.fixture(autouse=True)
def _small_images_take_the_way_of_large_ones(monkeypatch):
    monkeypatch.setattr(cpu, "PRODUCTS_THAT_PAY", 0)


def arrays(case: str) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Returns x, w and dy of unit variance, and the stride."""
    b, h, w, c, d, kernel, stride = CASES[case]
    rng = np.random.default_rng(0)
    shapes = (b, h, w, c), (*kernel, c, d), (b, -(-h // stride), -(-w // stride), d)
    x, weights, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return x, weights, dy, stride


def forward_and_gradients(x: Any, w: Any, dy: Any, stride: int) -> tuple[Any, Any, Any]:
    y, pullback = jax.vjp(lambda x, w: conv(x, w, stride), x, w)
    return y, *pullback(dy)


def derived(x: Any, w: Any, dy: Any, stride: int) -> tuple[Any, Any, Any]:
    """The same by XLA's own "SAME" convolution and the gradients that JAX derives for it."""

    def convolve(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    y, pullback = jax.vjp(convolve, x, w)
    return y, *pullback(dy)


@pytest.mark.parametrize("case", CASES)
def test_output_and_both_gradients_are_those_of_plain_loops(case):
    x, w, dy, stride = arrays(case)
    result = jax.jit(forward_and_gradients, static_argnums=3)(x, w, dy, stride)
    for value, expected in zip(result, loops(x, w, dy, stride), strict=True):
        assert value.shape == expected.shape
        # float32 sums of up to 8640 products of unit variance, the longest (of dw) 100 in size.
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("case", ["3x3", "stride 2, odd size"])
def test_output_and_both_gradients_are_those_that_jax_derives(compiled, case):
    x, w, dy, stride = arrays(case)
    result = compiled(partial(forward_and_gradients, stride=stride))(x, w, dy)
    for value, expected in zip(result, derived(x, w, dy, stride), strict=True):
        np.testing.assert_allclose(
            value, expected, rtol=1e-5, atol=1e-5
        )  # Two orders of summation.


@pytest.mark.parametrize(
    "case", ["one image, odd size", "stride 2, odd size", "stride 3, even kernel"]
)
def test_derivatives_of_both_modes_and_orders_are_finite_differences(compiled, case):
    x, w, _, stride = arrays(case)
    # Order 2 has all four compositions of jvp and vjp. The tangent of tanh makes second ones of conv's too.
    check_grads(
        compiled(lambda x, w: jnp.tanh(conv(jnp.asarray(x), jnp.asarray(w), stride))),
        (x / 4, w / 4),
        order=2,
        modes=["fwd", "rev"],
        atol=1e-2,  # float32 differences of second order
        rtol=1e-2,
    )


def test_derivatives_of_the_product_are_finite_differences(compiled, rng):
    x, w = (jnp.asarray(rng.normal(size=s) / 4, jnp.float32) for s in ((2, 3, 3, 4), (4, 5)))
    function = compiled(lambda x, w: jnp.tanh(matmul(jnp.asarray(x), jnp.asarray(w))))
    check_grads(function, (x, w), order=2, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_tangents_are_those_of_plain_loops(case):
    x, w, dy, stride = arrays(case)
    rng = np.random.default_rng(1)
    dx, dw = (jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in (x, w))
    function = partial(conv, stride=stride)
    _, value = jax.jit(lambda *tangents: jax.jvp(function, (x, w), tangents))(dx, dw)
    _, linear = jax.linearize(function, x, w)
    expected = loops(dx, w, dy, stride)[0] + loops(x, dw, dy, stride)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(linear(dx, dw), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [(0, None), (3, None), (None, 1), (2, 0)])
def test_a_mapped_axis_gives_the_results_of_a_loop(rng, stride, axes):
    x, w, _, _ = arrays("one image, odd size")
    shapes = [list(x.shape), list(w.shape)]
    for shape, axis in zip(shapes, axes, strict=True):
        if axis is not None:
            shape.insert(axis, 3)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def all_of(x: Any, w: Any) -> Any:
        y, pullback = jax.vjp(lambda x, w: conv(x, w, stride), x, w)
        return y, *pullback(jnp.sin(y))

    mapped = jax.jit(jax.vmap(all_of, in_axes=axes))(x, w)

    def one(array: jax.Array, axis: int | None, i: int) -> jax.Array:
        return array if axis is None else array.take(i, axis)

    for i in range(3):
        expected = all_of(one(x, axes[0], i), one(w, axes[1], i))
        for value, right in zip(mapped, expected, strict=True):
            np.testing.assert_allclose(value[i], right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_inside_shard_map_the_kernels_gradient_is_local_or_summed_as_jax_has_it(stride, check_vma):
    x, w, _, _ = arrays("stride 2, even size")

    def local(convolve: Any, x: Any, w: Any) -> Any:
        gradients = jax.grad(lambda x, w: jnp.sin(convolve(x, w)).sum(), (0, 1))(x, w)
        # With the check JAX itself adds up the gradients of what is alike on all devices.
        return gradients if check_vma else (gradients[0], jax.lax.psum(gradients[1], "data"))

    def split(convolve: Any) -> Any:
        specs = PartitionSpec("data"), PartitionSpec()
        inside = partial(local, convolve)
        mapped = jax.shard_map(
            inside, mesh=make_mesh(), in_specs=specs, out_specs=specs, check_vma=check_vma
        )
        return jax.jit(mapped)(x, w)

    value = split(partial(conv, stride=stride))
    expected = jax.grad(lambda x, w: jnp.sin(conv(x, w, stride)).sum(), (0, 1))(x, w)
    for a, b in zip(value, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # Sums in another order.


@pytest.mark.parametrize("case", ["3x3", "the same, stride 2"])
def test_bfloat16_inputs_give_bfloat16_results_summed_in_more_digits(case):
    x, w, dy, stride = arrays(case)
    x, w, dy = (jnp.asarray(a, jnp.bfloat16) for a in (x, w, dy))
    result = jax.jit(forward_and_gradients, static_argnums=3)(x, w, dy, stride)
    for value, expected in zip(result, loops(x, w, dy, stride), strict=True):
        assert value.dtype == jnp.bfloat16
        # Only the result is rounded, to 8 binary digits; a sum rounded term by term misses this.
        np.testing.assert_allclose(value.astype(np.float32), expected, rtol=2**-8, atol=1e-3)


def test_gradients_inside_a_scan_are_those_outside():
    x, w, dy, stride = arrays("stride 2, even size")
    outside = jax.jit(forward_and_gradients, static_argnums=3)(x, w, dy, stride)

    def body(total: Any, scale: Any) -> tuple[Any, None]:
        parts = forward_and_gradients(scale * x, w, dy, stride)
        return jax.tree.map(jnp.add, total, parts), None

    zeros = jax.tree.map(jnp.zeros_like, outside)
    inside, _ = jax.jit(lambda: jax.lax.scan(body, zeros, jnp.array([1.0, 2.0])))()
    # x scaled by 1 and 2: output and dw are linear in it, dx does not depend on it.
    for value, expected, times in zip(inside, outside, (3, 2, 3), strict=True):
        np.testing.assert_allclose(value, times * expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_batch_split_over_eight_devices_gives_the_same(stride):
    x, w, _, _ = arrays("stride 2, even size")
    mesh = make_mesh()

    def total(x: Any, w: Any) -> Any:
        return (jnp.square(conv(x, w, stride)) / len(x)).sum()

    expected = jax.jit(jax.value_and_grad(total, (0, 1)))(x, w)
    split = jax.device_put(x, batch_sharding(mesh)), jax.device_put(w, replicated(mesh))
    value = jax.jit(jax.value_and_grad(total, (0, 1)))(*split)
    assert value[1][0].sharding.is_equivalent_to(batch_sharding(mesh), ndim=4)
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Sums in another order.


def test_gpus_get_the_derived_gradients_and_cpus_matrix_products():
    x, w, dy, _ = arrays("3x3")
    traced = jax.jit(partial(forward_and_gradients, stride=1)).trace(x, w, dy)
    programs = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {name: "dot_general" in text for name, text in programs.items()} == {
        "cpu": True,
        "cuda": False,
        "tpu": False,
    }


@pytest.mark.parametrize("size, channels", [((4, 4), 3), ((1, 3), 3), ((33, 31), 3), ((7, 9), 32)])
def test_convolving_the_doubled_image_is_convolving_its_repeated_pixels(size, channels):
    rng = np.random.default_rng(0)
    c, d = channels, max(4, channels)
    shapes = (2, *size, c), (3, 3, c, d), (2, 2 * size[0], 2 * size[1], d)
    x, w, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    y, pullback = jax.vjp(jax.jit(conv_of_doubled), x, w)
    dx, dw = pullback(dy)
    repeated = np.asarray(x).repeat(2, axis=1).repeat(2, axis=2)
    expected, d_repeated, expected_dw = loops(repeated, w, dy, 1)
    expected_dx = d_repeated.reshape(2, size[0], 2, size[1], 2, c).sum((2, 4))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-5, atol=1e-4)
    # float32 sums of up to 8184 products of unit variance.
    np.testing.assert_allclose(dw, expected_dw, rtol=1e-5, atol=1e-3)


def test_the_doubled_image_costs_four_ninths_of_the_multiplications():
    x, w, sums = jnp.ones((1, 16, 16, 8)), jnp.ones((3, 3, 8, 8)), jnp.ones((4, 4, 8, 8))
    repeated = x.repeat(2, axis=1).repeat(2, axis=2)

    def multiplications(function: Any, *operands: Any) -> int:
        """Counts those of the convolutions in the program, from the shapes of their operands."""
        count = 0
        for equation in jax.make_jaxpr(function)(*operands).eqns:
            if equation.primitive.name == "convolution":
                kernel: Any = equation.invars[1].aval
                output: Any = equation.outvars[0].aval
                count += math.prod(output.shape) * math.prod(kernel.shape[:3])
        return count

    on_cpu = partial(doubled._by_parity, _=None)
    assert multiplications(conv, repeated, w) == 32 * 32 * 9 * 8 * 8
    assert multiplications(on_cpu, x, sums) * 9 == 32 * 32 * 9 * 8 * 8 * 4


def test_platforms_other_than_the_cpu_get_one_convolution_of_the_doubled_image(rng):
    shapes = (2, 5, 3, 4), (4, 4, 4, 6), (2, 10, 6, 6)
    x, sums, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    ways = doubled._spread, doubled._by_parity
    results = [forward_and_gradients_of(way, x, sums, dy) for way in ways]
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    lowered = jax.jit(conv_of_doubled).trace(x, sums[:3, :3]).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("stablehlo.convolution") == 1


def forward_and_gradients_of(way: Any, x: Any, sums: Any, dy: Any) -> tuple[Any, Any, Any]:
    to_image, to_kernel = doubled._of_doubled_to_image(way), doubled._of_doubled_to_kernel(way)
    return way(x, sums, None), to_image(dy, sums, None), to_kernel(x, dy, None)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 4, 3)])
def test_the_product_and_both_gradients_are_those_in_float64(compiled, shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=s) for s in (shape, (3, 6), (*shape[:-1], 6)))
    x, w, dy = (jnp.asarray(a, dtype) for a in arrays)

    def both(x: Any, w: Any, dy: Any) -> Any:
        y, pullback = jax.vjp(matmul, x, w)
        return y, *pullback(dy)

    exact = [np.asarray(a, np.float64) for a in (x, w, dy)]
    rows, columns = exact[0].reshape(-1, 3), exact[2].reshape(-1, 6)
    expected = exact[0] @ exact[1], exact[2] @ exact[1].T, rows.T @ columns
    for value, right in zip(compiled(both)(x, w, dy), expected, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.asarray(value, np.float64), right, rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize(
    "shape, convolutions",
    [((4, 32, 32, 64), 6), ((4, 8, 8, 64), 1), ((64, 6, 6, 64), 1), ((64, 32, 32, 16), 1)],
    ids=["large", "little work", "narrow", "few channels"],
)
def test_multiplications_are_saved_where_it_pays(monkeypatch, shape, convolutions):
    monkeypatch.undo()  # The limit of work is the real one.
    x, w = jax.ShapeDtypeStruct(shape, jnp.float32), jnp.ones((3, 3, shape[3], 64))
    text = jax.jit(conv).trace(x, w).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 7), (7, 1), (5, 5)])
def test_a_valid_convolution_adds_no_zeros(kernel, stride):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 9, 11, 4)), jnp.float32)
    w = jnp.asarray(generator.normal(size=(*kernel, 4, 6)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv(x, w, stride, "VALID"), expected, atol=1e-4)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_of_parts_and_its_derivatives_are_those_of_the_parts_side_by_side(
    rng, monkeypatch, on_cpu, kernel
):
    """Both ways: joined, as the CPU does, and as a sum over the parts."""
    x, dx = (jnp.asarray(rng.normal(size=(2, 5, 4, 5)), jnp.float32) for _ in range(2))
    w, dw = (jnp.asarray(rng.normal(size=(kernel, kernel, 5, 3)), jnp.float32) for _ in range(2))
    if not on_cpu:
        in_sum: Any = convolution._sum_of_parts
        for name, default, transpose in (
            ("_in_parts", in_sum, convolution._to_parts),
            ("_in_kernel", lambda w, x, form: in_sum(x, w, form), convolution._to_kernels),
        ):
            monkeypatch.setattr(convolution, name, linear_map(name, default, transpose))

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, x, w)
        return y, jax.jvp(function, (x, w), (dx, dw))[1], pullback(jnp.cos(y))

    value = jax.jit(lambda: all_of(lambda x, w: conv((x[..., :2], x[..., 2:]), w)))()
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(all_of(conv)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Other orders of summation.


def test_the_product_over_channels_of_images_is_that_of_their_rows(rng):
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 4, 5), (5, 6)))
    dy = jnp.asarray(rng.normal(size=(2, 3, 4, 6)), jnp.float32)

    def all_of(function: Any) -> Any:
        y, pullback = jax.vjp(function, x, w)
        return y, *pullback(dy)

    for a, b in zip(all_of(pointwise), all_of(matmul), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)
    lowered = jax.jit(pointwise).trace(x, w).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in lowered and "dot_general" not in lowered
