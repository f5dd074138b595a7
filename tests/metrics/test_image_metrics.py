"""The registered metrics of images: figures, records and refusals."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.features import Extractor
from diffusion_jax.metrics import IMAGE_METRICS, FeatureSet, statistics_of
from diffusion_jax.metrics.image_metric import result_name
from diffusion_jax.reading.npz import read_npz


def feature_set(rng: np.random.Generator, num_images: int, name: str = "x") -> FeatureSet:
    features = rng.normal(size=(num_images, 6)).astype(np.float32)
    pixels = rng.integers(0, 256, (num_images, 4, 4, 1), dtype=np.uint8)
    return FeatureSet(
        name,
        features,
        logits=lambda rows: rows[:, :3],
        read=lambda indices: pixels[indices],
    )


@pytest.mark.parametrize("name", IMAGE_METRICS)
def test_each_has_the_figures_that_it_names_finite_and_with_errors(
    rng: np.random.Generator, name: str
):
    metric = IMAGE_METRICS[name].from_fields({}, seed=0)
    found = metric.measure(feature_set(rng, 60), feature_set(rng, 80))
    assert tuple(found.figures) == metric.figures
    record = found.record()
    parts = [record] if len(metric.figures) == 1 else [record[name] for name in metric.figures]
    for part in parts:
        assert np.isfinite([part["value"], part["stderr"]]).all()


@pytest.mark.parametrize("name", [name for name in IMAGE_METRICS if name not in ("fd", "is")])
def test_what_needs_each_image_refuses_a_reference_of_statistics(
    rng: np.random.Generator, name: str
):
    known = FeatureSet("ref.npz", known_statistics=statistics_of(rng.normal(size=(30, 6))))
    metric = IMAGE_METRICS[name].from_fields({}, seed=0)
    if name == "fd_inf":  # The limit is that of the images alone.
        assert metric.measure(feature_set(rng, 60), known).figures
    else:
        with pytest.raises(InputError, match=f"{name} needs the features"):
            metric.measure(feature_set(rng, 60), known)


def test_the_score_of_a_network_without_classes_is_refused():
    features = FeatureSet("x", np.zeros((20, 3), np.float32))
    with pytest.raises(InputError, match="is needs a network with classes"):
        IMAGE_METRICS["is"].from_fields({}, seed=0).measure(features, None)


@pytest.mark.parametrize("counts", [(5, 80), (80, 5)])
def test_fewer_images_than_features_are_refused_unless_allowed(
    rng: np.random.Generator, counts: tuple[int, int]
):
    sets = [feature_set(rng, count) for count in counts]
    with pytest.raises(InputError, match="5 images are fewer than the 6 features"):
        IMAGE_METRICS["fd"].from_fields({}, seed=0).measure(*sets)
    assert IMAGE_METRICS["fd"].from_fields({"allow_few": True}, seed=0).measure(*sets).figures


def test_the_frechet_distance_is_called_fid_for_inceptions_published_weights_alone():
    def of(features: str, published: bool) -> Extractor:
        return Extractor(features, None, lambda _, x: x, 6, "none", "a" * 64, published=published)

    inception = of("inception", published=True)
    assert result_name("fd", inception) == "fid"
    assert result_name("fd", of("inception", published=False)) == "fd_inception"
    assert result_name("fd", of("dinov2", published=True)) == "fd_dinov2"
    assert result_name("kid", inception) == "kid_inception"
    assert result_name("fd_inf", inception) == "fd_inf_inception"


def test_precision_takes_at_most_as_many_images_as_it_is_told(rng: np.random.Generator):
    metric = IMAGE_METRICS["pr"].from_fields({"pr_images": 25}, seed=0)
    record = metric.measure(feature_set(rng, 60), feature_set(rng, 20)).record()
    assert (record["num_images"], record["num_reference"]) == (25, 20)


def test_the_images_nearest_to_training_images_are_shown_first(
    rng: np.random.Generator, tmp_path: Path
):
    training = feature_set(rng, 50)
    assert training.features is not None and training.read is not None
    images = feature_set(rng, 12)
    assert images.features is not None
    images.features[7] = training.features[31]
    metric = IMAGE_METRICS["nearest"].from_fields({"nearest_count": 2, "nearest_shown": 3}, seed=0)
    found = metric.measure(images, training)
    assert found.record()["copies"] == 1
    files = metric.save(tmp_path, found, images, training)
    assert [path.name for path in files] == ["nearest.npz", "nearest.png"]
    saved = read_npz(tmp_path / "nearest.npz")
    assert saved["indices"].shape == (12, 2) and saved["indices"][7, 0] == 31
    assert np.argmin(saved["ratios"]) == 7


@pytest.mark.parametrize(
    "name, fields",
    [
        ("kid", {"kid_subsets": 3}),
        ("kid", {"kid_subset_size": 10}),
        ("is", {"is_splits": 3}),
        ("pr", {"pr_neighbors": 1}),
        ("pr", {"pr_images": 30}),
        ("fd_inf", {"fd_inf_sizes": 4}),
        ("nearest", {"copy_ratio": 0.9}),
    ],
)
def test_an_option_changes_the_result_and_every_option_of_a_figure_is_tried(
    rng: np.random.Generator, name: str, fields: dict[str, float]
):
    sets = feature_set(rng, 60), feature_set(rng, 80)
    usual, changed = (
        IMAGE_METRICS[name].from_fields(given, seed=0).measure(*sets).record()
        for given in ({}, fields)
    )
    assert usual != changed
    tried = {"kid_subsets", "kid_subset_size", "is_splits", "pr_neighbors", "pr_images"}
    tried |= {"fd_inf_sizes", "copy_ratio", "nearest_count", "nearest_shown", "allow_few"}
    assert set(IMAGE_METRICS.options) == tried, "an option without a test"


@pytest.mark.parametrize("name", ["kid", "is", "pr", "fd_inf"])
def test_the_seed_decides_what_is_drawn_at_random(rng: np.random.Generator, name: str):
    sets = feature_set(rng, 60), feature_set(rng, 80)
    fields = {"pr_images": 30, "kid_subset_size": 20}
    first, again, other = (
        IMAGE_METRICS[name].from_fields(fields, seed=seed).measure(*sets).record()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_weights_of_which_nothing_is_said_are_not_taken_for_verified_ones():
    assert not Extractor("inception", None, lambda _, x: x, 6, "none", "a" * 64).published
