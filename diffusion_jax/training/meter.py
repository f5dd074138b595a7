"""The host's view of a run's speed and metrics: reads finished steps, times them, logs rows."""

import time
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import RunError
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import QUARTILES, MetricSums


class NotFinite(RunError):
    """Loss or gradients are not finite: the state is lost."""


class Meter:
    """Reads the metrics of finished steps, times them, and logs a row when one is due.

    Args:
      log: Where rows go.
      start: Step that the run goes on from.
      num_steps: Step that it ends at; it gets a row whatever its number.
      log_every: Steps between two rows.
      batch_size: Images a step.
      started: `time.monotonic()` at the start of the command.
    """

    def __init__(
        self,
        log: RunLog,
        *,
        start: int,
        num_steps: int,
        log_every: int,
        batch_size: int,
        started: float,
    ) -> None:
        self._log, self._row_step, self._started = log, start, started
        self._num_steps, self._log_every, self._batch_size = num_steps, log_every, batch_size
        self._first = True
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._waited = self._paused = 0.0

    def waiting(self) -> "_Stopwatch":
        """Times the wait for input."""
        return _Stopwatch(self, "_waited")

    def paused(self) -> "_Stopwatch":
        """Takes what happens between steps (checkpoints, pictures) out of the speed."""
        return _Stopwatch(self, "_paused")

    def read(self, step: int, metrics: MetricSums) -> None:
        """Waits for the step; logs it if it is due.

        Raises:
          NotFinite: Loss or gradients were not finite.
        """
        sums = jax.device_get(metrics)
        if sums.bad_step >= 0:
            raise NotFinite(f"loss or gradients are not finite at step {sums.bad_step}")
        self._log.advance(step)
        if self._first:
            self._first = False
            self._log.say(
                f"first step done {time.monotonic() - self._started:.1f} s after the start"
            )
            # Compilation is not the speed of training.
            self._row_step = step
            self._reset()
        if step % self._log_every == 0 or step == self._num_steps:
            self._log.metrics(self._row(step, sums))
            self._row_step = step
            self._reset()

    def _row(self, step: int, sums: MetricSums) -> dict[str, Any]:
        seconds = time.monotonic() - self._since - self._paused
        steps = step - self._row_step
        speed = steps / seconds if steps > 0 and seconds > 0 else None
        with np.errstate(invalid="ignore"):
            quartiles = sums.quartile_loss / sums.quartile_images
        return {
            "step": step,
            "loss": float(sums.loss / sums.steps),
            **{
                f"loss_q{i + 1}": float(q) if np.isfinite(q) else None
                for i, q in zip(range(QUARTILES), quartiles, strict=True)
            },
            "grad_norm": float(sums.grad_norm / sums.steps),
            "param_norm": float(sums.param_norm),
            "steps_per_sec": speed,
            "images_per_sec": speed and speed * self._batch_size,
            "input_wait": self._waited / seconds if seconds > 0 else 0.0,
            "seconds": seconds,
            "seconds_left": speed and (self._num_steps - step) / speed,
        }


class _Stopwatch:
    """Adds the time spent inside a `with` block to a field of a meter."""

    def __init__(self, meter: Meter, field: str) -> None:
        self._meter, self._field = meter, field

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        spent = time.monotonic() - self._start
        setattr(self._meter, self._field, getattr(self._meter, self._field) + spent)
