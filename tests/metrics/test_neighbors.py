"""Nearest neighbors in blocks, and what is made of them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion_jax.errors import InputError
from diffusion_jax.metrics import neighbors
from diffusion_jax.metrics.copies import find_copies
from diffusion_jax.metrics.inception_score import inception_score
from diffusion_jax.metrics.kid import kernel_distance
from diffusion_jax.metrics.neighbors import nearest_neighbors
from diffusion_jax.metrics.precision_recall import precision_recall


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "BLOCK", 7)


def test_neighbors_found_in_blocks_are_those_of_all_distances(rng: np.random.Generator):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(30, 3))
    distances = cdist(x, y)
    found = nearest_neighbors(x, y, count=4)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, 1)[:, :4])
    np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :4], rtol=1e-12)


def test_a_vector_is_no_neighbor_of_itself_but_its_duplicate_is(rng: np.random.Generator):
    x = rng.normal(size=(20, 3))
    x[11] = x[2]
    found = nearest_neighbors(x, count=1)
    assert found.indices[2, 0] == 11 and found.indices[11, 0] == 2
    assert (found.indices[:, 0] != np.arange(20)).all()
    with pytest.raises(InputError, match="20 nearest neighbors are asked for, but there are 19"):
        nearest_neighbors(x, count=20)


def test_the_measures_are_those_of_their_definitions(rng: np.random.Generator):
    x, y, k = rng.normal(size=(25, 2)), rng.normal(size=(40, 2)) + 0.5, 3
    radius = lambda z: np.sort(cdist(z, z), 1)[:, k]  # noqa: E731
    inside = cdist(x, y) < radius(y)
    found = precision_recall(x, y, num_neighbors=k)
    assert found.precision.value == inside.any(1).mean()
    assert found.density.value == pytest.approx(inside.sum(1).mean() / k, rel=1e-12)
    assert found.coverage.value == inside.any(0).mean()
    assert found.recall.value == (cdist(y, x) < radius(x)).any(1).mean()
    p = found.precision.value
    assert found.precision.stderr == pytest.approx(np.sqrt(p * (1 - p) / 24), rel=1e-12)


def test_features_that_are_not_finite_are_refused(rng: np.random.Generator):
    x, broken = rng.normal(size=(2, 30, 4))
    broken[3, 2] = np.nan
    calls = (precision_recall, find_copies, kernel_distance)
    for function in calls:
        for sets in ((x, broken), (broken, x)):
            with pytest.raises(InputError, match="not finite"):
                function(*sets)
    with pytest.raises(InputError, match="not finite"):
        inception_score(broken)


def test_a_set_far_away_has_neither_precision_nor_coverage(rng: np.random.Generator):
    x = rng.normal(size=(30, 4))
    far = precision_recall(x + 100, x)
    assert [figure.value for figure in far] == [0, 0, 0, 0]
    same = precision_recall(x, x)
    assert same.precision.value == same.recall.value == same.coverage.value == 1


def test_copies_and_near_copies_of_training_images_are_told_from_new_images(
    rng: np.random.Generator,
):
    training = rng.normal(size=(200, 10))
    copies, near = training[:20], training[20:40] + 0.01 * rng.normal(size=(20, 10))
    new = rng.normal(size=(100, 10))
    found = find_copies(np.concatenate([copies, near, new]), training, count=2)
    np.testing.assert_array_equal(found.nearest.indices[:40, 0], np.arange(40))
    assert found.ratios[:20].max() < 1e-6 < found.ratios[20:40].max() < 0.1
    # New images of the same distribution: the neighbor's own neighbor is nearer to it in more than half of the cases.
    assert 0.5 < (found.ratios[40:] > 1).mean() < 1
    assert found.authentic.value == (found.ratios > 1).mean()


def test_copies_of_training_images_that_are_there_twice_are_copies(rng: np.random.Generator):
    """In many dimensions and far from 0, where differences of squares are not exactly 0."""
    training = np.repeat(rng.normal(size=(40, 300)).astype(np.float32) + 1e3, 2, axis=0)
    new = rng.normal(size=(5, 300)).astype(np.float32) + 1e3
    found = find_copies(np.concatenate([training[:20:2], new]), training, count=2)
    assert (found.ratios[:10] == 0).all() and (found.ratios[10:] == np.inf).all()
    assert found.authentic.value == pytest.approx(5 / 15)


def test_doubles_among_the_training_images_do_not_make_every_neighbor_a_copy():
    training = np.array([[0.0], [0.0], [5.0]])
    found = find_copies(np.array([[0.0], [1.0]]), training, count=1)
    assert found.ratios.tolist() == [0.0, np.inf]
