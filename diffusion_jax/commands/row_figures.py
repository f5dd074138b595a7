"""The further figures of a training's rows, by its devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from diffusion_jax.experiment.training import Training
from diffusion_jax.planning.chips import chip_of
from diffusion_jax.planning.lowered import count_flops
from diffusion_jax.training.row_figures import RowFigures
from diffusion_jax.training.step import DeviceBatch


def row_figures(
    training: Training, batch: DeviceBatch, schedule: Callable[[int], Any], dtype: str
) -> RowFigures:
    """Returns what the rows of a training say of its learning rate and, where a peak is known, of its FLOP/s.

    Args:
      training: Its steps.
      batch: Shapes of a batch.
      schedule: k -> learning rate of step k, counted from 0.
      dtype: Type of the network's computation.
    """
    mesh, rate = training.mesh, _on_host(schedule)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is None or dtype not in chip.flops or jax.process_index() != 0:
        return RowFigures(rate)

    def flops() -> float:
        lowered = training.steps[1].lower(training.template, batch)
        return count_flops(lowered)[0] * mesh.size  # Each device computes what `shard_map` maps.

    return RowFigures(rate, flops, mesh.size * chip.flops[dtype])


def _on_host(schedule: Callable[[int], Any]) -> Callable[[int], float]:
    """Returns the schedule, computed on the host's CPU where JAX has it: the devices have steps to do."""

    def rate(step: int) -> float:
        try:
            host = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX_PLATFORMS leaves the CPU out.
            host = None
        with jax.default_device(host):
            return float(schedule(step))

    return rate
