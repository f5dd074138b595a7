"""Mean and covariance of features, summed up batch by batch in float64."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from diffusion_jax.errors import InputError

CHUNK = 2048  # Rows of features converted to float64 at once.


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean and scatter of any number of vectors; sums of these are exact but for rounding (Chan et al., 1983).

    Attributes:
      num: Number of vectors.
      mean: Their mean.
      scatter: Sum of the outer products of their deviations from the mean.
    """

    num: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Returns the moments of some vectors, at least one."""
        rows = np.asarray(features, np.float64)
        mean = rows.mean(0)
        rows = rows - mean
        return cls(len(rows), mean, rows.T @ rows)

    def __add__(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of vectors together."""
        num, apart = self.num + other.num, other.mean - self.mean
        between = np.outer(apart, apart) * (self.num * other.num / num)
        return Moments(
            num, self.mean + apart * (other.num / num), self.scatter + other.scatter + between
        )

    def statistics(self) -> "Statistics":
        """Returns mean and unbiased covariance.

        Raises:
          InputError: There is only one vector.
        """
        if self.num < 2:
            raise InputError(f"a covariance needs two images or more, not {self.num}")
        return Statistics(self.mean, self.scatter / (self.num - 1), self.num)


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
        values, vectors = np.linalg.eigh(self.cov)
        smallest = max(float(values[-1]), 0.0) * len(values) * np.finfo(np.float64).eps
        kept = values > smallest
        return vectors[:, kept] * np.sqrt(values[kept])


def chunks(
    features: Float[np.ndarray, "n d"], size: int = CHUNK
) -> Iterator[Float[np.ndarray, "b d"]]:
    """Yields the rows in float64, some at a time: the array may be larger than memory (`np.memmap`)."""
    for first in range(0, len(features), size):
        yield np.asarray(features[first : first + size], np.float64)


def statistics_of(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Returns mean and covariance of features.

    Raises:
      InputError: There are fewer than two, or not all are finite.
    """
    return sum_moments(map(Moments.of, chunks(features))).statistics()


def sum_moments(parts: Iterable[Moments]) -> Moments:
    """Returns the moments of all vectors of some sets of them.

    Raises:
      InputError: There are none, or not all are finite.
    """
    parts = iter(parts)
    total = next(parts, None)
    if total is None:
        raise InputError("there are no images to measure")
    for part in parts:
        total = total + part
    if not np.isfinite(total.scatter).all():
        raise InputError("the features of some images are not finite")
    return total
