"""The classifier's features: trained once from a fixed seed, kept, and refused where there is nothing to learn from."""

import concurrent.futures
import dataclasses
import io
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import InputError
from diffusion_jax.features import FEATURES, classifier
from diffusion_jax.features.classifier_training import Recipe, native_shape, prepare
from diffusion_jax.lifecycle import stopping

QUICK = Recipe(steps=30, batch_size=16, most_held_out=20)


def bright_or_dark(num_images: int = 200, shape: tuple[int, ...] = (6, 6, 1)) -> data.Split:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=num_images)
    levels = (60 + 120 * labels).reshape(-1, 1, 1, 1)
    images = rng.normal(levels, 20, (num_images, *shape)).clip(0, 255).astype(np.uint8)
    return data.from_arrays(images, labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder, split = tmp_path_factory.mktemp("cache"), bright_or_dark()
    return folder, split, classifier.trained_on(split, folder, QUICK)


def test_the_logits_of_its_features_find_the_classes(trained):
    _, split, extractor = trained
    batch = split.read(np.arange(100))
    features = np.asarray(jax.jit(extractor.apply)(extractor.params, batch["image"]))
    assert features.shape == (100, extractor.num_features) and features.dtype == np.float32
    assert np.mean(extractor.logits(features).argmax(axis=1) == batch["label"]) > 0.95


def test_the_weights_are_trained_once_and_kept(trained, monkeypatch: pytest.MonkeyPatch):
    folder, split, extractor = trained
    monkeypatch.setattr(classifier, "train", lambda *_: pytest.fail("trained again"))
    again = classifier.trained_on(split, folder, QUICK)
    assert again.weights_sha256 == extractor.weights_sha256
    jax.tree.map(np.testing.assert_array_equal, again.params, extractor.params)


def test_all_processes_use_the_weights_of_the_first(trained, monkeypatch: pytest.MonkeyPatch):
    folder, split, extractor = trained
    halved = jax.tree.map(lambda array: array / 2, extractor.params)
    monkeypatch.setattr(classifier, "arrays_of_first", lambda *_: halved)
    other = classifier.trained_on(split, folder, QUICK)
    assert other.weights_sha256 != extractor.weights_sha256
    assert other.logits is not None
    features = np.ones((1, extractor.num_features), np.float32)
    np.testing.assert_allclose(other.logits(features), extractor.logits(features) / 2, rtol=1e-5)


@pytest.mark.slow
def test_the_training_says_its_accuracy_in_one_line_and_is_the_same_every_time(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, split, extractor = trained
    again = classifier.trained_on(split, tmp_path, QUICK)
    assert again.weights_sha256 == extractor.weights_sha256
    (line,) = capsys.readouterr().err.splitlines()
    assert "trained on 180 images" in line and "held out" in line and str(tmp_path) in line


def test_other_images_and_another_recipe_train_other_weights(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, split, extractor = trained
    asked = []

    def record(*_):
        asked.append(1)
        return classifier.Trained(extractor.params, 180, 1.0, 1.0)

    monkeypatch.setattr(classifier, "train", record)
    for images, recipe in [
        (split, QUICK),
        (bright_or_dark(199), QUICK),
        (split, dataclasses.replace(QUICK, seed=1)),
        (split, QUICK),
    ]:
        classifier.trained_on(images, tmp_path, recipe)
    assert len(asked) == 3


def other_arrays(_: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, features=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-30], lambda _: b"no archive", other_arrays]
)
def test_a_damaged_file_of_weights_is_replaced(
    trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage,
):
    folder, split, extractor = trained
    (kept,) = (folder / "features").glob("*.npz")
    (tmp_path / "features").mkdir()
    damaged = tmp_path / "features" / kept.name
    damaged.write_bytes(damage(kept.read_bytes()))
    made = classifier.Trained(extractor.params, 180, 1.0, 1.0)
    monkeypatch.setattr(classifier, "train", lambda *_: made)
    again = classifier.trained_on(split, tmp_path, QUICK)
    assert capsys.readouterr().err.startswith(f"note: {damaged} is made again: it ")
    assert again.weights_sha256 == extractor.weights_sha256
    assert damaged.stat().st_size == kept.stat().st_size


def test_of_two_that_need_the_weights_at_once_one_trains(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, split, extractor = trained
    asked = []

    def slow(*_):
        asked.append(1)
        time.sleep(0.2)
        return classifier.Trained(extractor.params, 180, 1.0, 1.0)

    monkeypatch.setattr(classifier, "train", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: classifier.trained_on(split, tmp_path, QUICK), range(3)))
    assert len(asked) == 1
    assert {one.weights_sha256 for one in made} == {extractor.weights_sha256}


@pytest.mark.slow
def test_two_images_are_enough_and_large_colors_are_resized(tmp_path: Path):
    split = bright_or_dark(8, (40, 36, 3))
    rows = np.array([list(split.read(np.arange(8))["label"]).index(k) for k in (0, 1)])
    batch = split.read(rows)
    two = data.from_arrays(batch["image"], batch["label"])
    extractor = classifier.trained_on(two, tmp_path, Recipe(batch_size=2, epochs=2))
    features = jax.jit(extractor.apply)(extractor.params, batch["image"])
    assert np.isfinite(features).all() and "32x32 RGB" in extractor.preprocessing


def test_images_without_labels_of_two_classes_are_refused_with_other_features(tmp_path: Path):
    images = np.zeros((4, 6, 6, 1), np.uint8)
    zero = np.zeros(4, int)
    splits = [
        (data.from_arrays(images), "no labels"),
        (data.from_arrays(images, zero), "one class"),
        (data.from_arrays(images, zero, ("a", "b")), "one class"),
    ]
    for split, has in splits:
        with pytest.raises(InputError, match=f"the data has {has}; use lite0.*inception.*dinov2"):
            FEATURES["classifier"].bind(split=lambda split=split: split, cache_dir=tmp_path)()
    assert not list(tmp_path.iterdir())


def test_a_signal_stops_the_training_and_leaves_no_weights(tmp_path: Path):
    stopping.request("SIGTERM")
    try:
        with pytest.raises(stopping.Stopped):
            classifier.trained_on(bright_or_dark(), tmp_path, QUICK)
    finally:
        stopping.forget()
    assert not list(tmp_path.rglob("*.npz"))


def test_gray_images_are_rgb_of_equal_channels_and_large_ones_are_made_small():
    rng = np.random.default_rng(0)
    gray = rng.integers(256, size=(2, 6, 6, 1)).astype(np.uint8)
    color = np.repeat(gray, 3, axis=3)
    for shape in ((6, 6, 1), (6, 6, 3), (4, 5, 3)):
        np.testing.assert_allclose(prepare(gray, shape), prepare(color, shape), atol=1e-6)
        assert prepare(gray, shape).shape == (2, *shape)
    assert np.allclose(prepare(gray, (6, 6, 1)), gray / 127.5 - 1, atol=1e-6)
    assert native_shape((28, 200, 3), Recipe()) == (28, 32, 3)
