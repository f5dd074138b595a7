"""The host's view of a run's speed and metrics: reads finished steps, times them, logs rows."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import RunError
from diffusion_jax.training.row_figures import RowFigures
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.step import QUARTILES, StepMetrics


class NotFinite(RunError):
    """Loss or gradients are not finite: the state is lost."""


@dataclasses.dataclass
class Sums:
    """Sums over the steps since the last multiple of `log_every`, in float64 on the host.

    A checkpoint keeps them as JSON, which preserves every bit: a resumed run logs the same rows.
    """

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    quartile_loss: list[float] = dataclasses.field(default_factory=lambda: [0.0] * QUARTILES)
    quartile_images: list[float] = dataclasses.field(default_factory=lambda: [0.0] * QUARTILES)

    def add(self, metrics: StepMetrics) -> None:
        """Adds one step."""
        self.steps += 1
        self.loss += float(metrics.loss)
        self.grad_norm += float(metrics.grad_norm)
        for i in range(QUARTILES):
            self.quartile_loss[i] += float(metrics.quartile_loss[i])
            self.quartile_images[i] += float(metrics.quartile_images[i])


class Meter:
    """Reads the metrics of finished steps, times them, and logs a row when one is due.

    Args:
      log: Destination of the rows.
      start: Step that the run resumes from.
      num_steps: Step that it ends at; it gets a row whatever its number.
      log_every: Steps between two rows.
      batch_size: Images per step.
      started: `time.monotonic()` at the start of the command.
      sums: The sums in the checkpoint of step `start`, as `dataclasses.asdict` gives them.
      figures: What else a row says; None: nothing.

    Attributes:
      step: Number of steps read.
      sums: Sums for the next row.
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
        sums: dict[str, Any] | None = None,
        figures: RowFigures | None = None,
    ) -> None:
        self._log, self.step, self._row_step, self._started = log, start, start, started
        self._num_steps, self._log_every, self._batch_size = num_steps, log_every, batch_size
        self._first, self._figures = True, figures
        self.sums = Sums(**(sums or {}))
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self._waited = self._paused = 0.0

    def waiting(self) -> _Stopwatch:
        """Times the wait for input."""
        return _Stopwatch(self, "_waited")

    def paused(self) -> _Stopwatch:
        """Excludes what happens between steps (checkpoints, pictures) from the speed."""
        return _Stopwatch(self, "_paused")

    def rests(self, step: int) -> bool:
        """Whether the row of a step counts operations: steps that run meanwhile would take no time in the next row."""
        due = step % self._log_every == 0 or step == self._num_steps
        return due and self._figures is not None and self._figures.uncounted

    def read(self, metrics: StepMetrics) -> None:
        """Waits for the next dispatch; adds up its steps, and logs them if a row is due.

        Args:
          metrics: Metrics of one step, or of several, stacked; only the last of them may have a row due.

        Raises:
          NotFinite: Loss, gradients or new parameters of a step were not finite.
        """
        host = jax.device_get(metrics)
        stacked = host if np.ndim(host.loss) else jax.tree.map(lambda x: x[None], host)
        for i in range(len(stacked.loss)):
            one = StepMetrics(*(values[i] for values in stacked))
            self.step += 1
            if not np.isfinite([one.loss, one.grad_norm, one.param_norm]).all():
                raise NotFinite(f"loss or gradients are not finite at step {self.step}")
            self.sums.add(one)
        self._log.advance(self.step)
        if self._first:
            self._first = False
            self._log.say(
                f"first step done {time.monotonic() - self._started:.1f} s after the start"
            )
            # The speed of training does not include compilation.
            self._row_step = self.step
            self._restart_clock()
        whole = self.step % self._log_every == 0
        if whole or self.step == self._num_steps:
            self._log.metrics(self._row(float(stacked.param_norm[-1])))
            self._row_step = self.step
            self._restart_clock()
        if whole:
            self.sums = Sums()

    def _row(self, param_norm: float) -> dict[str, Any]:
        seconds = time.monotonic() - self._since - self._paused
        steps, sums = self.step - self._row_step, self.sums
        speed = steps / seconds if steps > 0 and seconds > 0 else None
        quartiles = {
            f"loss_q{i + 1}": loss / images if images else None
            for i, (loss, images) in enumerate(
                zip(sums.quartile_loss, sums.quartile_images, strict=True)
            )
        }
        return {
            "step": self.step,
            "loss": sums.loss / sums.steps,
            **quartiles,
            "grad_norm": sums.grad_norm / sums.steps,
            "param_norm": param_norm,
            "steps_per_sec": speed,
            "images_per_sec": speed and speed * self._batch_size,
            "input_wait": self._waited / seconds if seconds > 0 else 0.0,
            "seconds": seconds,
            "seconds_left": speed and (self._num_steps - self.step) / speed,
            **(self._figures.row(self.step, speed) if self._figures else {}),
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
