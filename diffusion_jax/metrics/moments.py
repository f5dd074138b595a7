"""Mean and covariance of features, summed up batch by batch in float64."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.errors import InputError

CHUNK = 1024  # Rows of features converted to float64 at once.


class Moments:
    """Sums over vectors, from which mean and covariance follow (Chan et al., 1983); memory for two d × d matrices.

    Args:
      num_features: d.

    Attributes:
      num: Number of vectors so far.
    """

    def __init__(self, num_features: int) -> None:
        self.num = 0
        self._mean = np.zeros(num_features)
        # Of deviations from the mean, so that a mean that is large beside them costs no digits.
        self._scatter, self._product = np.zeros((2, num_features, num_features))

    def update(self, features: Float[np.ndarray, "n d"]) -> None:
        """Adds some vectors."""
        rows = np.asarray(features, np.float64)
        if not len(rows):
            return
        count, mean = len(rows), rows.mean(0)
        total, apart = self.num + count, mean - self._mean
        # The difference of the means counts like one more deviation.
        between = np.sqrt(self.num * count / total) * apart
        deviations = np.concatenate([rows - mean, between[None]])
        self._scatter += np.matmul(deviations.T, deviations, out=self._product)
        self._mean += apart * count / total
        self.num = total

    def statistics(self) -> Statistics:
        """Returns mean and unbiased covariance.

        Raises:
          InputError: There are fewer than two vectors, or not all are finite.
        """
        if self.num < 2:
            raise InputError(f"a covariance needs two images or more, not {self.num}")
        if not np.isfinite(self._scatter).all():
            raise InputError("the features of some images are not finite")
        return Statistics(self._mean.copy(), self._scatter / (self.num - 1), self.num)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of the features of a set of images.

    Attributes:
      mean: Mean, float64.
      cov: Covariance, float64, symmetric; of any rank.
      num_images: Number of images; None where a file does not say.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    num_images: int | None = None

    @property
    def num_features(self) -> int:
        """Length of the feature vectors."""
        return len(self.mean)

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "d r"]:
        """F with F Fᵀ = cov: an orthogonal column for each eigenvalue that is not zero within rounding."""
        values, vectors = eigh(self.cov)
        smallest = max(float(values[-1]), 0.0) * len(values) * np.finfo(np.float64).eps
        kept = values > smallest
        factor = vectors[:, kept]
        factor *= np.sqrt(values[kept])
        return factor


def eigh(matrix: Float[np.ndarray, "d d"]) -> tuple[Any, Any]:
    """Returns eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    LAPACK's default takes two more matrices of memory.
    """
    import scipy.linalg  # Not needed to show the fields.

    return scipy.linalg.eigh(matrix, driver="evr", check_finite=False)


def chunks(
    features: Float[np.ndarray, "n d"],
    size: int = CHUNK,
    indices: Int[np.ndarray, " m"] | None = None,
) -> Iterator[Float[np.ndarray, "b d"]]:
    """Yields the rows in float64, some at a time: the array may be larger than memory (`np.memmap`).

    Args:
      features: All rows.
      size: Rows at once.
      indices: Which rows to yield; None: all.
    """
    for first in range(0, len(features) if indices is None else len(indices), size):
        part = slice(first, first + size)
        yield np.asarray(features[part if indices is None else indices[part]], np.float64)


def check_finite(features: Float[np.ndarray, "n d"]) -> None:
    """Raises an InputError unless all features are finite: comparisons with NaN would give plausible numbers."""
    if not all(np.isfinite(rows).all() for rows in chunks(features)):
        raise InputError("the features of some images are not finite")


def statistics_of(
    features: Float[np.ndarray, "n d"], indices: Int[np.ndarray, " m"] | None = None
) -> Statistics:
    """Returns mean and covariance of features, of all images or of some.

    Args:
      features: A row for each image.
      indices: Rows to use; None: all.

    Raises:
      InputError: There are fewer than two, or not all are finite.
    """
    moments = Moments(features.shape[1])
    for rows in chunks(features, indices=indices):
        moments.update(rows)
    return moments.statistics()
