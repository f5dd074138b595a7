"""The Fréchet distance of two normal distributions of features (Heusel et al., 2017), its error and its limit."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.base import MeanStdErr
from diffusion_jax.metrics.feature_set import FeatureSet, to_statistics
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.moments import Statistics, chunks, eigh, statistics_of
from diffusion_jax.options import Option, kinds


def frechet_distance_of(images: Statistics, reference: Statistics) -> float:
    """Returns |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½, in float64.

    The last trace is the sum of the singular values of F₁ᵀ F₂, where Σᵢ = Fᵢ Fᵢᵀ by an eigendecomposition of the
    symmetric matrix. So no number is complex, covariances may have any rank, and no root is taken of rounding errors.

    Raises:
      InputError: The two have other numbers of features.
    """
    check_same_features(images.num_features, reference.num_features)
    apart = images.mean - reference.mean
    shared = np.linalg.svd(images.factor.T @ reference.factor, compute_uv=False).sum()
    traces = np.trace(images.cov) + np.trace(reference.cov)
    return max(float(apart @ apart + traces - 2 * shared), 0.0)


def check_same_features(num_features: int, num_reference: int) -> None:
    """Raises an InputError if images and reference have other numbers of features."""
    if num_features != num_reference:
        raise InputError(
            f"the images have {num_features} features, but the reference has {num_reference}"
        )


def frechet_stderr(
    features: Float[np.ndarray, "n d"], images: Statistics, reference: Statistics
) -> float:
    """Returns the standard error of the distance over draws of the images; the reference is taken as it is.

    By the delta method it is that of the mean of the distance's influence function,
    2 (μ₁ - μ₂)ᵀ y + yᵀ (I - T) y, with y = x - μ₁ and T the linear map that transports N(0, Σ₁) to N(0, Σ₂). It is no
    measure of the bias, which is of the order of d / n: see `frechet_infinity`. Where the two distributions are the
    same, this first order vanishes, and only what the bias makes of it is left.

    Args:
      features: Those of the images.
      images: Their statistics.
      reference: Statistics of the reference.
    """
    apart, factor = images.mean - reference.mean, images.factor
    shared = factor.T @ reference.factor
    squares, left = eigh(shared @ shared.T)
    # T = G diag(squares)^½ Gᵀ, with G = F₁ (F₁ᵀ F₁)⁻¹ left.
    left *= np.maximum(squares, 0) ** 0.25
    whitened = (factor / (factor**2).sum(0)) @ left
    influences = []
    for rows in chunks(features):
        y = rows - images.mean
        transported = ((y @ whitened) ** 2).sum(1)
        influences.append(2 * y @ apart + (y**2).sum(1) - transported)
    return float(np.concatenate(influences).std(ddof=1) / np.sqrt(len(features)))


class Extrapolation(NamedTuple):
    """A distance at an unlimited number of images.

    Attributes:
      value: Where the line that is fitted to distances at several numbers of images meets 1 / n = 0.
      stderr: Its standard error: of the line, and of the images that there are.
      sizes: Numbers of images.
      distances: Mean distance of subsets of each number.
    """

    value: float
    stderr: float
    sizes: list[int]
    distances: list[float]


def frechet_infinity(
    features: Float[np.ndarray, "n d"],
    reference: Statistics,
    *,
    num_sizes: int = 15,
    seed: int = 0,
    allow_few: bool = False,
) -> Extrapolation:
    """Returns the Fréchet distance extrapolated to infinitely many images (Chong & Forsyth, 2020).

    The distance of n images is larger than its limit by about a constant / n, if n is some times the number d of
    features. So a line in 1 / n is fitted to the distances of random subsets, of 3 d images or more.

    Args:
      features: Those of the images.
      reference: Statistics of the reference.
      num_sizes: Number of subsets, of n / 10, or 3 d if that is more, to n images, evenly spaced in 1 / n.
      seed: Seed of the subsets.
      allow_few: Whether to measure fewer than 4 d images, from n / 10 on; the result may then be far too small.

    Raises:
      InputError: There are fewer than 20 images, or than 4 d; or other numbers of features.
    """
    total, num_features = features.shape
    check_same_features(num_features, reference.num_features)
    if total < 20 or (total < 4 * num_features and not allow_few):
        raise InputError(
            f"fd_inf needs {max(20, 4 * num_features)} images or more for {num_features} features, not {total}; "
            "take more, or eval.allow_few=true"
        )
    rng, least = np.random.default_rng(seed), total / 10
    if total >= 4 * num_features:
        least = max(least, 3 * num_features)
    sizes = np.unique((1 / np.linspace(1 / least, 1 / total, num_sizes)).astype(int))
    whole = statistics_of(features)
    distances = []
    for size in sizes:
        if size == total:
            statistics = whole
        else:
            chosen = np.sort(rng.choice(total, size, replace=False))
            statistics = statistics_of(features, chosen)
        distances.append(_roughly(statistics, reference))
    value, of_line = _intercept(1 / sizes, np.array(distances))
    of_images = frechet_stderr(features, whole, reference)
    return Extrapolation(
        value, float(np.hypot(of_line, of_images)), sizes.tolist(), list(map(float, distances))
    )


def _roughly(images: Statistics, reference: Statistics) -> float:
    """Returns the distance as `frechet_distance_of` does, in a quarter of the time.

    Roots are taken of the eigenvalues of F₂ᵀ Σ₁ F₂, whose rounding adds up to 1e-8 of the largest root for each that is
    zero: far below the standard error of what is extrapolated.
    """
    apart, factor = images.mean - reference.mean, reference.factor
    squares = np.linalg.eigvalsh(factor.T @ images.cov @ factor)
    shared = np.sqrt(np.maximum(squares, 0)).sum()
    traces = np.trace(images.cov) + np.trace(reference.cov)
    return float(apart @ apart + traces - 2 * shared)


def _intercept(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> MeanStdErr:
    """Returns the least-squares line's value at 0 and its standard error."""
    design = np.stack([np.ones_like(x), x], 1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    if len(x) <= 2:
        return MeanStdErr(float(coefficients[0]), np.nan)
    variance = ((y - design @ coefficients) ** 2).sum() / (len(x) - 2)
    covariance = np.linalg.inv(design.T @ design) * variance
    return MeanStdErr(float(coefficients[0]), float(np.sqrt(covariance[0, 0])))


def frechet_distance(images: Any, reference: Any, *, features: Any = None) -> float:
    """Returns the Fréchet distance of two sets of images; FID if the features are those of the published Inception.

    Args:
      images: `Statistics`, features (n × d, float), or images (n × h × w × c, uint8, which need `features`).
      reference: Likewise.
      features: An extractor of features, such as `FEATURES["inception"](cache_dir=...)`.

    Raises:
      InputError: The arrays are not as said, or have other numbers of features.

    Example:
      >>> features = np.random.default_rng(0).normal(size=(100, 4))
      >>> round(dj.metrics.frechet_distance(features, features + 1), 6)
      4.0
    """
    return frechet_distance_of(*(to_statistics(x, features) for x in (images, reference)))


ALLOW_FEW = Option(
    kinds.Bool(),
    "measure the Fréchet distance of fewer images than there are features (fd_inf: than four times as many), though "
    "its bias is then large",
)


FEW = "take more, kid, features with fewer numbers, or eval.allow_few=true"


def check_enough(images: FeatureSet, reference: FeatureSet, allow_few: bool) -> None:
    """Raises if a covariance has fewer images than rows.

    Raises:
      InputError: It has, and this is not allowed.
    """
    for name, found in (("images", images.statistics), ("reference", reference.statistics)):
        if not allow_few and (found.num_images or np.inf) < found.num_features:
            raise InputError(
                f"eval.{name}: {found.num_images} images are fewer than the {found.num_features} features, so that the "
                f"Fréchet distance is far too large; {FEW}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class FrechetDistance(ImageMetric):
    """The Fréchet distance, with the standard error over draws of the images where these are at hand.

    Attributes:
      allow_few: Whether to measure fewer images than there are features.
    """

    allow_few: Annotated[bool, ALLOW_FEW] = False

    figures: ClassVar = ("fd",)
    remedy: ClassVar = FEW

    def least(self, num_features: int) -> int:
        return 2 if self.allow_few else num_features

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        assert reference is not None
        check_same_features(images.statistics.num_features, reference.statistics.num_features)
        check_enough(images, reference, self.allow_few)
        value, stderr = frechet_distance_of(images.statistics, reference.statistics), np.nan
        if images.features is not None:
            stderr = frechet_stderr(images.features, images.statistics, reference.statistics)
        counts = {
            "num_images": images.statistics.num_images,
            "num_reference": reference.statistics.num_images,
        }
        return Measured({"fd": MeanStdErr(value, stderr)}, counts)


@dataclasses.dataclass(frozen=True, eq=False)
class FrechetInfinity(ImageMetric):
    """The Fréchet distance extrapolated to infinitely many images.

    Attributes:
      seed: Seed of the subsets.
      num_sizes: Number of subsets.
      allow_few: Whether to measure fewer images than there are features.
    """

    seed: int = 0
    num_sizes: Annotated[
        int,
        Option(kinds.Int(3, 1000), "numbers of images to extrapolate from", field="fd_inf_sizes"),
    ] = 15
    allow_few: Annotated[bool, ALLOW_FEW] = False

    figures: ClassVar = ("fd_inf",)
    remedy: ClassVar = FEW

    def least(self, num_features: int) -> int:
        return 20 if self.allow_few else max(20, num_features)

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        assert reference is not None
        rows = images.rows("fd_inf")
        check_enough(images, reference, self.allow_few)
        found = frechet_infinity(
            rows,
            reference.statistics,
            num_sizes=self.num_sizes,
            seed=self.seed,
            allow_few=self.allow_few,
        )
        details = {"sizes": found.sizes, "distances": found.distances, "num_images": len(rows)}
        return Measured({"fd_inf": MeanStdErr(found.value, found.stderr)}, details)
