"""The kernel distance of two sets of features (Bińkowski et al., 2018), with its standard error."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.base import MeanStdErr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.moments import check_finite
from diffusion_jax.options import Option, kinds

LEAST = 20  # Images of a set, below which the standard error is too small.


class _Terms(NamedTuple):
    """What one pair of subsets says.

    Attributes:
      distance: The unbiased estimate of the squared distance.
      first: Variances of its first-order terms: of an image, and of a reference image.
      second: Variances of its second-order terms: of two images, two reference images, one of each.
    """

    distance: float
    first: tuple[float, float]
    second: tuple[float, float, float]


def kernel_distance(
    images: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m e"],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> MeanStdErr:
    """Returns the squared maximum mean discrepancy of two sets of features, with the kernel (x · y / d + 1)³.

    It is the mean of the unbiased estimates of random pairs of subsets. The standard error is over draws of all images
    and of the reference, by the estimator's Hoeffding decomposition, whose variances are estimated from the
    subsets, plus that of having taken only some subsets. So it also holds where the distributions are the same, and
    first-order terms vanish. It holds for images that are drawn independently, and so do their classes.

    Args:
      images: Features of the images.
      reference: Features of the reference.
      num_subsets: Number of pairs of subsets.
      subset_size: Images in each; all if there are fewer.
      seed: Seed of the subsets, as `np.random.RandomState` takes it.

    Raises:
      InputError: There are fewer than 20 of either, not all features are finite, or the two have other numbers of them.
    """
    smallest = min(len(images), len(reference))
    if smallest < LEAST:
        raise InputError(f"kid needs {LEAST} images or more of each set, not {smallest}")
    if images.shape[1] != reference.shape[1]:
        raise InputError(
            f"the images have {images.shape[1]} features, but the reference has {reference.shape[1]}"
        )
    check_finite(images)
    check_finite(reference)
    size, rng = min(subset_size, smallest), np.random.RandomState(seed)
    if size == len(images) == len(reference):
        num_subsets = 1  # All would be the same.
    terms = [
        _terms(
            np.asarray(images[rng.choice(len(images), size, replace=False)], np.float64),
            np.asarray(reference[rng.choice(len(reference), size, replace=False)], np.float64),
        )
        for _ in range(num_subsets)
    ]
    distances = np.array([term.distance for term in terms])
    first = np.maximum(np.mean([term.first for term in terms], 0), 0)
    second = np.mean([term.second for term in terms], 0)
    of_all = _variance(first, second, len(images), len(reference))
    # Between subsets of the same images, relative to what is left if all were taken.
    of_subsets = max(_variance(first, second, size, size) - of_all, 0) / num_subsets
    return MeanStdErr(float(distances.mean()), float(np.sqrt(of_all + of_subsets)))


def _variance(first: Float[np.ndarray, 2], second: Float[np.ndarray, 3], n: int, m: int) -> float:
    """Returns the variance of the estimate of n images and m reference images."""
    of_pairs = 2 * second[0] / n**2 + 2 * second[1] / m**2 + 4 * second[2] / (n * m)
    return float(4 * first[0] / n + 4 * first[1] / m + of_pairs)


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _terms(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> _Terms:
    size = len(x)
    of_x, of_y, of_both = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    mean_x, mean_y = (_row_means(k) for k in (of_x, of_y))
    distance = mean_x.mean() + mean_y.mean() - 2 * of_both.mean()
    second = (
        _second_order(of_x),
        _second_order(of_y),
        float((_centered(of_both) ** 2).sum() / (size - 1) ** 2),
    )
    # Row means have a variance of their own, from the other images of the subset.
    witness_x = (mean_x - of_both.mean(1)).var(ddof=1) - (second[0] + second[2]) / size
    witness_y = (mean_y - of_both.mean(0)).var(ddof=1) - (second[1] + second[2]) / size
    return _Terms(float(distance), (float(witness_x), float(witness_y)), second)


def _row_means(kernel: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    """Returns the mean of each row without its entry on the diagonal."""
    return (kernel.sum(1) - np.diag(kernel)) / (len(kernel) - 1)


def _second_order(kernel: Float[np.ndarray, "m m"]) -> float:
    """Returns the variance of what the kernel of two images is beyond the sum of a term for each."""
    size = len(kernel)
    off = ~np.eye(size, dtype=bool)
    sums = kernel.sum(1) - np.diag(kernel)
    total = sums.sum()
    # The U-centered matrix (Székely & Rizzo, 2014), whose rows sum to zero off the diagonal.
    centered = (
        kernel - (sums[:, None] + sums[None, :]) / (size - 2) + total / ((size - 1) * (size - 2))
    )
    return float((centered[off] ** 2).sum() / (size * (size - 3)))


def _centered(kernel: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    return kernel - kernel.mean(1, keepdims=True) - kernel.mean(0, keepdims=True) + kernel.mean()


@dataclasses.dataclass(frozen=True, eq=False)
class KernelDistance(ImageMetric):
    """The kernel distance; an unbiased estimate, so it may be negative.

    Attributes:
      seed: Seed of the subsets.
      num_subsets: Number of pairs of subsets.
      subset_size: Images in each.
    """

    seed: int = 0
    num_subsets: Annotated[
        int, Option(kinds.Int(1, 100_000), "pairs of random subsets", field="kid_subsets")
    ] = 100
    subset_size: Annotated[
        int,
        Option(
            kinds.Int(20, 100_000),
            "images in a subset; all if there are fewer",
            field="kid_subset_size",
        ),
    ] = 1000

    unbiased: ClassVar = True
    figures: ClassVar = ("kid",)

    def least(self, num_features: int) -> int:
        del num_features
        return LEAST

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        assert reference is not None
        rows = images.rows("kid"), reference.rows("kid")
        found = kernel_distance(
            *rows, num_subsets=self.num_subsets, subset_size=self.subset_size, seed=self.seed
        )
        counts = {"num_images": len(rows[0]), "num_reference": len(rows[1])}
        return Measured(
            {"kid": found}, {**counts, "subset_size": min(self.subset_size, *counts.values())}
        )
