"""Lower bound of a train step's time: the roofline model of Williams et al. (2009), with a roof for the links.

step >= max(operations / peak, bytes accessed / memory bandwidth, bytes sent / link bandwidth)
"""

from __future__ import annotations

import dataclasses

from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.program import Compiled


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step that each resource needs at its peak rate."""

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """The largest of them, a lower bound of the step's time."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def limited_by(self) -> str:
        """The slowest resource."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def roofline(step: Compiled, chip: Chip, dtype: str) -> Roofline:
    """Returns the lower bounds of a step's time.

    Args:
      step: The compiled step.
      chip: Peak performance of each device.
      dtype: Type of the network's computation.
    """
    sent = sum(traffic.sent_bytes for traffic in step.collectives.values())
    return Roofline(
        step.flops / chip.flops[dtype],
        step.bytes_accessed / chip.bandwidth,
        sent / chip.interconnect,
    )


def estimate(step: Compiled, chip: Chip) -> float | None:
    """Returns the TPU compiler's estimate of a step in seconds, with operations in sequence; None: unknown.

    Kernels, of which it expects nothing, are added at the peak of matrix products.
    """
    if not (step.cycles and chip.clock):
        return None
    return sum(step.cycles.values()) / chip.clock + kernel_seconds(step, chip)


def kernel_seconds(step: Compiled, chip: Chip) -> float:
    """Returns the least time of the kernels that state their operations.

    Args:
      step: The compiled step.
      chip: Peak performance of each device.
    """
    return step.kernels.flops / chip.flops["bfloat16"]


def gflop_per_image(step: Compiled, batch_size: int) -> float:
    """Returns the operations per trained image, over all devices, in units of 10^9."""
    num_devices = 1
    for size in step.mesh.values():
        num_devices *= size
    return step.flops * num_devices / batch_size / 1e9
