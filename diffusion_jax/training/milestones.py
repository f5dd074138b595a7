"""What a training run does besides its steps: checkpoints, held-out loss, pictures, the final report."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import build, data
from diffusion_jax import config as config_lib
from diffusion_jax.build import Experiment
from diffusion_jax.checkpoints.store import CheckpointStore
from diffusion_jax.errors import InputError
from diffusion_jax.keys import stream
from diffusion_jax.models import count_parameters
from diffusion_jax.parallel import distributed
from diffusion_jax.reporting import pictures, results
from diffusion_jax.samplers.batches import FRAMES, make_batch_sampler
from diffusion_jax.training.held_out import make_held_out_loss
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState


@dataclasses.dataclass
class Run:
    """What all parts of one training run need."""

    config: ConfigDict
    workdir: Path
    exp: Experiment
    mesh: jax.sharding.Mesh
    split: data.Split
    held_out: Callable[[Any], float] | None
    store: CheckpointStore
    log: RunLog
    started: float

    def __post_init__(self) -> None:
        images = self.config.train.sample_images
        frames = min(FRAMES, self.config.sampler.num_steps or self.config.process.num_timesteps)
        self.fingerprint = data.fingerprint(self.split)
        self.draw = make_batch_sampler(self.exp, self.mesh, images, num_frames=frames)

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds besides the state."""
        images = step * self.config.train.batch_size
        position = {
            "seed": self.config.seed,
            "batch": step,
            "epoch": images / self.split.num_images,
            "num_images": self.split.num_images,
            "fingerprint": self.fingerprint,
            "image_shape": self.split.image_shape,
            "num_classes": self.split.num_classes,
        }
        return {"config": json.loads(config_lib.to_json(self.config)), "data": position}


def save(run: Run, state: TrainState, step: int) -> None:
    """Begins a checkpoint; to be called only when all losses up to the step are known to be finite."""
    run.store.save(step, state, run.meta(step))


def measure(run: Run, state: TrainState, step: int) -> None:
    """Measures and draws what is due at a step and not there yet.

    It comes before the step's checkpoint, and again where a run goes on: neither a kill nor a signal loses any.
    """
    config = run.config.train
    last = step == config.num_steps

    def due() -> tuple[bool, bool]:
        known = any(row["step"] == step and "eval_loss" in row for row in run.log.rows)
        held_out = run.held_out is not None and (last or step % config.eval_every == 0)
        draws = bool(config.sample_every) and step % config.sample_every == 0 and not last
        return held_out and not known, draws and not _picture(run, "grid", step).exists()

    held_out_due, samples_due = distributed.first_decides("what is due", due)
    if held_out_due and run.held_out:
        run.log.metrics({"step": step, "eval_loss": run.held_out(state.ema_params)})
    if samples_due:
        _draw_samples(run, state, step)


def _picture(run: Run, name: str, step: int) -> Path:
    return run.workdir / "samples" / f"{name}-{step:08}.png"


def make_held_out(
    config: ConfigDict, exp: Experiment, mesh: jax.sharding.Mesh
) -> Callable[[Any], float] | None:
    """Returns ema_params -> held-out loss, or None if the config asks for none.

    Raises:
      InputError: There are no held-out images.
    """
    if not config.train.eval_every:
        return None
    split = build.load_split(config, "test")
    if split.num_images == 0:
        raise InputError("train.eval_every is set, but the data has no test images")
    return make_held_out_loss(
        exp.loss_fn(),
        split,
        mesh,
        stream(config.seed, "eval"),
        num_timesteps=config.process.num_timesteps,
        conditional=exp.conditional,
        num_images=config.eval.num_images,
        batch_size=config.eval.batch_size,
    )


def _draw_samples(run: Run, state: TrainState, step: int) -> None:
    """Draws a grid of samples of the averaged parameters, and how the first of them came about."""
    sample = run.config.sample
    indices = np.arange(run.config.train.sample_images)
    result = run.draw(state.ema_params, sample.seed, indices, sample.labels)
    if jax.process_index() != 0:
        return
    samples = pictures.grid(pictures.magnified(result.images))
    for name, picture in {"grid": samples, "strip": result.strip()}.items():
        assert picture is not None
        pictures.save_png(_picture(run, name, step), picture)
        run.log.image(name, picture, step)


def finish(run: Run, state: TrainState) -> None:
    """Draws the last pictures and writes results/train.json."""
    run.store.wait()
    step = int(state.step)
    run.log.say(f"trained {step} steps; drawing {run.config.train.sample_images} samples")
    sampling = time.monotonic()
    _draw_samples(run, state, step)
    sampling = time.monotonic() - sampling
    if jax.process_index() != 0:
        return
    rows = run.log.rows
    curve = run.workdir / "loss.png"
    pictures.save_loss_curve(curve, rows)
    trained = [row for row in rows if "loss" in row]
    held_out = [row["eval_loss"] for row in rows if row["step"] == step and "eval_loss" in row]
    path = results.add_result(
        run.workdir,
        "train",
        {
            "step": step,
            "loss": trained[-1]["loss"] if trained else None,
            "eval_loss": held_out[-1] if held_out else None,
            "config_hash": config_lib.config_hash(run.config),
            "parameters": count_parameters(state.params),
            "train_seconds": round(sum(row["seconds"] for row in trained), 3),
            "sampling_seconds": round(sampling, 3),
            "seconds_this_start": round(time.monotonic() - run.started, 1),
            "images_per_sec": _median([row["images_per_sec"] for row in trained]),
        },
    )
    run.log.say(
        f"samples {_picture(run, 'grid', step)}\n"
        f"reverse process {_picture(run, 'strip', step)}\n"
        f"loss curve {curve}\nresults {path}"
    )


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value]
    return round(float(np.median(known)), 1) if known else None
