"""Logs of a training run: progress bar, metrics.jsonl, and its loggers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.errors import RunError, reason
from diffusion_jax.reading import metrics_rows
from diffusion_jax.reporting.figures import PREFIX, figure_names
from diffusion_jax.training.loggers import Logger, TensorBoard

# What a line of the log calls a figure.
_WORDS = {"eval_loss": "eval", "eval_bpd": "bits/dim"}


class RunLog:
    """Writes the metrics of a training run, on process 0 only.

    metrics.jsonl holds one JSON object per logged step, with its checksum. After a resume, rows past the checkpoint are
    dropped, since the run writes them again. Damaged ones are moved to metrics.damaged.jsonl. Both are reported.

    Args:
      workdir: Folder of the run.
      start: Step that the run resumes from.
      num_steps: Step that it ends at.
      writes: False on all processes but the first.
      loggers: Where else to report to: functions that are called with workdir=…, start=….
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        num_steps: int,
        *,
        writes: bool = True,
        loggers: Sequence[Callable[..., Logger]] = (TensorBoard,),
    ) -> None:
        from tqdm import tqdm

        self._writes = writes
        self._path = workdir / "metrics.jsonl"
        self._bar = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (writes and sys.stderr.isatty()),
        )
        self._rows: list[dict[str, Any]] = []
        self._loggers: list[Logger] = []
        if not writes:
            return
        try:
            self._rows, said = metrics_rows.go_on_from(self._path, start)
            self._file = self._path.open("a")
        except OSError as error:
            raise RunError(
                f"cannot go on with {error.filename or self._path}: {reason(error)}"
            ) from error
        for line in said:
            self.say(line)
        self._loggers = [make(workdir=workdir, start=start) for make in loggers]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, those before a resume included; empty where `writes` is false."""
        return self._rows

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step."""
        self._bar.update(step - self._bar.n)

    def metrics(self, row: dict[str, Any]) -> None:
        """Records the metrics of a step: row["step"], row["loss"], ...

        Metrics of a step that has a row already (its held-out loss, say) join that row's curve as a row
        of their own.
        """
        self._rows.append(row)
        if not self._writes:
            return
        self._file.write(metrics_rows.line_of(row))
        self._file.flush()
        values = {name: value for name, value in row.items() if name != "step"}
        for logger in self._loggers:
            logger.scalars(values, row["step"])
        shown = {
            "loss": f"{row['loss']:.4f}" if row.get("loss") is not None else None,
            **{
                _WORDS.get(name, name.removeprefix(PREFIX)): _figure(row[name])
                for name in figure_names([row])
            },
            "images/s": f"{row['images_per_sec']:.0f}" if row.get("images_per_sec") else None,
            "MFU": f"{row['mfu']:.1%}" if row.get("mfu") else None,
            "input wait": f"{row['input_wait']:.0%}" if "input_wait" in row else None,
        }
        shown = {name: text for name, text in shown.items() if text is not None}
        if self._bar.disable:
            details = "  ".join(f"{name} {text}" for name, text in shown.items())
            left = _clock(row.get("seconds_left"))
            print(f"step {row['step']}/{self._bar.total}  {details}{left}", file=sys.stderr)
        else:
            self._bar.set_postfix(shown)

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        """Gives a picture to the loggers."""
        for logger in self._loggers:
            logger.image(name, picture, step)

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""
        if self._writes:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._bar.close()
        if self._writes:
            with contextlib.ExitStack() as stack:  # All are closed, whichever fails.
                stack.enter_context(self._file)
                for logger in self._loggers:
                    stack.callback(logger.close)


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  left {hours}:{minutes:02}:{seconds:02}"
