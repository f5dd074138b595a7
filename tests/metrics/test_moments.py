"""Moments summed up batch by batch."""

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.moments import Moments, chunks, statistics_of


@pytest.mark.parametrize("size", [1, 7, 500])
def test_sums_over_batches_of_any_size_are_the_moments_of_all(rng: np.random.Generator, size: int):
    # A mean that is large beside the spread, where sums of squares would lose digits.
    x = rng.normal(size=(500, 5)) + 1e6
    moments = Moments(5)
    for rows in chunks(x, size):
        moments.update(rows)
    total = moments.statistics()
    np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.cov, np.cov(x, rowvar=False), rtol=1e-7, atol=1e-9)
    assert total.num_images == 500


def test_the_factor_of_a_covariance_has_its_rank(rng: np.random.Generator):
    found = statistics_of(rng.normal(size=(6, 20)))
    assert found.factor.shape == (20, 5)  # Six images less their mean.
    np.testing.assert_allclose(found.factor @ found.factor.T, found.cov, atol=1e-13)


@pytest.mark.parametrize(
    "features, message",
    [
        (np.ones((1, 3)), "two images or more"),
        (np.full((4, 3), np.nan), "not finite"),
        (np.ones((0, 3)), "two images or more, not 0"),
    ],
)
def test_too_few_or_broken_features_are_refused(features: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        statistics_of(features)
