"""A metric that is the mean of one number per image, the easiest base of a custom metric."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.metrics.base import MeanStdErr, Metric, Shard, mean_stderr


@dataclasses.dataclass(frozen=True)
class MeanShard(Shard):
    """The numbers of some images, in float64.

    Attributes:
      values: One number per image.
    """

    values: Float[np.ndarray, " b"]


class Mean(NamedTuple):
    """A mean over the images of a split.

    Attributes:
      total: The mean, with its standard error.
      num_images: Number of images.
    """

    total: MeanStdErr
    num_images: int


class MeanMetric(Metric[MeanShard, Mean]):
    """The mean of `value` over the images of a split; a subclass is a dataclass, whose fields are its options."""

    axes: ClassVar = (0,)
    shard_type: ClassVar = MeanShard

    @abc.abstractmethod
    def value(
        self,
        params: Any,
        x0: Float[Array, " b *dims"],
        labels: Int[Array, " b"] | None,
        indices: Int[Array, " b"],
    ) -> Float[Array, " b"]:
        """Returns one number per image; called inside `jit`. Arguments are those of `Metric.compute`."""

    def compute(
        self,
        params: Any,
        x0: Float[Array, " b *dims"],
        labels: Int[Array, " b"] | None,
        indices: Int[Array, " b"],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[Array, ...]:
        del progress  # There is only one pass.
        return (self.value(params, x0, labels, indices),)

    def shard(self, indices: Int[np.ndarray, " b"], *arrays: Any) -> MeanShard:
        return MeanShard(indices, np.asarray(arrays[0], np.float64))

    def fits(self, shard: MeanShard) -> bool:
        return True

    def combine(self, shards: list[MeanShard]) -> Mean:
        order = np.argsort(np.concatenate([shard.indices for shard in shards]))
        values = np.concatenate([shard.values for shard in shards])[order]
        return Mean(mean_stderr(values), len(values))

    def problem(self, result: Mean) -> str | None:
        """Returns a warning if the mean is not finite, or None."""
        if np.isfinite(result.total.value):
            return None
        return f"the {type(self).__name__} of some images is not finite, so the mean is not either"

    def record(self, result: Mean) -> dict[str, Any]:
        figures = {
            name: value if np.isfinite(value) else None
            for name, value in result.total._asdict().items()
        }
        return {**figures, "num_images": result.num_images}

    def summarize(self, record: dict[str, Any]) -> str:
        value, stderr = (
            np.nan if record[name] is None else record[name] for name in MeanStdErr._fields
        )
        return (
            f"{type(self).__name__} {value:.6g} ± {stderr:.2g} of {record['num_images']} {record['split']} images, "
            f"checkpoint {record['step']}"
        )
