"""The report of a finished training run: the loss curve and results/train.json."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.metrics import more_is_better
from diffusion_jax.models.networks import count_parameters
from diffusion_jax.reporting import classes, pictures, results
from diffusion_jax.reporting.figures import PREFIX, figure_names
from diffusion_jax.training.hooks import picture_path
from diffusion_jax.training.run_log import RunLog
from diffusion_jax.training.state import TrainState


def images_in_words(split: data.Split, conditioned_on: int) -> str:
    """Returns a line on the data: how many images, of which shape, and each class with its training images.

    Args:
      split: Those to train on.
      conditioned_on: model.num_classes.
    """
    test = f" and {split.sizes['test']:,} test" if split.sizes.get("test") else ""
    images = f"{split.num_images:,} training{test} images {'x'.join(map(str, split.image_shape))}; "
    if split.num_classes == 0:
        return images + "no classes, so the model is unconditional"
    unused = "" if conditioned_on else ", unused since model.num_classes is 0"
    counted = "" if split.class_counts is None else " (training images)"
    named = classes.listed(split.class_names, split.class_counts)
    return f"{images}{split.num_classes:,} classes{unused}{counted}: {named}"


def say_beginning(
    exp: Experiment,
    split: data.Split,
    state: TrainState,
    origin: dict[str, Any] | None,
    num_devices: int,
    log: RunLog,
    workdir: Path,
) -> None:
    """Says what is trained, on what, and from where on."""
    start = int(state.step)
    log.say(
        f"{exp.data_name}: {images_in_words(split, exp.num_classes)}\n"
        f"{count_parameters(state.params):,} parameters; {num_devices} device(s); "
        + (f"resuming at step {start}" if start else f"workdir {workdir}")
    )
    if origin and not start:
        log.say(
            f"begins from the averaged parameters of {origin['workdir']}, step {origin['step']} "
            f"(checkpoint {origin['digest'][:12]})"
        )


def write_report(
    exp: Experiment,
    split: data.Split,
    workdir: Path,
    log: RunLog,
    params: Any,
    step: int,
    sampling_seconds: float,
    started: float,
    *,
    origin: dict[str, Any] | None = None,
) -> None:
    """Writes loss.png and results/train.json, and says where everything lies; process 0 calls this.

    Args:
      exp: What was trained.
      split: The images that it was trained on.
      workdir: Folder of the run.
      log: The run's log, which has all rows.
      params: The parameters.
      step: Number of steps done.
      sampling_seconds: Time that the last pictures took.
      started: `time.monotonic()` when the command began.
      origin: Where the first parameters came from, if from another run.
    """
    curve = workdir / "loss.png"
    pictures.save_loss_curve(curve, log.rows, exp.expected)
    best = best_steps(log.rows)
    record = {
        **_figures(log.rows, step),
        "best": best,
        "config_hash": exp.config_hash,
        **({"init_from": origin} if origin else {}),
        "data": _data(exp.data_name, split),
        "parameters": count_parameters(params),
        "sampling_seconds": round(sampling_seconds, 3),
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    path = results.add_result(workdir, "train", record)
    drawn = {"samples": "grid", "reverse process": "strip"}
    made = {what: picture_path(workdir, name, step) for what, name in drawn.items()}
    made = {
        what: file for what, file in made.items() if file.exists()
    }  # A solver may be cut short.
    made |= {"loss curve": curve, "results": path}
    measured = [f"best {n} {b['value']:.5g} at step {b['step']}" for n, b in best.items()]
    log.say("\n".join([*measured, *(f"{what} {file}" for what, file in made.items())]))


def best_steps(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the step with the best value of each metric of held-out images or samples, the first of equal ones."""
    best: dict[str, dict[str, Any]] = {}
    for name in figure_names(rows):
        sign = 1 if more_is_better(name.removeprefix(PREFIX)) else -1
        known = [row for row in rows if row.get(name) is not None]
        if known:
            row = max(known, key=lambda row: sign * row[name])
            best[name] = {"step": row["step"], "value": row[name]}
    return best


def _figures(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Returns what the rows of the log say of the whole training."""
    trained = [row for row in rows if "loss" in row]
    last = {name: value for row in rows if row["step"] == step for name, value in row.items()}
    return {
        "step": step,
        "loss": trained[-1]["loss"] if trained else None,
        **{name: last.get(name) for name in ("eval_loss", "eval_bpd", "eval_bpd_stderr")},
        "train_seconds": round(sum(row.get("seconds") or 0 for row in trained), 3),
        "images_per_sec": _median([row.get("images_per_sec") for row in trained]),
    }


def _data(name: str, split: data.Split) -> dict[str, Any]:
    return {
        "name": name,
        "num_images": split.num_images,
        "num_test_images": split.sizes.get("test"),
        "image_shape": split.image_shape,
        "classes": classes.table(split.class_names, split.class_counts),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value]
    return round(float(np.median(known)), 1) if known else None
