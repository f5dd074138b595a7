"""The classifier of noisy images: its heads written out in float64, and what it shares with the U-Net."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.models.networks import ClassifierUNet, UNet, as_functions
from diffusion_jax.models.networks.classifier_unet import POOLS, AttentionPool

SHAPE, CLASSES = (8, 8, 3), 5
TINY: dict[str, Any] = dict(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
RNG = np.random.default_rng(0)
X, T = jnp.asarray(RNG.normal(size=(2, *SHAPE)), jnp.float32), jnp.array([3.0, 70.5])


def drawn(shapes: Any) -> Any:
    """Returns parameters none of which is special."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0]), jnp.float32),
        shapes,
    )


def with_maps(pool: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """Returns logits, what each module has put out, and the parameters."""
    module = ClassifierUNet(**TINY, out_channels=CLASSES, pool=pool)
    params = drawn(jax.eval_shape(as_functions(module, SHAPE).init, jax.random.key(0)))
    logits, state = module.apply({"params": params}, X, T, capture_intermediates=True)
    maps = {
        name: np.asarray(of["__call__"][0], np.float64)
        for name, of in state["intermediates"].items()
        if name != "__call__"
    }
    return np.asarray(logits), maps, jax.tree.map(lambda a: np.asarray(a, np.float64), params)


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def test_the_adaptive_head_is_linear_in_the_mean_over_the_pixels():
    logits, maps, params = with_maps("adaptive")
    expected = linear(params["logits"], maps["norm_out"].mean((1, 2)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
def test_spatial_heads_see_the_means_of_all_feature_maps(pool):
    logits, maps, params = with_maps(pool)
    seen = ("conv_in", "down_0_0_res", "down_0_resize", "down_1_0_attention", "middle_1_res")
    hidden = linear(params["hidden"], np.concatenate([maps[name].mean((1, 2)) for name in seen], 1))
    if pool == "spatial":
        hidden = np.maximum(hidden, 0)
    else:  # A norm of groups of 64 neighbors, then swish.
        groups = hidden.reshape(2, 32, 64)
        scaled = (groups - groups.mean(2, keepdims=True)) / np.sqrt(
            groups.var(2, keepdims=True) + 1e-6
        )
        hidden = scaled.reshape(2, -1) * params["norm_hidden"]["scale"]
        hidden += params["norm_hidden"]["bias"]
        hidden /= 1 + np.exp(-hidden)
    expected = linear(params["logits"], hidden)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_attention_head_is_the_attention_of_the_mean():
    module, x = AttentionPool(CLASSES, heads=2), RNG.normal(size=(2, 3, 3, 8))
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x, jnp.float32)))
    out: Any = module.apply(params, jnp.asarray(x, jnp.float32))
    p: Any = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    pixels = x.reshape(2, 9, 8)
    tokens = np.concatenate([pixels.mean(1, keepdims=True), pixels], 1) + p["positions"]
    q, k, v = np.split(linear(p["qkv"], tokens), 3, -1)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(np.einsum("bc,bnc->bn", q[:, 0, head], k[..., head]) / 2)
        weights /= weights.sum(1, keepdims=True)
        parts.append(np.einsum("bn,bnc->bc", weights, v[..., head]))
    expected = linear(p["out"], np.concatenate(parts, -1))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_it_has_the_encoder_and_middle_of_the_unet(pool):
    classifier = ClassifierUNet(**TINY, out_channels=CLASSES, pool=pool)
    ours, unet = (
        jax.eval_shape(as_functions(module, SHAPE).init, jax.random.key(0))
        for module in (classifier, UNet(**TINY))
    )
    shared = [name for name in unet if name.startswith(("time", "conv_in", "down", "middle"))]
    assert {name: ours[name] for name in shared} == {name: unet[name] for name in shared}
    assert {name.split("_")[0] for name in ours.keys() - set(shared)} <= {
        *("norm", "logits", "pool", "hidden")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "out_channels is None"),
        (dict(out_channels=5, pool="mean"), "unknown pool 'mean'; choose one of adaptive"),
        (dict(out_channels=5, output_pyramid="skip"), "output_pyramid is 'skip', but a classifier"),
    ],
)
def test_options_that_a_classifier_has_not_are_refused(options, message):
    with pytest.raises(InputError) as error:
        as_functions(ClassifierUNet(**TINY, **options), SHAPE)
    assert message in str(error.value)
