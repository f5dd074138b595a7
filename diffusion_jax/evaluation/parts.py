"""What is measured of a split, in parts that survive a kill: a batch of images each, kept on the host in float64.

A part that has been measured is written to a file, so that a killed job goes on where it was, and a larger one of the
same kind starts from a smaller one.
"""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, jaxtyped

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.parallel.map_batches import map_batches, padded_size
from diffusion_jax.parallel.resumable import Arrays, Batches


@dataclasses.dataclass(frozen=True)
class Part:
    """What some images contribute; a figure's own dataclass has more arrays of NumPy.

    Attributes:
      indices: Which images.
    """

    indices: Int[np.ndarray, " b"]


P = TypeVar("P", bound=Part)
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Figure(Generic[P, R]):
    """A figure of a split.

    Attributes:
      compute: (params, x0, labels, indices) -> a tuple of arrays, to be compiled; x0 in [-1, 1], labels None if the
        network takes none.
      axes: Which axis of each of these arrays is the batch.
      part: The dataclass of a part.
      part_of: (indices, the arrays on the host, those of the images alone) -> a part.
      fits: Whether a part that was read is of this figure, and not of another with fewer steps, say.
      combine: The parts of all images -> the figure.
    """

    compute: Callable[..., tuple[Array, ...]]
    axes: tuple[int, ...]
    part: type[P]
    part_of: Callable[..., P]
    fits: Callable[[P], bool]
    combine: Callable[[list[P]], R]


class Estimate(NamedTuple):
    """A mean over images and its standard error, NaN for one image; both NaN if that of any image is not finite."""

    value: float
    stderr: float


def estimate(values: Float[np.ndarray, " n"]) -> Estimate:
    """Returns the mean of one value an image."""
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    value = float(values.mean())
    return Estimate(value, float(stderr)) if np.isfinite(value) else Estimate(np.nan, np.nan)


def make_measure(
    figure: Figure[P, R],
    split: data.Split,
    mesh: jax.sharding.Mesh,
    *,
    conditional: bool,
    num_images: int,
    batch_size: int,
) -> Callable[..., R]:
    """Returns (params, folder=None, done=None) -> the figure of the first `num_images` of a split, the same every time.

    Neither the devices nor `batch_size` change it beyond float rounding. With a folder, each part is written there, and
    what is there already is not measured again. `done` is called with the number of images of each part.

    Args:
      figure: What is measured.
      split: Images, uint8.
      mesh: Devices.
      conditional: Whether `figure.compute` is given labels.
      num_images: Number of images, at most; fewer if the split is smaller.
      batch_size: Images at once, rounded up to a multiple of the devices.

    Raises:
      InputError: The split has no images.
    """
    total = min(num_images, split.num_images)
    if total == 0:
        raise InputError("this split of the data has no images")
    size = padded_size(min(batch_size, total), mesh)

    def of_rows(params: Any, batch: dict[str, Any], indices: Any) -> tuple:
        labels = batch["label"] if conditional else None
        return figure.compute(params, to_model_range(batch["image"]), labels, indices)

    mapped = map_batches(
        of_rows,
        mesh,
        size,
        out_axes=figure.axes,
        load=lambda indices: (split.read(indices), indices.astype(np.int32)),
    )

    def measure(
        params: Any, folder: Path | None = None, done: Callable[[int], object] | None = None
    ) -> R:
        def compute(indices: Int[np.ndarray, " b"]) -> Arrays:
            return vars(figure.part_of(indices, *mapped((params,), (indices,))))

        batches = Batches(folder, total, lambda arrays: is_part(figure, arrays))
        parts = batches.complete(compute, size, done)
        return figure.combine([figure.part(**part) for part in parts])

    return measure


def is_part(figure: Figure[P, R], arrays: Arrays) -> bool:
    """Whether these are the arrays of a part of this figure, and of this version."""
    hints = typing.get_type_hints(figure.part)
    with jaxtyped("context"):  # The sizes that the annotations name are the same in all arrays.
        return arrays.keys() == hints.keys() and (
            all(isinstance(arrays[name], hint) for name, hint in hints.items())
            and figure.fits(figure.part(**arrays))
        )
