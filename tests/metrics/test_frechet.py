"""The Fréchet distance of normal distributions, its standard error and its limit."""

import numpy as np
import pytest
import scipy.linalg
from slow import slow

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.frechet import (
    frechet_distance,
    frechet_distance_of,
    frechet_infinity,
    frechet_stderr,
)
from diffusion_jax.metrics.moments import Statistics, statistics_of


def normal(rng: np.random.Generator, num_features: int, shift: float) -> Statistics:
    mix = rng.normal(size=(num_features, num_features))
    return Statistics(np.full(num_features, shift), mix @ mix.T)


def test_commuting_covariances_have_the_distance_of_their_standard_deviations(
    rng: np.random.Generator,
):
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    a, b = rng.uniform(0.1, 3, (2, 8))
    of = [Statistics(np.full(8, m), rotation * s**2 @ rotation.T) for m, s in ((1.0, a), (0.5, b))]
    expected = 8 * 0.25 + ((a - b) ** 2).sum()
    assert frechet_distance_of(*of) == pytest.approx(expected, rel=1e-12)


def test_the_distance_is_that_of_a_matrix_square_root(rng: np.random.Generator):
    """The usual formula, whose root of a product that is not symmetric is fine where both are well conditioned."""
    a, b = normal(rng, 6, 0.0), normal(rng, 6, 0.7)
    root = scipy.linalg.sqrtm(a.cov @ b.cov)
    expected = 6 * 0.49 + np.trace(a.cov + b.cov - 2 * np.real(root))
    assert frechet_distance_of(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance_of(b, a) == pytest.approx(expected, rel=1e-8)


def test_covariances_of_low_rank_have_no_rounding_of_roots(rng: np.random.Generator):
    """Two sets of 20 images with 300 features that span other spaces: the roots of their product are all 0."""
    a = np.concatenate([rng.normal(size=(20, 150)), np.zeros((20, 150))], 1)
    b = np.concatenate([np.zeros((20, 150)), rng.normal(size=(20, 150))], 1)
    first, second = statistics_of(a), statistics_of(b)
    apart = first.mean - second.mean
    expected = apart @ apart + np.trace(first.cov) + np.trace(second.cov)
    assert frechet_distance_of(first, second) == pytest.approx(expected, rel=1e-12)
    # The eigenvalues of a product of rank 19 are zero to 1e-14, and their roots, in the usual formula, to 1e-7.
    assert frechet_distance_of(first, first) < 1e-11


def test_features_images_and_statistics_are_all_taken(rng: np.random.Generator):
    x, y = rng.normal(size=(2, 50, 4))
    expected = frechet_distance_of(statistics_of(x), statistics_of(y))
    assert frechet_distance(x, statistics_of(y)) == expected
    with pytest.raises(InputError, match="without an extractor"):
        frechet_distance(np.zeros((3, 4, 4, 1), np.uint8), x)
    with pytest.raises(InputError, match="4 features, but the reference has 3"):
        frechet_distance(x, y[:, :3])


@pytest.mark.parametrize("skewed", [False, True])
def test_the_standard_error_is_the_spread_over_draws(rng: np.random.Generator, skewed: bool):
    """Skewed features have a third moment, which ties the error of the mean to that of the covariance."""
    reference, mix = normal(rng, 4, 0.0), rng.normal(size=(4, 4))
    distances, errors = [], []
    for _ in range(300):
        x = rng.exponential(size=(400, 4)) if skewed else rng.normal(size=(400, 4)) @ mix + 0.3
        found = statistics_of(x)
        distances.append(frechet_distance_of(found, reference))
        errors.append(frechet_stderr(x, found, reference))
    # The spread of 300 draws is known to 4 %, of skewed ones to 8 %.
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.2)


@pytest.mark.parametrize("repeats", [40, slow(200)])
def test_the_extrapolation_has_no_bias_and_an_error_that_covers(
    rng: np.random.Generator, repeats: int
):
    num_features = 12
    truth, reference = (Statistics(np.zeros(num_features), np.eye(num_features)) for _ in range(2))
    plain, found = [], []
    for i in range(repeats):
        x = rng.normal(size=(300, num_features))
        plain.append(frechet_distance_of(statistics_of(x), reference))
        found.append(frechet_infinity(x, truth, seed=i))
    values = np.array([f.value for f in found])
    # The plain distance of 300 images is about d (d + 1) / (4 n) + d / n too large.
    assert np.mean(plain) > 0.15
    assert abs(values.mean()) < np.mean(plain) / 4
    errors = np.array([f.stderr for f in found])
    assert (abs(values) < 2.5 * errors).mean() > 0.9


def test_the_error_of_the_extrapolation_has_that_of_the_images_in_it(rng: np.random.Generator):
    x = rng.normal(size=(600, 3)) + 2.0  # Far apart: the images' own error is the larger part.
    reference = Statistics(np.zeros(3), np.eye(3))
    found = frechet_infinity(x, reference)
    assert found.stderr >= frechet_stderr(x, statistics_of(x), reference)


@pytest.mark.parametrize("times", [4, 10])
def test_few_images_for_the_features_are_extrapolated_from_three_times_as_many(
    rng: np.random.Generator, times: int
):
    """Below that the bias is no constant / n: from a tenth of the images the result would be far below 0."""
    num_features = 40
    reference = Statistics(np.zeros(num_features), np.eye(num_features))
    draws = rng.normal(size=(12, times * num_features, num_features)) * 1.1 + 0.1
    found = [frechet_infinity(x, reference) for x in draws]
    assert min(found[0].sizes) >= 3 * num_features
    # The true distance is d (0.1² + 0.1²).
    assert np.mean([f.value for f in found]) == pytest.approx(0.8, abs=0.3)
    with pytest.raises(InputError, match="160 images or more for 40 features, not 159"):
        frechet_infinity(draws[0][:159], reference)
    assert frechet_infinity(draws[0][:100], reference, allow_few=True).sizes[0] == 10


def test_the_extrapolation_uses_all_images_and_a_tenth_of_them(rng: np.random.Generator):
    x, reference = rng.normal(size=(200, 3)), normal(rng, 3, 0.0)
    found = frechet_infinity(x, reference, num_sizes=5)
    assert (found.sizes[0], found.sizes[-1]) == (20, 200)
    assert found.distances[-1] == pytest.approx(frechet_distance(x, reference), rel=1e-6)
    with pytest.raises(InputError, match="20 images or more for 3 features, not 19"):
        frechet_infinity(rng.normal(size=(19, 3)), normal(rng, 3, 0.0))
