"""Nearest training images of samples, and how many samples are copies of them (Alaa et al., 2022)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.base import MeanStdErr, mean_stderr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.neighbors import Nearest, nearest_neighbors
from diffusion_jax.options import Option, kinds
from diffusion_jax.reporting import pictures, results


class Copies(NamedTuple):
    """The training images nearest to each image.

    Attributes:
      nearest: The training images, nearest first.
      ratios: Distance of the nearest over that training image's distance from its own nearest neighbor among the
        training images; 0 for an image with the same features.
      authentic: Whether the ratio is above 1 (Alaa et al., 2022): the image is no nearer than training images are to
        each other there.
    """

    nearest: Nearest
    ratios: Float[np.ndarray, " n"]
    authentic: MeanStdErr


def find_copies(
    images: Float[np.ndarray, "n d"], training: Float[np.ndarray, "m d"], *, count: int = 3
) -> Copies:
    """Returns the training images nearest to each image, and how near they are for training images.

    Args:
      images: Features of the images.
      training: Features of the training images.
      count: Number of training images for each image.

    Raises:
      InputError: There are too few training images.
    """
    nearest = nearest_neighbors(images, training, count=count)
    own = nearest_neighbors(training, count=1).distances[:, 0][nearest.indices[:, 0]]
    distances = nearest.distances[:, 0]
    # Two training images with the same features: an image at the same place is a copy, any other is not.
    ratios = np.divide(distances, own, out=np.where(distances > 0, np.inf, 0.0), where=own > 0)
    return Copies(nearest, ratios, mean_stderr((ratios > 1).astype(np.float64)))


@dataclasses.dataclass(frozen=True, eq=False)
class NearestTraining(ImageMetric):
    """The share of authentic images, the number of near copies, and a picture of those nearest to training images.

    Attributes:
      count: Number of training images found for each image.
      shown: Number of images in the picture.
      copy_ratio: Ratio of distances below which an image counts as a copy.
    """

    count: Annotated[
        int,
        Option(
            kinds.Int(1, 100), "nearest training images found for each image", field="nearest_count"
        ),
    ] = 3
    shown: Annotated[
        int,
        Option(
            kinds.Int(1, 1000),
            "images in nearest.png, from those nearest to a training image on",
            field="nearest_shown",
        ),
    ] = 10
    copy_ratio: Annotated[
        float,
        Option(
            kinds.Float(0, 1),
            "an image is a copy if its distance from a training image is less than this share of that image's own "
            "distance from the other training images",
        ),
    ] = 0.33

    higher_is_better: ClassVar = True
    figures: ClassVar = ("authentic",)

    def least(self, num_features: int) -> int:
        del num_features
        return 2  # Each training image has a neighbor.

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        assert reference is not None
        rows = reference.rows("nearest")
        found = find_copies(images.rows("nearest"), rows, count=min(self.count, len(rows)))
        copies = int((found.ratios < self.copy_ratio).sum())
        details = {
            "copies": copies,
            "copy_ratio": self.copy_ratio,
            "num_images": len(found.ratios),
            "num_reference": len(rows),
        }
        return Measured({"authentic": found.authentic}, details, found)

    def save(
        self, folder: Path, result: Measured, images: FeatureSet, reference: FeatureSet
    ) -> list[Path]:
        """Writes nearest.npz and nearest.png: in each row an image and the training images nearest to it."""
        found: Copies = result.kept
        path = folder / "nearest.npz"
        results.write_npz(path, **found.nearest._asdict(), ratios=found.ratios)
        if images.read is None or reference.read is None:
            return [path]
        first = np.argsort(found.ratios, kind="stable")[: self.shown]
        beside = reference.read(found.nearest.indices[first].ravel())
        beside = beside.reshape(len(first), -1, *beside.shape[1:])
        rows = np.concatenate([images.read(first)[:, None], beside], 1)
        picture = pictures.grid(
            pictures.magnified(rows.reshape(-1, *rows.shape[2:])), columns=rows.shape[1]
        )
        pictures.save_png(folder / "nearest.png", picture)
        return [path, folder / "nearest.png"]
