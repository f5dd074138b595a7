"""Metrics on features against torch-fidelity and prdc, whose values benchmarks/parity/metrics.py has written down."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.inception_score import inception_score
from diffusion_jax.metrics.kid import kernel_distance
from diffusion_jax.metrics.precision_recall import precision_recall

PEERS = json.loads((Path(__file__).parent / "fixtures" / "peers.json").read_text())


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(32, 32)) / 6
    images = rng.normal(size=(700, 32)) @ mix + 0.2
    reference = rng.normal(size=(900, 32)) @ mix
    return images.astype(np.float32), reference.astype(np.float32)


def test_the_frechet_distance_is_torch_fidelitys(features: tuple[np.ndarray, np.ndarray]):
    expected = PEERS["fd"]["frechet_inception_distance"]
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_torch_fidelitys(features: tuple[np.ndarray, np.ndarray]):
    found = kernel_distance(*features, num_subsets=20, subset_size=300, seed=2020)
    expected = PEERS["kid"]["kernel_inception_distance_mean"]  # Its kernel is computed in float32.
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_the_inception_score_is_torch_fidelitys(features: tuple[np.ndarray, np.ndarray]):
    found = inception_score(features[0], num_splits=10, seed=2020)
    assert found.value == pytest.approx(PEERS["is"]["inception_score_mean"], rel=1e-9)
    # Theirs is the standard deviation over the parts, with a division by their number.
    assert found.stderr * 3 == pytest.approx(PEERS["is"]["inception_score_std"], rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_and_coverage_are_prdcs(
    features: tuple[np.ndarray, np.ndarray], k: int
):
    found = precision_recall(*features, num_neighbors=k)
    for name, expected in PEERS["neighbors"][f"k={k}"].items():
        assert getattr(found, name).value == pytest.approx(expected, rel=1e-12)
