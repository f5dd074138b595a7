"""The self-check of distances: sound ones pass it on many seeds, and each kind of broken one fails."""

from collections.abc import Callable

import numpy as np
import pytest

from diffusion_jax.data import from_arrays
from diffusion_jax.features import Extractor, inception
from diffusion_jax.metrics import IMAGE_METRICS, FeatureSet, MeanStdErr, Measured
from diffusion_jax.metrics.published import PUBLISHED, reproduce
from diffusion_jax.metrics.self_check import (
    Degradation,
    Level,
    SelfCheck,
    make_ladders,
    random_halves,
    self_check,
    table_row,
)

Features = Callable[[np.ndarray, Degradation], np.ndarray]
METRICS = {
    name: IMAGE_METRICS[name].from_fields({"kid_subsets": 1}, seed=0)
    for name in ("fd", "kid", "fd_inf", "pr", "is")
}


def pictures(num_images: int, seed: int) -> np.ndarray:
    """Squares at random places in noise of their own brightness."""
    rng = np.random.default_rng(seed)
    images = rng.integers(40, 90, (num_images, 1, 1, 1)) + np.zeros((num_images, 16, 16, 1))
    for image, (top, left) in zip(images, rng.integers(0, 10, (num_images, 2)), strict=True):
        image[top : top + 5, left : left + 5] += 120
    return images.astype(np.uint8)


def sound(images: np.ndarray, worse: Degradation | None = None) -> np.ndarray:
    """Mean, contrast, and the sizes of differences of neighbors."""
    del worse
    x = images[..., 0].astype(np.float64) / 255
    steps = [np.abs(np.diff(x, axis=axis)) for axis in (1, 2)]
    columns = [x.mean((1, 2)), x.std((1, 2)), *(s.mean((1, 2)) for s in steps)]
    columns += [s.max((1, 2)) for s in steps]
    return np.stack(columns, 1).astype(np.float32)


def checked(features: Features, images: np.ndarray, seed: int = 0) -> SelfCheck:
    split = from_arrays(images)
    one, other = random_halves(len(images), seed)

    def degraded(worse: Degradation) -> FeatureSet:
        rows = worse.of(split, one).read(np.arange(len(one)))["image"]
        return FeatureSet("x", features(rows, worse))

    ladders = [
        [(worse, degraded(worse)) for worse in ladder]
        for ladder in make_ladders(split.image_shape, seed)
    ]
    halves = [FeatureSet("x", sound(images[half])) for half in (one, other)]
    return self_check(halves[0], halves[1], ladders, METRICS)


@pytest.mark.parametrize("seed", range(8))
def test_sound_features_pass_with_figures_of_each_level(seed: int):
    found = checked(sound, pictures(400, seed), seed)
    assert found.failures == []
    assert found.distances == ["fd", "kid", "fd_inf"] and found.unbiased == ["kid"]
    levels = [f"noise {amount}" for amount in (5, 10, 20, 40, 80)]
    levels += [f"blur {amount}" for amount in (0.5, 0.794, 1.26, 2)]
    assert [level.name for ladder in found.ladders for level in ladder] == levels
    record = found.record()
    assert [level["amount"] for level in record["noise"]] == [5, 10, 20, 40, 80]
    assert record["halves"].keys() == {"fd", "kid", "fd_inf", "pr"}, "what has a reference"
    assert record["blur"][-1].keys() == {"amount", "fd", "kid", "fd_inf"}, "distances"


def test_a_level_is_told_once_it_is_measured_as_a_line_of_a_table():
    rows = np.random.default_rng(0).normal(size=(2, 50, 2)).astype(np.float32)
    one, other = (FeatureSet("x", of_half) for of_half in rows)
    told: list[str] = []
    ladder = [(Degradation("noise", 5.0), one), (Degradation("noise", 10.0), one)]
    figures = ["precision", "kid"]
    self_check(one, other, [ladder], METRICS, lambda level: told.append(level.row(figures)))
    assert [line.split("  ")[0] for line in told] == ["halves", "noise 5", "noise 10"]
    heading = table_row("", figures)
    column = heading.index("kid")
    assert len({line[column:] for line in told}) == 1, "the same features"
    assert told[0][:column].split()[1] and not told[1][8:column].strip(), "a ladder has no pr"


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_features_that_ignore_a_degradation_fail(kind: str):
    images = pictures(400, 0)
    clean = images[random_halves(400)[0]]
    failures = checked(
        lambda degraded, worse: sound(clean if worse.kind == kind else degraded), images
    ).failures
    assert len(failures) == 3, "each distance says so, and only of this ladder"
    last = {"noise": "noise 80", "blur": "blur 2"}[kind]
    assert all(f.endswith(f"({last}) only, less than 3 standard errors") for f in failures)


