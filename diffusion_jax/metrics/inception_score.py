"""The Inception score (Salimans et al., 2016): how sure a classifier is of images, and how varied its classes are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.base import MeanStdErr, mean_stderr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.moments import check_finite
from diffusion_jax.options import Option, kinds


def inception_score(
    logits: Float[np.ndarray, "n k"], *, num_splits: int = 10, seed: int = 0
) -> MeanStdErr:
    """Returns exp E[KL(p(y | x) ‖ p(y))], the mean over equal parts of the shuffled images.

    The standard error is that of this mean. (Papers often quote the standard deviation over the parts, which is
    √num_splits times as much.)

    Args:
      logits: Logits of each image's classes.
      num_splits: Number of parts; the score of few images is too small, since p(y) is estimated from them.
      seed: Seed of the order, as `np.random.RandomState` takes it.

    Raises:
      InputError: There are fewer images than parts, or not all logits are finite.
    """
    return _mean_of_parts(lambda indices: logits[indices], len(logits), num_splits, seed)


def _mean_of_parts(
    logits_of: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m k"]],
    count: int,
    num_splits: int,
    seed: int,
) -> MeanStdErr:
    if count < num_splits:
        raise InputError(
            f"the Inception score needs an image or more for each of {num_splits} parts, not {count} in all"
        )
    order = np.random.RandomState(seed).permutation(count)
    ends = [i * count // num_splits for i in range(num_splits + 1)]
    parts = (order[a:b] for a, b in zip(ends, ends[1:], strict=False))
    return mean_stderr(np.array([_score(logits_of(part)) for part in parts]))


def _score(logits: Float[np.ndarray, "n k"]) -> float:
    check_finite(logits)
    log_p = logits - np.asarray(logits, np.float64).max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    marginal = np.maximum(
        p.mean(0), np.finfo(np.float64).tiny
    )  # A class that no image has: 0 log 0.
    return float(np.exp((p * (log_p - np.log(marginal))).sum(1).mean()))


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionScore(ImageMetric):
    """The Inception score by the classes of the features' own network.

    Attributes:
      seed: Seed of the order of the images.
      num_splits: Number of parts.
    """

    seed: int = 0
    num_splits: Annotated[
        int, Option(kinds.Int(1, 1000), "equal parts of the images", field="is_splits")
    ] = 10

    has_reference: ClassVar = False
    higher_is_better: ClassVar = True
    figures: ClassVar = ("is",)

    def least(self, num_features: int) -> int:
        del num_features
        return self.num_splits

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        del reference
        rows = images.rows("is")
        if images.logits is None:
            raise InputError(
                "is needs a network with classes, such as the features inception, lite0 or classifier; these have none"
            )
        logits = (
            images.logits
        )  # Of a part at a time: of all, they would not fit beside a large network.
        score = _mean_of_parts(
            lambda indices: logits(rows[indices]), len(rows), self.num_splits, self.seed
        )
        return Measured({"is": score}, {"num_images": len(rows)})
