"""Published figures of reference images, which features, weights and resizing must reproduce."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from diffusion_jax.features import Extractor, inception
from diffusion_jax.metrics.base import MeanStdErr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric
from diffusion_jax.metrics.inception_score import InceptionScore


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """A figure of a set of images that a paper states.

    Attributes:
      reference: Data set and split.
      num_images: Number of its images.
      features: Name of the features, weights' SHA-256 and preprocessing.
      metric: What it is of.
      figure: Its name.
      value: The figure.
      within: How far another implementation may be off.
      source: Where it stands.
    """

    reference: str
    num_images: int
    features: tuple[str, str, str]
    metric: ImageMetric
    figure: str
    value: float
    within: float
    source: str


PUBLISHED = (
    Published(
        "cifar10 train",
        50_000,
        (
            "inception",
            inception.PUBLISHED.sha256,
            inception.PREPROCESSING["tensorflow"].description,
        ),
        InceptionScore(),
        "is",
        11.24,
        0.12,  # The paper's ± is the standard deviation over ten parts.
        "Salimans et al., 2016, Table 3",
    ),
)


class Reproduction(NamedTuple):
    """A published figure, and what is measured here."""

    published: Published
    found: MeanStdErr

    @property
    def failure(self) -> str | None:
        """How the two differ, in words; None if they agree."""
        known, value = self.published, self.found.value
        if abs(value - known.value) <= known.within:
            return None
        said = f"not {known.value} ± {known.within} ({known.source})"
        return f"{known.figure} of {known.reference} is {value:.4g}, {said}"

    def record(self) -> dict[str, Any]:
        """Returns both figures as JSON holds them."""
        known = self.published
        return {
            "figure": known.figure,
            **self.found._asdict(),
            "published": known.value,
            "within": known.within,
            "source": known.source,
        }


def reproduce(
    reference: str | None, images: FeatureSet, num_images: int, extractor: Extractor
) -> list[Reproduction]:
    """Measures what is published of a reference in these features.

    Args:
      reference: Data set and split, such as "cifar10 train"; None: images that have no name.
      images: Features of all of it.
      num_images: Number of its images.
      extractor: What made the features.
    """
    features = extractor.name, extractor.weights_sha256, extractor.preprocessing
    return [
        Reproduction(known, known.metric.measure(images, None).figures[known.figure])
        for known in PUBLISHED
        if (known.reference, known.num_images, known.features) == (reference, num_images, features)
    ]
