"""The options of the U-Net: what each changes, and its blocks written out in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from slow import slow_after

from diffusion_jax.errors import InputError
from diffusion_jax.models.networks import PRESETS, UNet, as_functions, count_parameters, preset
from diffusion_jax.models.networks.blocks import Downsample, ResBlock, SelfAttention, Upsample
from diffusion_jax.models.networks.embeddings import FourierEmbedding, time_embedding
from diffusion_jax.models.networks.unet_options import misfit
from diffusion_jax.ops.resample import double, halve

SHAPE = (8, 8, 3)
TINY: dict[str, Any] = dict(
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_classes=3,
)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, *SHAPE)), jnp.float32)
T, LABELS = jnp.array([3.0, 70.5]), jnp.array([0, 2])


def tiny(**changes: Any) -> Any:
    return as_functions(UNet(**{**TINY, **changes}), SHAPE)


def random(shapes: Any) -> Any:
    """Returns parameters none of which is special."""
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree.map(draw, shapes)


def run(module: Any, params: Any, *arguments: Any) -> Any:
    return module.apply({"params": params}, *arguments)


def flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")  # type: ignore[return-value]


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in flat(jax.eval_shape(model.init, jax.random.key(0))).items()}


@functools.cache
def usual_shapes() -> dict[str, tuple[int, ...]]:
    return shapes_of(tiny())


# Option: value -> parameters that it adds or reshapes, and those that it takes away.
NORMS = ("norm1", "norm2")
CHANGES = {
    "time_embedding=fourier": (dict(time_embedding="fourier"), {"fourier/frequencies": (4,)}, ()),
    "time_embedding=adm": (dict(time_embedding="adm"), {}, ()),
    "time_scale": (dict(time_scale=0.25), {}, ()),
    "time_features": (dict(time_features=12), {"time_dense_0/kernel": (12, 32)}, ()),
    "class_input": (dict(class_input="time"), {"class/embedding": (4, 8)}, ()),
    "num_heads": (dict(num_heads=2), {}, ()),
    "head_channels": (dict(head_channels=8), {}, ()),
    "decoder_attention": (dict(decoder_attention="level"), {}, ("up_1_0_attention/",)),
    "resample=pool": (dict(resample="pool"), {}, ("down_0_resize/", "up_1_resize/")),
    "symmetric_padding": (dict(symmetric_padding=True), {}, ()),
    "fir": (dict(fir=(1.0, 3.0, 3.0, 1.0)), {}, ()),
    "skip_rescale": (dict(skip_rescale=True), {}, ()),
    "norm_groups": (dict(norm_groups=4), {}, ()),
    "norm_eps": (dict(norm_eps=1e-2), {}, ()),
    "input_pyramid=skip": (
        dict(input_pyramid="skip"),
        {"down_0_input/kernel": (3, 8), "down_0_input/bias": (8,)},
        (),
    ),
    "input_pyramid=residual": (
        dict(input_pyramid="residual"),
        {"down_0_input/conv/kernel": (3, 3, 3, 8), "down_0_input/conv/bias": (8,)},
        (),
    ),
    "output_pyramid": (
        dict(output_pyramid="skip"),
        {
            "norm_up_1_out/scale": (16,),
            "norm_up_1_out/bias": (16,),
            "conv_up_1_out/kernel": (3, 3, 16, 3),
            "conv_up_1_out/bias": (3,),
        },
        (),
    ),
}


@pytest.fixture(scope="module")
def base() -> Any:
    params = random(jax.eval_shape(tiny().init, jax.random.key(0)))
    return params, np.asarray(tiny().apply(params, X, T, LABELS))


@pytest.mark.parametrize("name", slow_after(6, CHANGES))
def test_each_option_changes_the_parameters_as_it_says_and_the_output(name, base):
    options, added, removed = CHANGES[name]
    model, before = tiny(**options), usual_shapes()
    mine = flat(random(jax.eval_shape(model.init, jax.random.key(0))))
    expected = {k: v for k, v in before.items() if not k.startswith(tuple(removed) or ("-",))}
    assert {k: v.shape for k, v in mine.items()} == expected | added
    # The same numbers, wherever both have them, give another output: the option is not ignored.
    same = {k: v for k, v in flat(base[0]).items() if k in mine and mine[k].shape == v.shape}
    params = traverse_util.unflatten_dict(mine | same, sep="/")
    # Op by op: a program of each option would be compiled anew, while most of the operations are those of another.
    value = np.asarray(model.apply(params, X, T, LABELS))
    assert value.shape == base[1].shape and np.isfinite(value).all()
    assert np.abs(value - base[1]).max() > 1e-3 * np.abs(base[1]).max()


def test_width_of_the_embedding_and_scale_shift_change_the_shapes_that_they_say():
    before, wide = usual_shapes(), shapes_of(tiny(embedding_width=20))
    changed = {k for k in before if before[k] != wide[k]}
    assert changed == {
        k
        for k in before
        if k.startswith(("time_dense", "class/")) or k.endswith("time_proj/kernel")
    }
    assert wide["time_dense_1/kernel"] == (20, 20)
    shifted = shapes_of(tiny(scale_shift=True))
    assert {k for k in before if before[k] != shifted[k]} == {k for k in before if "time_proj" in k}
    assert shifted["down_0_0_res/time_proj/kernel"] == (32, 16)


def test_resampling_blocks_have_a_shortcut_only_if_they_are_told_to():
    blocks = shapes_of(tiny(resample="block"))
    assert blocks["down_0_resize/conv1/kernel"] == (3, 3, 8, 8)
    assert "down_0_resize/shortcut/kernel" not in blocks
    projected = shapes_of(tiny(resample="block", project_resampled=True))
    assert {k for k in projected if k not in blocks} == {
        f"{level}_resize/shortcut/{leaf}"
        for level in ("down_0", "up_1")
        for leaf in ("kernel", "bias")
    }


# ---- blocks written out ------------------------------------------------------------------------------------------


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def dense(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def norm(p: Any, x: np.ndarray, groups: int) -> np.ndarray:
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def convolution(p: Any, x: np.ndarray, pads: Any = (1, 1), stride: int = 1) -> np.ndarray:
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijcd->bhwd", windows, p["kernel"]) + p["bias"]


def filtered(x: np.ndarray, fir: Any, resize: Any) -> np.ndarray:
    function = {"halve": halve, "double": double}.get(resize, lambda x, fir: x)
    return np.asarray(function(jnp.asarray(x, jnp.float32), fir), np.float64)


@pytest.mark.parametrize("fir", [(), (1.0, 3.0, 3.0, 1.0)])
@pytest.mark.parametrize("resize", ["halve", "double", None])
@pytest.mark.parametrize("project", [False, True])
def test_a_residual_block_with_all_options_is_that_written_out(resize, fir, project):
    block = ResBlock(
        8, 0.0, jnp.float32, scale_shift=True, resize=resize, fir=fir, project=project, rescale=True
    )
    x, emb = RNG.normal(size=(2, 8, 8, 8)), RNG.normal(size=(2, 12))
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(emb, jnp.float32), None
    params = random(jax.eval_shape(block.init, jax.random.key(0), *arguments)["params"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = convolution(p["conv1"], filtered(swish(norm(p["norm1"], x, 2)), fir, resize))
    scale, shift = np.split(dense(p["time_proj"], swish(emb))[:, None, None], 2, axis=-1)
    h = convolution(p["conv2"], swish(norm(p["norm2"], h, 2) * (1 + scale) + shift))
    path = filtered(x, fir, resize)
    expected = ((dense(p["shortcut"], path) if project else path) + h) / np.sqrt(2)
    value = run(block, params, *arguments)
    # A dozen float32 operations on numbers up to 10.
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_heads_attend_each_in_its_own_part_of_the_channels():
    module = SelfAttention(jnp.float32, heads=2, rescale=True)
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32)
    params = random(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    pixels = norm(p["norm"], np.asarray(x, np.float64), 2).reshape(2, 16, 8)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k, v = (dense(p[n], pixels)[..., part] for n in ("query", "key", "value"))
        weights = np.exp(q @ k.swapaxes(1, 2) / 2)  # sqrt(4)
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    mixed = dense(p["out"], np.concatenate(heads, -1)).reshape(x.shape)
    value = run(module, params, x)
    np.testing.assert_allclose(value, (x + mixed) / np.sqrt(2), atol=2e-5)


def test_strided_convolutions_with_and_without_a_filter_are_those_written_out():
    x = RNG.normal(size=(2, 8, 8, 3))
    image = jnp.asarray(x, jnp.float32)
    fir = (1.0, 3.0, 3.0, 1.0)
    down = Downsample(jnp.float32, 5)
    params = random(jax.eval_shape(down.init, jax.random.key(0), image)["params"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["conv"]

    def apply(module: Any) -> Any:
        return run(module, params, image)

    np.testing.assert_allclose(apply(down), convolution(p, x, (0, 1), 2), atol=1e-5)
    symmetric = Downsample(jnp.float32, 5, symmetric=True)
    np.testing.assert_allclose(apply(symmetric), convolution(p, x, (1, 1), 2), atol=1e-5)
    # EDM's order: the convolution with a border, then the filter; linear maps of one image commute.
    taps = np.outer(fir, fir) / 64
    wide = convolution({**p, "bias": 0}, x, (2, 2))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (4, 4), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwcij,ij->bhwc", windows, taps) + p["bias"]
    np.testing.assert_allclose(apply(Downsample(jnp.float32, 5, fir)), expected, atol=1e-5)


def test_the_filtered_upsampling_is_a_transposed_convolution_and_a_filter():
    x = RNG.normal(size=(1, 4, 4, 3))
    up, image = Upsample(jnp.float32, (1.0, 3.0, 3.0, 1.0)), jnp.asarray(x, jnp.float32)
    params = random(jax.eval_shape(up.init, jax.random.key(0), image)["params"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["conv"]
    # Zeros between and around, the kernel, then the filter: StyleGAN2's upsample_conv_2d.
    spread = np.zeros((1, 13, 13, 3))
    spread[:, 3:10:2, 3:10:2] = x
    wide = convolution({**p, "bias": 0}, spread, (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (4, 4), axis=(1, 2))
    taps = 4 * np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    expected = np.einsum("bhwcij,ij->bhwc", windows, taps) + p["bias"]
    np.testing.assert_allclose(run(up, params, image), expected, atol=1e-5)


def test_embeddings_of_the_time():
    t = np.array([0.0, 3.0, 700.5])
    angles = t[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    value = time_embedding(jnp.asarray(t, jnp.float32), 8, endpoint=False)
    np.testing.assert_allclose(value, expected, atol=5e-5)  # An angle of 700 has five digits left.
    module = FourierEmbedding(8)
    params = module.init(jax.random.key(0), jnp.zeros(1))["params"]
    frequencies = np.asarray(params["frequencies"], np.float64)
    angles = 2 * np.pi * np.array([[0.1], [-0.7]]) * frequencies
    value = run(module, params, jnp.array([0.1, -0.7]))
    expected = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    gradient = jax.grad(lambda p: run(module, p, jnp.array([0.3])).sum())(params)
    np.testing.assert_array_equal(gradient["frequencies"], 0)


# Numbers of parameters of the original code, made with torch (benchmarks/parity/presets.py); with classes, ours
# have one row more: for none.
SIZES = {
    "ddpm": (32, 0, 3, 35_746_307),
    "ddpm_256": (256, 0, 3, 113_673_219),
    "iddpm": (32, 0, 6, 52_546_438),
    "iddpm_64": (64, 0, 6, 121_063_942),
    "adm_64": (64, 1000, 6, 295_904_454),
    "adm_128": (128, 1000, 6, 421_529_606),
    "adm_256": (256, 1000, 6, 553_838_086),
    "ddpmpp": (32, 0, 3, 61_804_419),
    "ddpmpp_deep": (32, 0, 3, 106_632_579),
    "ncsnpp": (32, 0, 3, 62_758_915),
    "ncsnpp_deep": (32, 0, 3, 107_587_075),
    "ncsnpp_256": (256, 0, 3, 65_574_549),
    "edm_ddpmpp": (32, 0, 3, 55_732_739),
    "edm_ncsnpp": (32, 0, 3, 56_395_651),
    "edm_adm": (64, 1000, 3, 295_899_267),
}


@pytest.mark.parametrize("name", slow_after(4, PRESETS))
def test_presets_have_the_numbers_of_parameters_of_the_published_networks(name):
    size, classes, outputs, expected = SIZES[name]
    module = UNet(**preset(name), num_classes=classes, out_channels=outputs)
    assert misfit(module, (size, size, 3)) is None
    model = as_functions(module, (size, size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    row = shapes["class"]["embedding"].shape[1] if classes else 0
    assert count_parameters(shapes) - row == expected


def test_an_unknown_preset_names_the_others():
    with pytest.raises(InputError, match="no preset 'ddpmp'; there are ddpm, .* Did you mean"):
        preset("ddpmp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=2, head_channels=8), "set one of them"),
        (dict(num_heads=3), "num_heads is 3; it must divide the 16 channels"),
        (dict(head_channels=32), "head_channels is 32; it must divide the 16 channels"),
        (
            dict(head_channels=16, attention_resolutions=(8, 4)),
            "head_channels is 16; it must divide the 8 channels of a level with attention",
        ),
        (dict(project_resampled=True), "it is for block"),
        (dict(symmetric_padding=True, resample="pool"), "no strided convolution"),
        (dict(fir=(1.0, 2.0, 1.0)), "an even number of taps"),
    ],
)
def test_options_that_exclude_one_another_are_refused(options, message):
    assert message in (misfit(UNet(**{**TINY, **options}), SHAPE) or "")
