"""The U-Net and its layers against float64 computations, parameter counts and known invariances."""

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from slow import slow

from diffusion_jax.models.networks import Model, UNet, as_functions, count_parameters
from diffusion_jax.models.networks.blocks import SelfAttention
from diffusion_jax.models.networks.embeddings import ClassEmbedding, time_embedding
from diffusion_jax.models.networks.layers import GroupNorm, group_count

SHAPE = (8, 8, 3)
CLASSES = 3
TINY: dict[str, Any] = dict(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.5,
    num_classes=CLASSES,
)


def tiny(**changes: Any) -> Model:
    return as_functions(UNet(**{**TINY, **changes}), SHAPE)


def parameter_shapes(model: Model) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0))


def random_parameters(shapes: Any) -> Any:
    """Returns parameters none of which is special: no zero kernel or bias, no unit scale."""
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> np.ndarray:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def params() -> Any:
    return random_parameters(parameter_shapes(tiny()))


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x, t and labels of two images."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, *SHAPE)), jnp.float32)
    return x, jnp.array([3.0, 700.5]), jnp.array([0, 2])


@pytest.fixture(scope="module")
def forward() -> Any:
    return jax.jit(tiny().apply)


def loss_and_gradients(model: Model, params: Any, inputs: tuple) -> tuple[jax.Array, Any]:
    x, t, labels = inputs

    def loss(params: Any) -> jax.Array:
        return jnp.square(model.apply(params, x, t, labels) - x[:, ::-1]).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def gradients(params: Any, inputs: tuple) -> tuple[jax.Array, Any]:
    return loss_and_gradients(tiny(), params, inputs)


@pytest.mark.parametrize(
    ("size", "channel_mult", "expected"),
    [(32, (1, 2, 2, 2), 35_746_307), (256, (1, 1, 2, 2, 4, 4), 113_673_219)],
)
def test_the_papers_networks_have_exactly_its_numbers_of_parameters(size, channel_mult, expected):
    module = UNet(channels=128, channel_mult=channel_mult, attention_resolutions=(16,))
    model = as_functions(module, (size, size, 3))
    assert count_parameters(parameter_shapes(model)) == expected


