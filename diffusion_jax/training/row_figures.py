"""What a row of the log says of the machine and of the optimizer: learning rate, TFLOP/s, utilization, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass
class RowFigures:
    """Figures of a row that are not sums over its steps.

    Attributes:
      learning_rate: k -> learning rate of step k, counted from 0.
      count_flops: () -> operations of a step, over all devices. It is called once, for the first row. None: they are
        not wanted.
      peak: FLOP/s that all devices have together.
    """

    learning_rate: Callable[[int], float]
    count_flops: Callable[[], float] | None = None
    peak: float = 0.0
    _flops: float | None = None

    @property
    def uncounted(self) -> bool:
        """Whether the next row counts the operations, which takes the host some seconds."""
        return self.count_flops is not None and self._flops is None

    def row(self, step: int, steps_per_sec: float | None) -> dict[str, float | None]:
        """Returns the figures of a row by name.

        Args:
          step: Number of steps done.
          steps_per_sec: Speed since the last row; None: not known.
        """
        figures: dict[str, float | None] = {"learning_rate": self.learning_rate(step - 1)}
        if self.count_flops is not None:
            if self._flops is None:
                self._flops = self.count_flops()
            flops = steps_per_sec and self._flops * steps_per_sec
            figures["tflops"] = flops and flops / 1e12
            figures["mfu"] = flops and flops / self.peak
        if (used := peak_memory()) is not None:
            figures["device_memory"] = used
        return figures


def peak_memory() -> int | None:
    """Returns the most bytes that were in use at once on the fullest of this process's devices; None: not known."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(used, default=None)
