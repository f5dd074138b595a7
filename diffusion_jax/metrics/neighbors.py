"""Distances between features in blocks, and nearest neighbors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.metrics.moments import check_finite, chunks

BLOCK = 1024


def distance_blocks(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Iterator[tuple[int, int, Float[np.ndarray, "a b"]]]:
    """Yields (i, j, Euclidean distances of x[i : i + a] and y[j : j + b]), all of an i after another; float64.

    Only two blocks of features are in memory at once. Distances much smaller than the spread of the features are
    rounded to some 1e-8 of it.

    Raises:
      InputError: Not all features are finite.
    """
    check_finite(x)
    check_finite(y)
    first_x, center = 0, np.asarray(y[:BLOCK], np.float64).mean(0)
    for rows in chunks(x, BLOCK):
        rows = rows - center  # A mean that is large beside the distances would cost digits.
        first_y, squares = 0, (rows**2).sum(1)
        for columns in chunks(y, BLOCK):
            columns = columns - center
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
      InputError: There are too few, or not all features are finite.
    """
    num_others = len(x) - 1 if y is None else len(y)
    if num_others < count:
        raise InputError(
            f"{count} nearest neighbors are asked for, but there are {num_others} images"
        )
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
    for first in range(0, len(x), BLOCK):  # Exactly, so that equal features are at distance 0.
        part = slice(first, first + BLOCK)
        rows = np.asarray(x[part], np.float64)
        for k in range(count):
            others = np.asarray((x if y is None else y)[indices[part, k]], np.float64)
            distances[part, k] = np.linalg.norm(rows - others, axis=1)
    order = np.argsort(distances, 1, kind="stable")
    return Nearest(*(np.take_along_axis(a, order, 1) for a in (indices, distances)))
