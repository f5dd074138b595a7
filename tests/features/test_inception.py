"""The FID's Inception-v3, against features of torch's networks with the same random weights.

The fixture holds projections of the features by pytorch-fid 0.3.0, with its own resize and with clean-fid 0.1.35's, and
by torch-fidelity 0.4.0; `benchmarks/parity/inception.py --fixture` writes it.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.features import FEATURES, inception
from diffusion_jax.features.networks.inception import Conv, average_pool, fold, tensors

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from random_inception import SIZES, pictures, projected, random_weights

FIXTURE = Path(__file__).parent / "fixtures" / "inception.npz"
SHAPES = {**tensors(), "fc.weight": (1008, 2048)}


@pytest.fixture(scope="module")
def weights():
    return random_weights(SHAPES)


def extractor(monkeypatch, weights, resize, sha256="0" * 64):
    monkeypatch.setattr(inception, "load_weights", lambda *_: (weights, sha256))
    return FEATURES["inception"].from_fields({"resize": resize}, cache_dir=Path())


CASES = [
    pytest.param(how, size, marks=() if (how, size) == ("pytorch", (8, 8)) else pytest.mark.slow)
    for how in inception.PREPROCESSING
    for size in SIZES
]


@pytest.mark.parametrize(("how", "size"), CASES)
def test_features_are_those_of_torch(monkeypatch, weights, how, size):
    made = extractor(monkeypatch, weights, how)
    found = jax.jit(made.apply)(made.params, pictures(size, 2)[:1])
    assert found.shape == (1, made.num_features)
    expected = np.load(FIXTURE)[f"{how}/{size[0]}x{size[1]}"][:1]
    difference = np.abs(projected(np.asarray(found)) - expected).max()
    assert difference <= 2e-5 * np.abs(expected).max()


def test_there_is_one_tensor_for_each_of_the_published_network():
    convolutions = [name for name in tensors() if name.endswith("conv.weight")]
    assert len(convolutions) == 94
    # The file of 95,628,359 bytes has these in float32, the last layer's bias, and names.
    assert 0 < 95_628_359 / 4 - sum(int(np.prod(s)) for s in SHAPES.values()) - 1008 < 25_000


def test_clean_is_the_bicubic_filter_of_pil_clipped_and_centered():
    images = pictures((20, 31), 2)
    ours = inception.preprocess(jnp.asarray(images), "clean")
    for image, x in zip(images, ours, strict=True):
        for channel in range(3):
            pil = Image.fromarray(image[..., channel].astype(np.float32), mode="F")
            resized = np.asarray(pil.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
            np.testing.assert_allclose(x[..., channel], (resized - 128) / 128, atol=2e-6)


@pytest.mark.parametrize(
    ("how", "black", "white"),
    [("pytorch", -1, 1), ("clean", -1, 127 / 128), ("tensorflow", -1, 127 / 128)],
)
def test_gray_images_are_three_equal_channels_in_the_scale_of_the_library(how, black, white):
    flat = jnp.asarray([0, 255], jnp.uint8)[:, None, None, None] * jnp.ones((1, 9, 7, 1), jnp.uint8)
    x = inception.preprocess(flat, how)
    assert x.shape == (2, 299, 299, 3)
    np.testing.assert_allclose(x[0], black, atol=1e-6)
    np.testing.assert_allclose(x[1], white, atol=1e-6)


def test_a_folded_convolution_is_the_convolution_and_its_batch_normalization(weights):
    name = "Mixed_5b.branch1x1"
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 192)).astype(np.float32)
    parts = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, variance = (weights[f"{name}.bn.{part}"] for part in parts)
    y = x @ weights[f"{name}.conv.weight"][..., 0, 0].T
    expected = np.maximum((y - mean) / np.sqrt(variance + 1e-3) * scale + shift, 0)
    params = jax.tree.map(jnp.asarray, fold(weights)["Mixed_5b"]["branch1x1"])
    found: Any = Conv(64).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_average_pool_leaves_out_what_is_beyond_the_border():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(4):
        for j in range(5):
            window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            expected[0, i, j] = window.mean(axis=(0, 1))
    np.testing.assert_allclose(average_pool(jnp.asarray(x)), expected, atol=1e-6)


def test_logits_leave_out_the_bias(monkeypatch, weights):
    made = extractor(monkeypatch, weights, "tensorflow")
    features = np.random.default_rng(0).random((3, 2048)).astype(np.float32)
    assert made.logits is not None
    np.testing.assert_allclose(made.logits(features), features @ weights["fc.weight"].T, rtol=1e-5)
    assert made.preprocessing == "bilinear 299x299 (TensorFlow 1)"


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_round_nothing_that_they_multiply(monkeypatch, weights, platform):
    made = extractor(monkeypatch, weights, "clean")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    traced = jax.jit(made.apply).trace(made.params, images)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [
        line for line in text.splitlines() if "convolution" in line or "dot_general" in line
    ]
    products = [line for line in products if "stablehlo." in line]
    assert len(products) > 30
    assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("sha256", "published"), [("0" * 64, False), (inception.PUBLISHED.sha256, True)]
)
def test_weights_count_as_published_by_their_checksum(monkeypatch, weights, sha256, published):
    assert extractor(monkeypatch, weights, "pytorch", sha256).published is published
