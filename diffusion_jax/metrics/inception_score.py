"""The Inception score (Salimans et al., 2016): how sure a classifier is of images, and how varied its classes are."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.base import MeanStdErr, mean_stderr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
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
      InputError: There are fewer images than parts.
    """
    count = len(logits)
    if count < num_splits:
        raise InputError(
            f"the Inception score needs an image or more for each of {num_splits} parts, not {count} in all"
        )
    order = np.random.RandomState(seed).permutation(count)
    log_p = np.asarray(logits, np.float64)[order]
    log_p = log_p - log_p.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    ends = [i * count // num_splits for i in range(num_splits + 1)]
    scores = [_score(log_p[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    return mean_stderr(np.array(scores))


def _score(log_p: Float[np.ndarray, "n k"]) -> float:
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

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        del reference
        rows = images.rows("is")
        if images.logits is None:
            raise InputError(
                "is needs a network with classes, such as the features inception, lite0 or classifier; these have none"
            )
        score = inception_score(images.logits(rows), num_splits=self.num_splits, seed=self.seed)
        return Measured({"is": score})
