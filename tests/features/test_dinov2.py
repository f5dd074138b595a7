"""DINOv2's features are those of transformers' torch model, from files with its names of tensors."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.features import FEATURES
from diffusion_jax.features.dinov2 import SIZE, preprocess
from diffusion_jax.features.networks.vit import (
    LARGE,
    Size,
    VisionTransformer,
    from_transformers,
    tensors,
)

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import random_inputs  # noqa: E402

# Written by benchmarks/parity/dinov2.py.
FIXTURE = Path(__file__).parent / "fixtures" / "dinov2_of_transformers.npz"


@pytest.mark.parametrize("way", ["hub", "transformers"])
def test_features_are_those_of_the_torch_model_with_either_resizing_of_positions(way):
    size = Size(**random_inputs.TINY)
    params = from_transformers(
        random_inputs.random_weights(tensors(size)), size, SIZE, positions=way
    )
    apply = jax.jit(lambda params, x: VisionTransformer(size).apply({"params": params}, x))
    expected = np.load(FIXTURE)
    for height, width in random_inputs.SIZES:
        images = random_inputs.random_images((height, width))
        theirs = expected[f"{way}/{height}x{width}"]
        features = apply(params, preprocess(jnp.asarray(images)))
        np.testing.assert_allclose(features, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_two_resizings_of_positions_give_other_features():
    expected = np.load(FIXTURE)
    for height, width in random_inputs.SIZES:
        ours, others = (expected[f"{way}/{height}x{width}"] for way in ("hub", "transformers"))
        assert np.abs(ours - others).max() > 1e-4 * np.abs(ours).max()


def test_gray_images_count_as_rgb_of_equal_channels():
    gray = np.random.default_rng(0).integers(256, size=(2, 9, 7, 1)).astype(np.uint8)
    color = np.repeat(gray, 3, axis=3)
    np.testing.assert_array_equal(preprocess(jnp.asarray(gray)), preprocess(jnp.asarray(color)))


def test_the_tensors_of_the_large_network_have_its_number_of_parameters():
    counted = sum(int(np.prod(shape)) for shape in tensors(LARGE).values())
    assert counted + LARGE.width == 304_368_640  # The mask token is not used.


def test_a_file_of_another_network_is_refused(tmp_path: Path):
    size = Size(**random_inputs.TINY)
    file = tmp_path / "tiny.npz"
    np.savez(file, **random_inputs.random_weights(tensors(size)))  # pyright: ignore[reportArgumentType]
    make = FEATURES["dinov2"].bind(cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"embeddings.cls_token .* has the shape \(1, 1, 32\)"):
        make(weights=str(file))
