"""What is measured of a split, in parts that survive a kill: a batch of images each, kept on the host in float64.

A part that has been measured is written to a file, so that a killed job goes on where it was, and a larger one of the
same kind starts from a smaller one.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, jaxtyped

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.lifecycle import stopping
from diffusion_jax.lifecycle.ownership import owned_write
from diffusion_jax.parallel import sharding
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.writing.atomic import remove_unfinished


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
      axes: Which axis of each of these arrays is the batch; None: none, it is the same for all.
      part: The dataclass of a part.
      part_of: (indices, the arrays on the host, those of the images alone) -> a part.
      fits: Whether a part that was read is of this figure, and not of another with fewer steps, say.
      combine: The parts of all images -> the figure.
    """

    compute: Callable[..., tuple[Array, ...]]
    axes: tuple[int | None, ...]
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
    size = -(-min(batch_size, total) // mesh.size) * mesh.size
    batched = sharding.batch_sharding(mesh)
    rows = sharding.local_rows(batched, size)

    def of_rows(params: Any, batch: dict[str, Any], indices: Any) -> tuple:
        labels = batch["label"] if conditional else None
        return figure.compute(params, to_model_range(batch["image"]), labels, indices)

    compiled = jax.jit(sharding.over_batch(of_rows, mesh, out_axes=figure.axes))

    def measure(
        params: Any, folder: Path | None = None, done: Callable[[int], object] | None = None
    ) -> R:
        tell = done or (lambda count: None)
        if folder is not None and jax.process_index() == 0:
            remove_unfinished(folder)
        parts = [] if folder is None else list(_read_parts(folder, figure, total))
        missing = np.setdiff1d(np.arange(total), [i for part in parts for i in part.indices])
        for part in parts:
            tell(len(part.indices))
        for first in range(0, len(missing), size):
            indices = missing[first : first + size]
            padded = np.resize(indices, size)[rows]
            inputs = sharding.put(batched, (split.read(padded), padded.astype(np.int32)))
            whole = sharding.fetch(compiled(params, *inputs))
            kept = (
                array if axis is None else np.take(array, range(len(indices)), axis)
                for array, axis in zip(whole, figure.axes, strict=True)
            )
            part = figure.part_of(indices, *kept)
            parts.append(part)
            if folder is not None and jax.process_index() == 0:
                _write_part(folder, part)
            tell(len(indices))
            stopping.check()
        return figure.combine(parts)

    return measure


def _write_part(folder: Path, part: Part) -> None:
    """Writes one part; a kill leaves either the whole file or none."""
    path = folder / f"{part.indices[0]:08}-{part.indices[-1]:08}.npz"
    with owned_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **vars(part))


def _read_parts(folder: Path, figure: Figure[P, R], total: int) -> Iterator[P]:
    """Yields the parts that an earlier start has left, of the first `total` images, none of which twice."""
    if jax.process_count() > 1:
        return  # Each process must measure the same batches.
    seen: set[int] = set()
    for path in sorted(folder.glob("*.npz")):
        part = _read_part(path, figure.part)
        if part is None or not figure.fits(part):
            continue
        indices = set(part.indices.tolist())
        whole = 0 < len(indices) == len(part.indices) and 0 <= min(indices) <= max(indices) < total
        if whole and not indices & seen:
            seen |= indices
            yield part


def _read_part(path: Path, kind: type[P]) -> P | None:
    """Returns what `_write_part` wrote, or None if the file is damaged or of another version."""
    with contextlib.suppress(OSError, ValueError):
        arrays = read_npz(path)
        hints = typing.get_type_hints(kind)
        with jaxtyped("context"):  # The sizes that the annotations name are the same in all arrays.
            if arrays.keys() == hints.keys() and all(
                isinstance(arrays[name], hint) for name, hint in hints.items()
            ):
                return kind(**arrays)
    return None
