"""Improved precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diffusion_jax.metrics.base import MeanStdErr, mean_stderr
from diffusion_jax.metrics.feature_set import FeatureSet
from diffusion_jax.metrics.image_metric import ImageMetric, Measured
from diffusion_jax.metrics.neighbors import distance_blocks, nearest_neighbors
from diffusion_jax.options import Option, kinds


class PrecisionRecall(NamedTuple):
    """How much of the images lies among the reference, and of the reference among the images.

    Attributes:
      precision: Share of the images that are nearer to a reference image than its k-th neighbor (Kynkäänniemi et al.,
        2019).
      recall: Share of the reference images that are nearer to an image than its k-th neighbor.
      density: Mean number of such reference images of an image, over k (Naeem et al., 2020).
      coverage: Share of the reference images that have an image nearer than their k-th neighbor.
    """

    precision: MeanStdErr
    recall: MeanStdErr
    density: MeanStdErr
    coverage: MeanStdErr


def precision_recall(
    images: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"], *, num_neighbors: int = 3
) -> PrecisionRecall:
    """Returns precision, recall, density and coverage, with standard errors over the images or the reference images.

    "Nearer" is strict, as in Naeem et al.'s prdc: images with k duplicates have a radius of 0, in which none lies.

    Args:
      images: Features of the images.
      reference: Features of the reference.
      num_neighbors: k; the radius of an image is the distance of its k-th neighbor in its own set.

    Raises:
      InputError: There are no more than k of either.
    """
    radii_images, radii_reference = (
        nearest_neighbors(x, count=num_neighbors).distances[:, -1] for x in (images, reference)
    )
    within = np.zeros(len(images))  # Number of reference images in whose radius it lies.
    recalled, covered = (np.zeros(len(reference), bool) for _ in range(2))
    for i, j, block in distance_blocks(images, reference):
        rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
        inside: Bool[np.ndarray, "a b"] = block < radii_reference[columns]
        within[rows] += inside.sum(1)
        covered[columns] |= inside.any(0)
        recalled[columns] |= (block < radii_images[rows, None]).any(0)
    return PrecisionRecall(
        *(
            mean_stderr(x.astype(np.float64))
            for x in (within > 0, recalled, within / num_neighbors, covered)
        )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Manifolds(ImageMetric):
    """Precision, recall, density and coverage.

    Attributes:
      seed: Seed of the images that are taken where there are more than `most`.
      num_neighbors: Neighbor whose distance is an image's radius.
      most: Largest number of images of each set; the time grows with its square.
    """

    seed: int = 0
    num_neighbors: Annotated[
        int,
        Option(
            kinds.Int(1, 1000),
            "neighbor whose distance is an image's radius",
            field="pr_neighbors",
        ),
    ] = 3
    most: Annotated[
        int,
        Option(
            kinds.Int(10, 10_000_000),
            "largest number of images of each set, taken at random from more",
            field="pr_images",
        ),
    ] = 10_000

    higher_is_better: ClassVar = True
    figures: ClassVar = PrecisionRecall._fields

    def least(self, num_features: int) -> int:
        del num_features
        return self.num_neighbors + 1

    def measure(self, images: FeatureSet, reference: FeatureSet | None) -> Measured:
        assert reference is not None
        rng = np.random.default_rng(self.seed)
        taken = []
        for rows in (images.rows("pr"), reference.rows("pr")):
            if len(rows) > self.most:
                rows = rows[np.sort(rng.choice(len(rows), self.most, replace=False))]
            taken.append(rows)
        found = precision_recall(*taken, num_neighbors=self.num_neighbors)
        counts = {"num_images": len(taken[0]), "num_reference": len(taken[1])}
        return Measured(found._asdict(), counts)
