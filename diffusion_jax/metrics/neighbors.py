"""Distances between features in blocks, and nearest neighbors."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.errors import InputError
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
