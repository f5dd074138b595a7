"""Distances between features in blocks, and measures made of nearest neighbors: precision, recall, copies."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.base import MeanStdErr, mean_stderr
from diffusion_jax.metrics.moments import chunks

BLOCK = 1024


def distance_blocks(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Iterator[tuple[int, int, Float[np.ndarray, "a b"]]]:
    """Yields (i, j, Euclidean distances of x[i : i + a] and y[j : j + b]), all of an i after another; float64.

    Only two blocks of features are in memory at once.
    """
    first_x = 0
    for rows in chunks(x, BLOCK):
        first_y, squares = 0, (rows**2).sum(1)
        for columns in chunks(y, BLOCK):
            squared = squares[:, None] + (columns**2).sum(1) - 2 * rows @ columns.T
            yield first_x, first_y, np.sqrt(np.maximum(squared, 0))
            first_y += len(columns)
        first_x += len(rows)


class Nearest(NamedTuple):
    """The nearest vectors of another set, or of the rest of the same, nearest first.

    Attributes:
      indices: Their indices.
      distances: Their distances.
    """

    indices: Int[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]


def nearest_neighbors(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"] | None = None, *, count: int
) -> Nearest:
    """Returns the `count` vectors of y nearest to each of x; where y is None, of the rest of x.

    Raises:
      InputError: There are too few.
    """
    others = len(x) - 1 if y is None else len(y)
    if others < count:
        raise InputError(f"{count} nearest neighbors are asked for, but there are {others} images")
    indices = np.full((len(x), count), -1)
    distances = np.full((len(x), count), np.inf)
    for i, j, block in distance_blocks(x, x if y is None else y):
        rows, columns = slice(i, i + block.shape[0]), np.arange(j, j + block.shape[1])
        if y is None:
            block[np.arange(i, i + block.shape[0])[:, None] == columns] = np.inf
        candidates = np.concatenate([distances[rows], block], 1)
        named = np.concatenate([indices[rows], np.broadcast_to(columns, block.shape)], 1)
        kept = np.argpartition(candidates, count - 1, 1)[:, :count]
        distances[rows] = np.take_along_axis(candidates, kept, 1)
        indices[rows] = np.take_along_axis(named, kept, 1)
    order = np.argsort(distances, 1, kind="stable")
    return Nearest(*(np.take_along_axis(a, order, 1) for a in (indices, distances)))


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
