"""Shared parts of jobs: the run, a name, the record, and batches of images that survive a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Int64, UInt8
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import config as config_lib, data
from diffusion_jax.commands.image_files import ImageFiles
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.data.split import count
from diffusion_jax.experiment import sampling
from diffusion_jax.experiment.metrics import metric_options
from diffusion_jax.lifecycle import ownership, stopping
from diffusion_jax.parallel import sharding
from diffusion_jax.reporting import classes, results
from diffusion_jax.runs import Run, load_run
from diffusion_jax.writing.writable import check_writable

MOST_LABELS = 100  # Classes in turn that a result lists.

# Indices of images -> the images.
Draw = Callable[[Int64[np.ndarray, " b"]], UInt8[np.ndarray, "b h w c"]]


def open_run(config: ConfigDict, workdir: Path) -> tuple[Run, jax.sharding.Mesh]:
    """Returns the run with the parameters that sample.step, .ema and .ema_length name, on every device of the mesh.

    Raises:
      InputError: No checkpoint, no such average, or workdir not writable.
      RunError: No sound checkpoint.
    """
    check_writable(workdir)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    run = load_run(
        workdir,
        step=config.sample.step,
        ema=config.sample.ema,
        ema_length=config.sample.ema_length,
        config=config,
        sharding=sharding.replicated(mesh),
    )
    if run.reconstruction is not None and jax.process_index() == 0:
        print(f"average {run.reconstruction}", file=sys.stderr)
    stopping.check()
    return run, mesh


def average(run: Run) -> dict[str, Any]:
    """Returns what names the run's parameters: the decay of the main average is its second name."""
    fields = run.config.sample
    is_main = fields.ema is True or (
        fields.ema == run.config.optimizer.ema_decay and fields.ema is not False
    )
    length = {} if fields.ema_length is None else {"ema_length": fields.ema_length}
    return {"ema": True if is_main else fields.ema, **length}


def described_average(run: Run) -> dict[str, Any]:
    """Returns what names the run's parameters, and how they were made if the checkpoint does not have them."""
    made = run.reconstruction
    return average(run) | ({} if made is None else {"reconstruction": dataclasses.asdict(made)})


def job_name(run: Run, **more: Any) -> str:
    """Names a job by all that decides its pixels; not by batch size or devices.

    Args:
      run: What it draws with; the checkpoint's digest stands for the parameters.
      more: What else decides them, such as the number of images.
    """
    fields, options = run.config.sample, by_first_names("sampler", sampling.decisive_options(run))
    # Images of such a grid, drawn before its prior was its own, were others.
    prior_std = sampling.own_prior_std(run)
    if prior_std is not None:
        more = {**more, "prior_std": round(prior_std, 6)}
    decisive = {
        "checkpoint": run.digest,
        "trained": run.config_hash,
        "step": run.step,
        **average(run),
        "sampler": {name: value for name, value in options.items() if value is not None},
        "seed": fields.seed,
        "labels": fields.labels,
        **more,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
    return f"step{run.step:08}-{options['name']}-seed{fields.seed}-{digest}"


def by_first_names(group: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns options of a group with first names, so that jobs of earlier versions are found."""
    return {
        name: config_lib.first_name(f"{group}.{name}", value) for name, value in options.items()
    }


def measurement_name(run: Run, split: data.Split, metric: str) -> str:
    """Names what is measured by all that decides a metric of an image; not by how many images there are.

    Args:
      run: What is measured.
      split: Its images.
      metric: A key of `METRICS`.
    """
    fields = run.config.eval
    decided = {
        "checkpoint": run.digest,
        "version": diffusion_jax.__version__,
        "trained": run.config_hash,
        "data": data.fingerprint(split),
        "split": fields.split,
        "seed": fields.seed,
        **average(run),
        **metric_options(run, metric),
    }
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:10]
    return f"step{run.step:08}-{fields.split}-{digest}"


def measured(run: Run) -> dict[str, Any]:
    """Returns what every metric says of the parameters that it measured."""
    return {
        "config_hash": run.config_hash,
        "step": run.step,
        **described_average(run),
    }


def draw_missing(
    files: ImageFiles,
    bar: ImagesBar,
    draw: Draw,
    batch_size: int,
    finished: Int64[np.ndarray, " n"],
) -> int:
    """Draws the images that no earlier start has finished, batch by batch; returns their number.

    Args:
      files: Of the job.
      bar: Counts the images, from those that are finished on.
      draw: Indices, at most `batch_size`, -> images.
      batch_size: Images at once.
      finished: Images that are there, `files.finished()`.
    """
    drawn = 0
    with bar:
        for part in files.parts.compute(lambda i: {"images": draw(i)}, batch_size, finished):
            drawn += len(part["indices"])
            bar.done(len(part["indices"]))
    return drawn


def record(run: Run, nfe: Any, labels: Int[np.ndarray, " n"] | None) -> dict[str, Any]:
    """Returns what every job says of itself.

    Args:
      run: What it draws with.
      nfe: Network evaluations of an image.
      labels: Class of each image; None: they have none, or not all of them.
    """
    fields = run.config.sample
    return {
        "config_hash": run.config_hash,
        "step": run.step,
        **described_average(run),
        "sampler": _sampler(run),
        "nfe": nfe,
        "seed": fields.seed,
        "labels": _named(fields.labels),
        "classes": None if labels is None else _classes(run, labels),
    }


def _sampler(run: Run) -> dict[str, Any]:
    """Returns the fields of the sampler, with the checksum and the scale of a classifier."""
    options, decisive = sampling.sampler_options(run), sampling.decisive_options(run)
    if "classifier" not in decisive:
        return options
    known = {"classifier": options["classifier"], "classifier_sha256": decisive["classifier"]}
    return options | decisive | known


def _named(labels: tuple[Any, ...] | None) -> Any:
    """Returns classes in turn as JSON holds them; of one for each of many images their number and a hash."""
    if labels is None or len(labels) <= MOST_LABELS:
        return labels
    digest = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
    return {"number": len(labels), "sha256": digest}


def _classes(run: Run, labels: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Returns the classes that there are images of."""
    counts = count(labels, run.label_classes)
    return [row for row in classes.table(run.label_names, counts) if row["num_images"]]


def save_result(workdir: Path, mode: str, folder: Path, result: dict[str, Any], done: str) -> None:
    """Writes job.json and results/<mode>.json, and says where they and the pictures of the job are."""
    result = {"job": folder.name, **result}
    ownership.check()
    results.write_text(folder / "job.json", json.dumps(result, indent=2) + "\n")
    path = results.add_result(workdir, mode, result)
    shown = [f"{picture.stem} {picture}" for picture in sorted(folder.glob("*.png"))]
    print(f"{done} in {folder}", *shown, f"results {path}", sep="\n", file=sys.stderr)