# ---- the network as a whole --------------------------------------------------------------------------


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def dense(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def group_norm(p: Any, x: np.ndarray) -> np.ndarray:
    b, h, w, c = x.shape
    groups = {8: 2, 16: 4, 24: 6, 32: 8}[c]  # Four channels each.
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def convolution(p: Any, x: np.ndarray, stride: int = 1) -> np.ndarray:
    """3x3, "SAME": at stride 2 and even size the padding is one row and column at the end."""
    first, last = (1, 1) if stride == 1 else (0, 1)
    x = np.pad(x, ((0, 0), (first, last), (first, last), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijcd->bhwd", windows, p["kernel"]) + p["bias"]


def attention(p: Any, x: np.ndarray) -> np.ndarray:
    b, h, w, c = x.shape
    pixels = group_norm(p["norm"], x).reshape(b, h * w, c)
    q, k, v = (dense(p[name], pixels) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(c))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return x + dense(p["out"], mixed).reshape(x.shape)


def res_block(p: Any, x: np.ndarray, emb: np.ndarray) -> np.ndarray:
    h = convolution(p["conv1"], swish(group_norm(p["norm1"], x)))
    h = h + dense(p["time_proj"], swish(emb))[:, None, None, :]
    h = convolution(p["conv2"], swish(group_norm(p["norm2"], h)))
    return (dense(p["shortcut"], x) if "shortcut" in p else x) + h


def sinusoids(t: np.ndarray, channels: int) -> np.ndarray:
    """Vaswani et al. (2017): wavelengths in a geometric progression from 2 pi to 10000 * 2 pi."""
    angles = t[:, None] / np.geomspace(1, 10_000, channels // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def unet(p: Any, x: np.ndarray, t: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The network of `TINY` written out, with any number of blocks: two levels, attention on the lower one."""
    emb = dense(p["time_dense_1"], swish(dense(p["time_dense_0"], sinusoids(t, 8))))
    emb = emb + p["class"]["embedding"][labels]
    blocks = sum(name.startswith("down_0") and name.endswith("_res") for name in p)

    def block(name: str, h: np.ndarray) -> np.ndarray:
        h = res_block(p[f"{name}_res"], h, emb)
        return h if name.startswith(("down_0", "up_0")) else attention(p[f"{name}_attention"], h)

    h = convolution(p["conv_in"], x)
    skips = [h]
    for i in range(blocks):
        skips.append(h := block(f"down_0_{i}", h))
    skips.append(h := convolution(p["down_0_resize"]["conv"], h, stride=2))
    for i in range(blocks):
        skips.append(h := block(f"down_1_{i}", h))
    h = res_block(p["middle_1_res"], block("middle_0", h), emb)
    for i in range(blocks + 1):
        h = block(f"up_1_{i}", np.concatenate([h, skips.pop()], axis=-1))
    h = convolution(p["up_1_resize"]["conv"], h.repeat(2, axis=1).repeat(2, axis=2))
    for i in range(blocks + 1):
        h = block(f"up_0_{i}", np.concatenate([h, skips.pop()], axis=-1))
    return convolution(p["conv_out"], swish(group_norm(p["norm_out"], h)))


def test_output_is_that_of_the_network_written_out_in_float64(forward, params, inputs):
    double = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = unet(double, *(np.asarray(a) for a in inputs))
    value = forward(params, *inputs)
    assert value.shape == inputs[0].shape
    # Some twenty float32 layers, whose roundings (6e-8) norms and attention enlarge.
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_number_of_output_channels_changes_the_last_layer_alone(params, inputs):
    model = tiny(out_channels=6)
    shapes = parameter_shapes(model)
    assert jax.eval_shape(model.apply, shapes, *inputs).shape == (2, 8, 8, 6)
    ours, wider = (jax.tree.map(np.shape, dict(tree)) for tree in (params, shapes))
    assert ours.pop("conv_out") == {"kernel": (3, 3, 8, 3), "bias": (3,)}
    assert wider.pop("conv_out") == {"kernel": (3, 3, 8, 6), "bias": (6,)}
    assert ours == wider


def test_output_is_diffusers_with_the_same_weights():
    """The fixture holds weights, inputs and output of `UNet2DModel`; benchmarks/parity/unet.py wrote it."""
    with np.load(Path(__file__).parent / "fixtures/unet_of_diffusers.npz") as stored:
        arrays = {name: stored[name].astype(np.float32) for name in stored.files}
    x, t, expected = (arrays.pop(name) for name in ("x", "t", "output"))
    params = traverse_util.unflatten_dict(arrays, sep="/")
    model = tiny(num_classes=0, dropout=0.0, norm_groups=2)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, parameter_shapes(model))
    value = np.asarray(jax.jit(model.apply)(params, x, t))
    assert np.abs(expected).max() > 1
    # Two float32 programs that sum in different orders: 7e-7 was seen.
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Returns the parameters that a network of 32 channels starts with, by their path."""
    params = jax.jit(tiny(channels=32).init)(jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves}


def starts_at_zero(path: str) -> bool:
    return path.endswith(("conv2/kernel", "attention/out/kernel", "conv_out/kernel"))


def test_kernels_start_with_the_variance_2_over_fan_in_plus_fan_out(drawn):
    kernels = {path: k for path, k in drawn.items() if path.endswith("kernel")}
    tested = {path: k for path, k in kernels.items() if not starts_at_zero(path)}
    # 8 first convolutions, 8 projections of the time, 5 shortcuts, 3 of each attention,
    # 2 of resizing, 2 of the time's embedding, conv_in.
    assert len(tested) == 8 + 8 + 5 + 4 * 3 + 2 + 2 + 1
    for path, kernel in tested.items():
        pixels = kernel[..., 0, 0].size
        variance = 2 / (pixels * kernel.shape[-2] + pixels * kernel.shape[-1])
        # Five sampling errors: of the mean square of n uniform draws it is sqrt(0.8 / n), relative.
        tolerance = 5 * np.sqrt(0.8 / kernel.size)
        assert abs(np.square(kernel).mean() / variance - 1) < tolerance, path
        assert abs(kernel.mean()) < 5 * np.sqrt(variance / kernel.size), path


def test_last_layers_and_biases_start_at_zero_and_scales_at_one(drawn):
    zero = {path for path, leaf in drawn.items() if not leaf.any()}
    assert zero == {path for path in drawn if starts_at_zero(path) or path.endswith("bias")}
    assert len([path for path in zero if path.endswith("kernel")]) == 8 + 4 + 1
    assert all((leaf == 1).all() for path, leaf in drawn.items() if path.endswith("scale"))


def test_every_block_matters_to_the_output_of_random_parameters(forward, params, inputs):
    base = np.asarray(forward(params, *inputs))
    assert len(params) == 8 + 4 + 2 + 2 + 1 + 3  # Blocks, attention, resizing, time, class, ends.
    for name, block in params.items():
        changed = {**params, name: jax.tree.map(lambda leaf: 1.1 * leaf, block)}
        output = np.asarray(forward(changed, *inputs))
        assert np.linalg.norm(output - base) > 1e-3 * np.linalg.norm(base), name


def test_the_first_output_is_zero(inputs):
    model = tiny(channel_mult=(1,))
    output = jax.jit(lambda key: model.apply(model.init(key), *inputs))(jax.random.key(0))
    np.testing.assert_array_equal(output, 0)


def test_bfloat16_keeps_parameters_and_output_in_float32_and_their_values_close(
    forward, params, inputs
):
    model = tiny(dtype=jnp.bfloat16)
    shapes = parameter_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    value, expected = jax.jit(model.apply)(params, *inputs), forward(params, *inputs)
    assert value.dtype == expected.dtype == jnp.float32
    difference = np.asarray(value - expected)
    # Rounding to 8 binary digits (0.4%) in each of some twenty layers; but not float32 in disguise.
    assert 1e-4 < np.sqrt(np.mean(difference**2) / np.mean(np.square(expected))) < 0.05


def directional(params: Any, dparams: Any, x: Any, dx: Any, t: Any, labels: Any) -> np.ndarray:
    """The float64 network's derivative along (dparams, dx), by central differences."""

    def at(h: float) -> np.ndarray:
        shifted = jax.tree.map(lambda a, d: a + h * np.asarray(d, np.float64), params, dparams)
        return unet(shifted, x + h * dx, t, labels)

    return (at(1e-5) - at(-1e-5)) / 2e-5


# Both levels with what resizes between them, and four blocks instead of eight: derivatives are slow to compile.
SMALL = tiny(num_res_blocks=0)


@pytest.fixture(scope="module")
def small() -> Any:
    """Returns parameters of `SMALL`."""
    return random_parameters(parameter_shapes(SMALL))


def tangents_of(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """Returns directions of the parameters and of the images."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype), (params, x))


def doubles(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


@pytest.mark.parametrize(
    "mode", ["jit", slow("linearize"), slow("eager"), slow("scan"), slow("remat")]
)
def test_tangents_are_differences_of_the_float64_network(params, small, inputs, mode):
    x, t, labels = inputs
    if mode == "jit":
        apply = tiny().apply
    else:
        params = small
        apply = tiny(num_res_blocks=0, remat="blocks" if mode == "remat" else "none").apply
    tangents = tangents_of(params, x)

    def jvp(params: Any, x: Any) -> Any:
        return jax.jvp(lambda params, x: apply(params, x, t, labels), (params, x), tangents)[1]

    def linearized(params: Any, x: Any) -> Any:
        _, linear = jax.linearize(lambda params, x: apply(params, x, t, labels), params, x)
        return linear(*tangents)

    def scanned(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda _, i: (None, jvp(params, x + i)), None, jnp.zeros(2))[1][1]

    function = {
        "eager": jvp,
        "jit": jax.jit(jvp),
        "scan": jax.jit(scanned),
        "linearize": jax.jit(linearized),
        "remat": jax.jit(jvp),
    }[mode]
    value = function(params, x)
    (dparams, dx), (double, x64) = doubles(tangents), doubles((params, x))
    expected = directional(double, dparams, x64, dx, np.asarray(t, np.float64), np.asarray(labels))
    # float32 rounding in some twenty layers, against differences good to nine digits.
    np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_tangents_in_bfloat16_are_close_to_those_in_float32(small, inputs):
    x, t, labels = inputs
    tangents = tangents_of(small, x)

    def jvp(model: Model) -> Any:
        function = lambda params, x: model.apply(params, x, t, labels)  # noqa: E731
        return jax.jit(lambda *point: jax.jvp(function, point, tangents))(small, x)[1]

    expected, value = jvp(SMALL), jvp(tiny(num_res_blocks=0, dtype=jnp.bfloat16))
    assert value.dtype == jnp.float32
    error = jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)
    assert 1e-4 < error < 0.1  # As the outputs, and products of two rounded factors.


@pytest.mark.slow
def test_second_derivatives_of_both_compositions_are_those_of_the_float64_network(small, inputs):
    """v^T (d/dx output) v, which sliced score matching trains on, and its derivative by the parameters."""
    x, t, labels = inputs
    dparams, v = tangents = tangents_of(small, x)
    apply = SMALL.apply

    def slice_of(params: Any) -> jax.Array:
        return (v * jax.jvp(lambda x: apply(params, x, t, labels), (x,), (v,))[1]).sum()

    def weighted(x: Any, params: Any) -> jax.Array:
        return (v * apply(params, x, t, labels)).sum()

    def reverse_of_forward(params: Any) -> Any:
        gradient = jax.grad(slice_of)(params)
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, dparams)
        return sum(jax.tree.leaves(products))

    def forward_of_reverse(params: Any) -> Any:
        gradient = lambda params: jax.grad(weighted)(x, params)  # noqa: E731
        return (v * jax.jvp(gradient, (params,), (dparams,))[1]).sum()

    (dparams64, v64), (double, x64) = doubles(tangents), doubles((small, x))

    def slice64(h: float) -> float:
        shifted = jax.tree.map(lambda a, d: a + h * d, double, dparams64)
        still = jax.tree.map(np.zeros_like, double)
        along = directional(shifted, still, x64, v64, np.asarray(t, np.float64), np.asarray(labels))
        return float((v64 * along).sum())

    expected = (slice64(1e-3) - slice64(-1e-3)) / 2e-3
    for function in (reverse_of_forward, forward_of_reverse):
        # The step of the outer difference leaves an error of 1e-4 or so.
        np.testing.assert_allclose(jax.jit(function)(small), expected, rtol=2e-3)


def test_every_parameter_has_a_gradient_but_the_key_biases_of_attention(gradients):
    # A key's bias adds the same number q . bias to all logits of a query, and softmax is invariant to it.
    # Groups have four channels, so that the norms hide no bias before them.
    leaves = jax.tree_util.tree_leaves_with_path(gradients[1])
    norms = {jax.tree_util.keystr(path): float(jnp.abs(g).max()) for path, g in leaves}
    largest = max(norms.values())
    without = {name for name, norm in norms.items() if norm < 1e-6 * largest}
    expected = {f"['{block}_attention']['key']['bias']" for block in
                ("down_1_0", "middle_0", "up_1_0", "up_1_1")}  # fmt: skip
    assert without == expected


@pytest.mark.parametrize("remat", ["blocks", slow(("conv", "attention"))])
def test_recomputing_changes_neither_outputs_nor_gradients(inputs, remat):
    models = [tiny(channel_mult=(1,), num_res_blocks=0, remat=one) for one in ("none", remat)]
    plain, other = (parameter_shapes(model) for model in models)
    assert other == plain
    params = random_parameters(plain)
    expected, value = (loss_and_gradients(model, params, inputs) for model in models)
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
        # The compiler fuses the programs differently: float32 rounding.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("remat", "convolutions", "products"),
    [slow("blocks", 8, 8), slow(("attention",), 8, 4), (("conv", "attention"), 0, 4)],
)
def test_the_backward_pass_computes_again_what_is_not_kept(
    params, inputs, remat, convolutions, products
):
    """Of each of 8 blocks the first convolution; of each of 4 attentions the logits, and what they weigh."""

    def count(remat: Any) -> dict[str, int]:
        loss = lambda params: tiny(remat=remat).apply(params, *inputs).sum()  # noqa: E731
        program = str(jax.make_jaxpr(jax.grad(loss))(params))
        kinds = {"convolution": r"= convolution(_of_parts)?\[", "dot_general": r"= dot_general\["}
        return {kind: len(re.findall(pattern, program)) for kind, pattern in kinds.items()}

    plain, value = count("none"), count(remat)
    more = {kind: value[kind] - plain[kind] for kind in plain}
    assert more == {"convolution": convolutions, "dot_general": products}


@pytest.mark.parametrize(
    "of_parameters",
    [pytest.param(False, id="batches"), pytest.param(True, id="networks", marks=pytest.mark.slow)],
)
def test_gradients_mapped_over_batches_or_networks_are_those_of_a_loop(inputs, of_parameters):
    """Such as per-example gradients, and ensembles."""
    small = tiny(channel_mult=(1,), num_res_blocks=0)
    x, t, labels = inputs
    several = random_parameters(parameter_shapes(small))
    several = jax.tree.map(lambda a: jnp.stack([a, 0.9 * a]), several)
    axes = (0, None) if of_parameters else (None, 0)
    arguments = several, jnp.stack([x, x[:, ::-1]])
    one = [jax.tree.map(lambda a: a[0], argument) for argument in arguments]
    mapped = [a if axis == 0 else b for a, b, axis in zip(arguments, one, axes, strict=True)]

    def gradients(params: Any, x: Any) -> Any:
        return jax.grad(lambda p, x: jnp.square(small.apply(p, x, t, labels)).mean(), (0, 1))(
            params, x
        )

    def taken(i: int) -> list[Any]:
        pairs = zip(mapped, axes, strict=True)
        return [jax.tree.map(lambda a: a[i], a) if axis == 0 else a for a, axis in pairs]

    value, single = jax.jit(jax.vmap(gradients, in_axes=axes))(*mapped), jax.jit(gradients)
    for i in range(2):
        expected = single(*taken(i))
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)  # Sums in other orders.


def test_each_image_depends_on_its_own_time_and_class_alone(forward, params, inputs):
    x, t, labels = inputs
    base = np.asarray(forward(params, x, t, labels))
    for changed in [forward(params, x, t + jnp.array([0.0, 9.0]), labels),
                    forward(params, x, t, labels.at[1].set(1)),
                    forward(params, x.at[1].add(0.1), t, labels)]:  # fmt: skip
        np.testing.assert_array_equal(changed[0], base[0])
        assert np.abs(changed[1] - base[1]).max() > 1e-3


def test_gradients_reach_the_embeddings_of_the_classes_seen_only(gradients):
    rows = np.abs(gradients[1]["class"]["embedding"]).max(axis=1)
    assert rows[0] > 0 and rows[1] == 0 and rows[2] > 0 and rows[3] == 0


def test_the_label_after_the_last_stands_for_no_class_and_others_outside_give_nan(
    forward, params, inputs
):
    x, t, labels = inputs
    rows = params["class"]["embedding"]
    without = {**params, "class": {"embedding": np.zeros_like(rows)}}
    nothing = {
        **params,
        "class": {"embedding": np.concatenate([rows[:CLASSES], 0 * rows[CLASSES:]])},
    }
    no_class = jnp.full_like(labels, CLASSES)
    np.testing.assert_array_equal(forward(nothing, x, t, no_class), forward(without, x, t, labels))
    for label in (-1, CLASSES + 1):
        output = forward(params, x, t, labels.at[1].set(label))
        assert np.isfinite(output[0]).all() and np.isnan(output[1]).all()


def test_a_conditional_model_without_labels_is_an_error(params, inputs):
    with pytest.raises(ValueError, match="labels are missing: the network has 3 classes"):
        jax.eval_shape(tiny().apply, params, *inputs[:2])


@pytest.mark.slow
def test_parameters_may_be_numpy_arrays_as_other_tools_read_them(forward, params, inputs):
    expected = forward(params, *inputs)
    host = jax.tree.map(np.asarray, params)
    # The same float32 operations, eager and compiled: sums in another order.
    np.testing.assert_allclose(tiny().apply(host, *inputs), expected, rtol=1e-4, atol=1e-4)


def test_an_unconditional_model_has_no_class_embedding_and_ignores_labels(inputs):
    model = tiny(num_classes=0)
    shapes = parameter_shapes(model)
    assert "class" not in shapes
    assert jax.eval_shape(model.apply, shapes, *inputs[:2]).shape == inputs[0].shape


def test_dropout_acts_with_a_key_and_as_the_key_says(forward, params, inputs):
    # Without a key the output was the float64 network's, though its dropout is 0.5.
    keys = jax.random.split(jax.random.key(0), 3)
    one, same, other = (forward(params, *inputs, keys[i : i + 2]) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - forward(params, *inputs)).max() > 1e-3


def test_dropout_of_an_image_depends_neither_on_the_others_nor_on_recomputation(
    forward, params, inputs
):
    keys = jax.random.split(jax.random.key(0), 2)
    expected = forward(params, *inputs, keys)
    alone = jax.jit(tiny(remat="blocks").apply)(params, *(a[1:] for a in inputs), keys[1:])
    # Other batches and fusions, in float32; another mask would change the output as a whole.
    np.testing.assert_allclose(alone[0], expected[1], rtol=1e-4, atol=1e-4)


def test_every_norm_has_the_groups_and_the_epsilon_of_the_network(params, inputs):
    def called(**changes: Any) -> set[tuple[int | None, float]]:
        found = []

        def spy(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            if isinstance(context.module, GroupNorm):
                found.append((context.module.groups, context.module.epsilon))
            return call(*arguments, **keywords)

        with nn.intercept_methods(spy):
            jax.eval_shape(tiny(**changes).apply, params, *inputs)
        assert len(found) == 8 * 2 + 4 + 1  # Blocks, attentions, the end.
        return set(found)

    assert called() == {(None, 1e-6)}
    assert called(norm_groups=8, norm_eps=0.25) == {(8, 0.25)}
    assert called(norm_groups=8, norm_eps=0.25, remat="blocks") == {(8, 0.25)}


def test_groups_that_do_not_divide_the_channels_are_refused(params, inputs):
    with pytest.raises(ValueError, match="norm_groups is 3; .* one has 8"):
        jax.eval_shape(tiny(norm_groups=3).apply, params, *inputs)


# ---- layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [4, 32])
def test_time_embedding_is_the_closed_form(compiled, channels):
    t = np.array([0.0, 1.0, 17.25, 999.0])
    value = compiled(lambda t: time_embedding(t, channels))(jnp.asarray(t, jnp.float32))
    # An angle of 999 has a float32 rounding of 6e-5.
    np.testing.assert_allclose(value, sinusoids(t, channels), atol=2e-4)


def test_embeddings_of_classes_are_standard_normal_when_drawn():
    params = ClassEmbedding(999, 64).init(jax.random.key(0), jnp.array([0]))["params"]
    rows = np.asarray(params["embedding"])
    assert rows.shape == (1000, 64)
    # Sampling errors of 64,000 draws: 0.004 of the mean, 0.0028 of the standard deviation.
    assert abs(rows.mean()) < 0.016 and abs(rows.std() - 1) < 0.012


def test_as_many_groups_as_can_be_of_four_channels_or_more_but_at_most_32():
    for channels in range(1, 400):
        equal = {channels // size for size in range(4, channels + 1) if channels % size == 0}
        assert group_count(channels) == max((n for n in equal if n <= 32), default=1), channels


@pytest.mark.parametrize(
    ("channels", "chosen", "groups"),
    [(4, None, 1), (48, None, 12), (128, None, 32), (192, None, 32), (48, 8, 8), (48, 48, 48)],
)
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_group_norm_is_flaxs(rng, channels, chosen, groups, epsilon):
    x = jnp.asarray(rng.normal(3, 2, size=(2, 5, 3, channels)), jnp.float32)
    params = {"params": {"scale": jnp.asarray(rng.normal(size=channels), jnp.float32),
                         "bias": jnp.asarray(rng.normal(size=channels), jnp.float32)}}  # fmt: skip
    value = jax.jit(GroupNorm(chosen, epsilon).apply)(params, x)
    expected = jax.jit(nn.GroupNorm(groups, epsilon=epsilon).apply)(params, x)
    assert isinstance(value, jax.Array) and isinstance(expected, jax.Array)
    np.testing.assert_allclose(value, expected, atol=2e-5)  # float32 sums in another order


def test_group_norm_computes_in_float32_whatever_its_input(rng):
    # In bfloat16 the mean square of values around 100 has a rounding of 20 times their variance.
    x = jnp.asarray(rng.normal(100, 1, size=(1, 8, 8, 8)), jnp.bfloat16)
    params = {"scale": np.ones(8), "bias": np.zeros(8)}
    value = jax.jit(GroupNorm().apply)({"params": params}, x)
    assert isinstance(value, jax.Array) and value.dtype == jnp.bfloat16
    expected = group_norm(params, np.asarray(x, np.float64))
    # 1e4 in float32 is rounded by 1e-3, and the result, up to 4, by 2^-7.
    np.testing.assert_allclose(value.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("width", [4, 16])  # With many pixels, the maps are merged.
def test_self_attention_is_the_float64_computation(rng, width):
    x = jnp.asarray(rng.normal(size=(2, 3, width, 8)), jnp.float32)
    module = SelfAttention(jnp.float32)
    params = random_parameters(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    value = jax.jit(module.apply)({"params": params}, x)
    assert isinstance(value, jax.Array)
    expected = attention(params, np.asarray(x, np.float64))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