def test_a_distance_that_falls_while_images_get_worse_fails():
    images = pictures(400, 0)
    clean = images[random_halves(400)[0]]
    failures = checked(
        lambda degraded, worse: sound(clean if worse.amount == 80 else degraded), images
    ).failures
    (said,) = [f for f in failures if f.startswith("fd falls")]
    assert said.startswith("fd falls from") and said.endswith("(noise 80)")


def test_halves_that_are_not_alike_fail():
    features = np.random.default_rng(0).normal(size=(2, 300, 3)).astype(np.float32)
    shifted = FeatureSet("x", features[1] + 0.4)
    found = self_check(FeatureSet("x", features[0]), shifted, [], {"kid": METRICS["kid"]})
    (said,) = found.failures
    assert said.startswith("kid of two halves is") and said.endswith("3 standard errors from 0")


def test_figures_that_are_not_numbers_fail():
    level = Level(None, {"kid": Measured({"kid": MeanStdErr(np.nan, 1.0)})})
    assert len(SelfCheck(["kid"], ["kid"], level, [[level]]).failures) == 3


def test_noise_of_an_image_depends_on_the_seed_and_its_index_alone():
    images = from_arrays(np.full((6, 4, 4, 3), 128, np.uint8))
    noise = Degradation("noise", 20.0, seed=3)
    every = noise.of(images, np.arange(6)).read(np.arange(6))["image"]
    some = noise.of(images, np.array([1, 4])).read(np.array([1, 0, 1]))["image"]
    np.testing.assert_array_equal(some, every[[4, 1, 4]])
    other = Degradation("noise", 20.0, seed=4).of(images, np.arange(6)).read(np.arange(6))["image"]
    assert (other != every).mean() > 0.9


def test_degradations_have_the_amounts_that_they_say():
    gray = np.full((50, 16, 16, 1), 128, np.uint8)
    noisy = Degradation("noise", 10.0)(gray, np.arange(50)).astype(float)
    assert noisy.std() == pytest.approx(np.sqrt(100 + 1 / 12), rel=0.02)
    point = np.zeros((1, 33, 33, 1), np.uint8)
    point[0, 14:19, 14:19] = 255
    place = np.arange(33.0) - 16
    spread = [
        (image[0, ..., 0].astype(float).sum(0) * place**2).sum() / image.astype(float).sum()
        for image in (point, Degradation("blur", 2.0)(point, np.zeros(1, np.int64)))
    ]
    assert spread[1] - spread[0] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("side, widest", [(4, 1), (8, 1), (32, 4), (256, 32)])
def test_blur_goes_up_to_an_eighth_of_the_side_but_at_least_a_pixel(side: int, widest: float):
    _, blur = make_ladders((side, 2 * side, 3))
    amounts = [worse.amount for worse in blur]
    assert amounts == sorted(amounts)
    assert (amounts[0], amounts[-1]) == (pytest.approx(0.5), pytest.approx(widest))


@pytest.mark.parametrize("at_most, size", [(None, 50), (30, 15), (1000, 50)])
def test_halves_are_of_one_size_and_have_no_image_in_common(at_most: int | None, size: int):
    one, other = random_halves(101, seed=1, at_most=at_most)
    assert len(one) == len(other) == size
    assert len({*one, *other}) == 2 * size and max(*one, *other) <= 100
    again, _ = random_halves(101, seed=2, at_most=at_most)
    assert not np.array_equal(one, again)


def test_a_published_value_counts_for_its_own_data_weights_and_resize_alone():
    known = PUBLISHED[0]
    name, sha256, resized = known.features
    classes = np.repeat(np.eye(10, 1008, dtype=np.float32) * 50, 200, axis=0)
    images = FeatureSet("x", classes, logits=lambda rows: rows)

    def extractor(weights_sha256: str = sha256, preprocessing: str = resized) -> Extractor:
        return Extractor(name, None, lambda _, x: x, 2048, preprocessing, weights_sha256)

    (found,) = reproduce("cifar10 train", images, 50_000, extractor())
    assert found.found.value == pytest.approx(10, rel=0.05)
    assert found.failure is not None
    assert found.failure.startswith("is of cifar10 train is 9.")
    assert found.failure.endswith("not 11.24 ± 0.12 (Salimans et al., 2016, Table 3)")
    assert found._replace(found=found.found._replace(value=11.2)).failure is None
    assert not reproduce("cifar10 test", images, 50_000, extractor())
    assert not reproduce("cifar10 train", images, 49_999, extractor())
    assert not reproduce(None, images, 50_000, extractor())
    assert not reproduce("cifar10 train", images, 50_000, extractor(weights_sha256="0" * 64))
    other = inception.PREPROCESSING["pytorch"].description
    assert not reproduce("cifar10 train", images, 50_000, extractor(preprocessing=other))
