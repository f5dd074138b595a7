"""Features in batches, on disk and back."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from second_process import follow

from diffusion_jax.data import from_arrays
from diffusion_jax.errors import InputError, RunError
from diffusion_jax.features import Extractor
from diffusion_jax.metrics.feature_set import FILE, FeatureSet, extract
from diffusion_jax.metrics.frechet import frechet_distance
from diffusion_jax.metrics.moments import statistics_of
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.resumable import Batches

WEIGHTS = np.random.default_rng(0).normal(size=(4 * 4 * 3, 5)).astype(np.float32)
EXTRACTOR = Extractor(
    "linear",
    WEIGHTS,
    lambda params, images: images.reshape(len(images), -1).astype(jnp.float32) @ params,
    5,
    "none",
    "0" * 64,
)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (37, 4, 4, 3), dtype=np.uint8)


def expected(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) @ WEIGHTS


@pytest.mark.parametrize("devices, batch_size", [(1, 37), (2, 7), (8, 16)])
def test_features_depend_neither_on_batches_nor_on_devices(
    images: np.ndarray, devices: int, batch_size: int
):
    mesh = sharding.make_mesh(devices, 1)
    found = extract(EXTRACTOR, from_arrays(images), mesh, batch_size=batch_size)
    np.testing.assert_allclose(found, expected(images), rtol=1e-5)


def test_a_network_is_compiled_once_for_many_sets_of_images(images: np.ndarray):
    traced = chex.assert_max_traces(EXTRACTOR.apply, n=1)
    once = dataclasses.replace(EXTRACTOR, apply=traced)
    mesh = sharding.make_mesh(1, 1)
    for part in (images[:20], images[17:], images):
        found = extract(once, from_arrays(part), mesh, batch_size=16)
        np.testing.assert_allclose(found, expected(part), rtol=1e-5)


def test_a_killed_extraction_goes_on_where_it_was(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written, write = [], Batches.write

    def dying(self: Batches, arrays: dict[str, np.ndarray]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arrays["indices"])
        write(self, arrays)

    split, mesh = from_arrays(images), sharding.make_mesh(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            extract(EXTRACTOR, split, mesh, batch_size=8, folder=tmp_path)
    read: list[int] = []

    def counting(indices: np.ndarray) -> Any:
        read.extend(indices)
        return split.read(indices)

    told: list[int] = []
    again = dataclasses.replace(split, read=counting)
    found = extract(EXTRACTOR, again, mesh, batch_size=8, folder=tmp_path, done=told.append)
    np.testing.assert_allclose(found, expected(images), rtol=1e-5)
    assert min(read) == 16, "the first two batches are not computed again"
    assert told == [16, 8, 8, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.f32", "features.json"]


def test_kept_features_are_used_if_they_are_whole_and_of_the_same_network(
    images: np.ndarray, tmp_path: Path
):
    split, mesh = from_arrays(images), sharding.make_mesh(1, 1)
    extract(EXTRACTOR, split, mesh, folder=tmp_path)
    other = Extractor(**{**vars(EXTRACTOR), "params": 2 * WEIGHTS})  # Of the same checksum.
    kept = extract(other, split, mesh, folder=tmp_path)
    np.testing.assert_allclose(kept, expected(images), rtol=1e-5)
    renewed = extract(dataclasses.replace(other, weights_sha256="1" * 64), split, folder=tmp_path)
    np.testing.assert_allclose(renewed, 2 * expected(images), rtol=1e-5)
    damaged = bytearray((tmp_path / FILE).read_bytes())
    damaged[40] ^= 1
    (tmp_path / FILE).write_bytes(damaged)
    np.testing.assert_allclose(
        extract(EXTRACTOR, split, folder=tmp_path), expected(images), rtol=1e-5
    )


def test_a_process_learns_that_the_first_could_not_keep_the_features(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    split, mesh = from_arrays(images), sharding.make_mesh(1, 1)
    decisions = {"whether features are kept": False, "finished batches": []}
    with monkeypatch.context() as patch:
        follow(patch, decisions)
        assert extract(EXTRACTOR, split, mesh, folder=tmp_path).shape == (0, 5)
    follow(monkeypatch, decisions, {"write features": "disk full"})
    with pytest.raises(RunError, match="process 0: disk full"):
        extract(EXTRACTOR, split, mesh, folder=tmp_path)


def test_a_set_of_statistics_alone_has_no_features(images: np.ndarray):
    known = FeatureSet("ref.npz", known_statistics=statistics_of(expected(images)))
    assert known.statistics.num_images == 37
    with pytest.raises(InputError, match=r"kid needs the features .* but ref.npz holds their mean"):
        known.rows("kid")


def test_the_distance_of_images_is_that_of_their_features(images: np.ndarray):
    found = frechet_distance(images, expected(images[:20]), features=EXTRACTOR)
    assert found == pytest.approx(
        frechet_distance(expected(images), expected(images[:20])), rel=1e-5
    )


def test_images_of_two_channels_and_no_images_are_refused():
    for shape, message in (((3, 4, 4, 2), "2 channels"), ((0, 4, 4, 3), "no images")):
        with pytest.raises(InputError, match=message):
            extract(EXTRACTOR, from_arrays(np.zeros(shape, np.uint8)))
