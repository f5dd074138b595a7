"""The least time that a train step can take on a chip: the roofline of Williams et al. (2009), with a third roof.

step >= max(operations / peak, bytes accessed / bandwidth of the memory, bytes sent / bandwidth of the links)
"""

import dataclasses

from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.program import Compiled


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step that each resource needs at its peak, if the others cost nothing."""

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """The largest: no step is faster."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def limited_by(self) -> str:
        """The resource that takes longest."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def roofline(step: Compiled, chip: Chip, dtype: str) -> Roofline:
    """Returns the least time of a step.

    Args:
      step: The compiled step.
      chip: Peak figures of each of its devices.
      dtype: Type that the network computes in.
    """
    sent = sum(traffic.sent_bytes for traffic in step.collectives.values())
    return Roofline(
        step.flops / chip.flops[dtype],
        step.bytes_accessed / chip.bandwidth,
        sent / chip.interconnect,
    )


def estimate(step: Compiled, chip: Chip) -> float | None:
    """Returns the seconds that the TPU's compiler expects of a step, one operation after the other; None: not known."""
    return sum(step.cycles.values()) / chip.clock if step.cycles and chip.clock else None


def gflop_per_image(step: Compiled, batch_size: int) -> float:
    """Returns 10^9 operations of training an image, those of all devices."""
    num_devices = 1
    for size in step.mesh.values():
        num_devices *= size
    return step.flops * num_devices / batch_size / 1e9
