"""The interface of metrics, and their evaluation in shards of one batch each, in float64 on the host.

Each finished shard is written to a file, so that a killed job resumes, and a larger job of the same kind starts from
a smaller one.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, jaxtyped

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.options import Option, kinds
from diffusion_jax.parallel.map_batches import map_batches, padded_size
from diffusion_jax.parallel.resumable import Arrays, Batches
from diffusion_jax.processes.process import Grid


@dataclasses.dataclass(frozen=True)
class Shard:
    """The contribution of some images; a metric's own dataclass adds NumPy arrays.

    Attributes:
      indices: Indices of the images.
    """

    indices: Int[np.ndarray, " b"]


S = TypeVar("S", bound=Shard)
R = TypeVar("R")
U_MIN = Option(
    kinds.Float(0, 1, open=True),
    "vp, subvp, ve: u of the last point before the data; unset: bpd: 1e-3, ve: 1e-5; ode_bpd: 1e-5",
)


class Metric(abc.ABC, Generic[S, R]):
    """A quantity measured on the images of a split; a subclass is a dataclass, whose fields are its options.

    Attributes:
      axes: Which axis of each array that `compute` returns is the batch.
      shard_type: The dataclass of a shard.
      passes: Number of steps per image that `compute` reports to `progress`.
      grid: Points whose steps are measured one by one; None if there are none.
    """

    axes: ClassVar[tuple[int, ...]]
    shard_type: ClassVar[type[Any]]

    @property
    def passes(self) -> int:
        return 1

    @property
    def grid(self) -> Grid | None:
        return None

    @abc.abstractmethod
    def compute(
        self,
        params: Any,
        x0: Float[Array, "b h w c"],
        labels: Int[Array, " b"] | None,
        indices: Int[Array, " b"],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[Array, ...]:
        """Returns arrays for a batch; called inside `jit`.

        Args:
          params: The network's parameters.
          x0: Images in [-1, 1].
          labels: Their classes; None if the network takes none.
          indices: Their indices in the split.
          progress: Host function, called with the number of passes done.
        """

    @abc.abstractmethod
    def shard(self, indices: Int[np.ndarray, " b"], *arrays: Any) -> S:
        """Returns the contribution of these images from the output of `compute`, on the host."""

    @abc.abstractmethod
    def fits(self, shard: S) -> bool:
        """Whether a shard from a file can belong to this metric, and not, say, to one with fewer steps."""

    @abc.abstractmethod
    def combine(self, shards: list[S]) -> R:
        """Returns the result from the shards of all images."""

    @abc.abstractmethod
    def record(self, result: R) -> dict[str, Any]:
        """Returns the results as JSON holds them, null where one is not finite."""

    @abc.abstractmethod
    def summarize(self, record: dict[str, Any]) -> str:
        """Returns the results in words, from their record in results/evaluate.json."""

    def save(self, folder: Path, result: R) -> list[Path]:
        """Writes arrays and pictures; returns the files."""
        del folder, result
        return []

    def check(self, result: R) -> None:
        """Raises for a result that must not be written.

        Raises:
          InputError: Options with which nothing could be measured.
        """
        del result

    def problem(self, result: R) -> str | None:
        """Returns a warning about a result that is written nevertheless, or None."""
        del result
        return None


class MeanStdErr(NamedTuple):
    """A mean over images and its standard error, NaN for one image; both NaN if that of any image is not finite."""

    value: float
    stderr: float


def mean_stderr(values: Float[np.ndarray, " n"]) -> MeanStdErr:
    """Returns the mean of one value per image."""
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    value = float(values.mean())
    return MeanStdErr(value, float(stderr)) if np.isfinite(value) else MeanStdErr(np.nan, np.nan)


def make_measure(
    metric: Metric[S, R],
    split: data.Split,
    mesh: jax.sharding.Mesh,
    *,
    conditional: bool,
    num_images: int,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> Callable[..., R]:
    """Returns (params, folder=None, done=None) -> the metric of the first `num_images` of a split, the same every time.

    Neither the devices nor `batch_size` change it beyond float rounding. With a folder, each shard is written there,
    and what is there already is not measured again. `done` is called with the number of images of each shard.

    Args:
      metric: The metric to evaluate.
      split: Images, uint8.
      mesh: Devices.
      conditional: Whether the network is given labels.
      num_images: Maximum number of images; fewer if the split is smaller.
      batch_size: Images per batch, rounded up to a multiple of the number of devices.
      progress: Host function, called with the number of passes done of each batch.

    Raises:
      InputError: The split has no images.
    """
    total = min(num_images, split.num_images)
    if total == 0:
        raise InputError("this split of the data has no images")
    size = padded_size(min(batch_size, total), mesh)

    def metric_of(params: Any, batch: dict[str, Any], indices: Any) -> tuple:
        labels = batch["label"] if conditional else None
        x0 = to_model_range(batch["image"])
        return metric.compute(params, x0, labels, indices, progress=progress)

    mapped = map_batches(
        metric_of,
        mesh,
        size,
        out_axes=metric.axes,
        load=lambda indices: (split.read(indices), indices.astype(np.int32)),
    )

    def measure(
        params: Any, folder: Path | None = None, done: Callable[[int], object] | None = None
    ) -> R:
        def arrays_of(indices: Int[np.ndarray, " b"]) -> Arrays:
            return vars(metric.shard(indices, *mapped((params,), (indices,))))

        fits = functools.partial(is_shard, shard_type=metric.shard_type, fits=metric.fits)
        read = Batches(folder, total, fits).complete(arrays_of, size, done)
        return metric.combine([metric.shard_type(**arrays) for arrays in read])

    return measure


def is_shard(arrays: Arrays, shard_type: type[S], fits: Callable[[S], bool]) -> bool:
    """Returns whether these are the arrays of a shard of this type and version that fits."""
    hints = typing.get_type_hints(shard_type)
    with jaxtyped("context"):  # Named sizes must agree between arrays.
        return arrays.keys() == hints.keys() and (
            all(isinstance(arrays[name], hint) for name, hint in hints.items())
            and fits(shard_type(**arrays))
        )
