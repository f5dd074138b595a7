"""Places besides metrics.jsonl that a training run reports to: TensorBoard, Weights & Biases, or your own."""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.errors import InputError, reason
from diffusion_jax.options import Component, Option, Registry
from diffusion_jax.options.kinds import Text
from diffusion_jax.writing.atomic import atomic_write

RUN_ID = "wandb_id"  # File of the workdir: a resumed run goes on with the same curves.


class Logger(Protocol):
    """Where a run reports to; process 0 alone has one.

    It is made from what it asks for of `workdir`, `start`, the step that the run goes on from, and `settings`, the
    config as JSON holds it. An exception ends the training: a place that may be away must wait, or forget.
    """

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Adds a point to the curve of each value; None: it was not finite."""
        ...

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        """Adds a picture."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class TensorBoard:
    """Writes TensorBoard's events.

    It replaces tensorboardX's SummaryWriter, whose thread dies on a full disk, so that the run would never end.
    """

    def __init__(self, workdir: Path, start: int) -> None:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, getattr(event_pb2, "Event")  # noqa: B009
        # The name includes the process, since a restart may fall into the same second.
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard discards what an earlier start has written beyond this step.
        log = getattr(event_pb2, "SessionLog")  # noqa: B009
        self._write(start + 1, session_log=log(status=log.START))

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        for name, value in values.items():
            if value is not None:
                self._write(step, summary=self._summary.scalar(name, value))
        self._writer.flush()

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        self._write(step, summary=self._summary.image(name, picture, dataformats="HWC"))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))


PROJECT = Option(Text("a name"), "wandb: project that the run belongs to", on_resume=True)


class WeightsAndBiases:
    """Reports to Weights & Biases, by its package `wandb`.

    Its environment variables hold: WANDB_MODE=offline writes to the workdir, for `wandb sync` later.

    Raises:
      InputError: wandb is not installed, or does not start, such as without a login.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        settings: Mapping[str, Any],
        *,
        wandb_project: Annotated[str, PROJECT] = "diffusion_jax",
    ) -> None:
        # Rows that a resumed run writes again are drawn again, at the same place: the resumed run is the same.
        del start
        try:
            wandb = importlib.import_module("wandb")  # Of an extra.
        except ImportError as error:
            raise InputError(
                "train.loggers names wandb, which is not installed: pip install 'diffusion_jax[wandb]'"
            ) from error
        file = workdir / RUN_ID
        if not file.exists():
            with atomic_write(file) as path:
                path.write_text(uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=wandb_project,
                id=file.read_text().strip(),
                name=workdir.name,
                dir=str(workdir),
                config=dict(settings),
                resume="allow",
            )
        except Exception as error:  # Of many kinds: no login, no network, a bad name.
            raise InputError(f"train.loggers: wandb does not start: {reason(error)}") from error
        self._image = wandb.Image
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self._run.log({"step": step, **known})

    def image(self, name: str, picture: UInt8[np.ndarray, "h w c"], step: int) -> None:
        pixels = picture.squeeze(2) if picture.shape[2] == 1 else picture
        self._run.log({"step": step, name: self._image(pixels)})

    def close(self) -> None:
        self._run.finish()


LOGGERS: Registry[Component[Logger]] = Registry(
    "logger",
    {
        "tensorboard": Component(TensorBoard, "tensorboard/ in the workdir"),
        "wandb": Component(WeightsAndBiases, "Weights & Biases, extra [wandb]"),
    },
    given=("workdir", "start", "settings"),
)
