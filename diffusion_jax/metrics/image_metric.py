"""The interface of metrics that compare the features of two sets of images: samples and a reference."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffusion_jax.features import Extractor
from diffusion_jax.metrics.base import MeanStdErr
from diffusion_jax.metrics.feature_set import FeatureSet


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a metric says of a set of images.

    Attributes:
      figures: Values with their standard errors (NaN where there is none), by name.
      details: What else belongs into the result, as JSON holds it.
      kept: What `save` needs.
    """

    figures: Mapping[str, MeanStdErr]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept: Any = None

    def record(self) -> dict[str, Any]:
        """Returns the figures as JSON holds them, null where one is not finite; a single one is not named again."""
        figures = {name: _finite(figure._asdict()) for name, figure in self.figures.items()}
        if len(figures) == 1:
            (figures,) = figures.values()
        return {**figures, **self.details}


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


class ImageMetric(abc.ABC):
    """A measure of images, given their features; a subclass is a dataclass, whose fields are its options.

    Attributes:
      has_reference: Whether it compares with a reference.
      higher_is_better: Whether larger figures mean better images.
      unbiased: Whether it is a distance whose mean is 0 where images and reference are of one distribution.
      figures: Names of its figures.
      remedy: What to do if there are too few images.
    """

    has_reference: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]]

    remedy: ClassVar[str] = "take more"

    def least(self, num_features: int) -> int:
        """Returns the smallest number of images, and of reference images, that it measures."""
        del num_features
        return 1

    @abc.abstractmethod
    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        """Returns the figures.

        Args:
          images: Features of the images.
          reference: Those of the reference; None for a metric without one.

        Raises:
          InputError: Too few images, or a reference without what the metric needs.
        """

    def save(
        self, folder: Path, result: Measured, images: FeatureSet, reference: Any
    ) -> list[Path]:
        """Writes arrays and pictures; returns the files."""
        del folder, result, images, reference
        return []


def result_name(name: str, extractor: Extractor) -> str:
    """Returns a figure's name in results, such as kid_dinov2; `fid` is fd of inception with its published weights."""
    is_fid = (name, extractor.name) == ("fd", "inception") and extractor.published
    return "fid" if is_fid else f"{name}_{extractor.name}"
