"""`--mode=sample`: images from a checkpoint, as PNGs, a grid and an .npz; picks up where it was killed."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.commands import sample_pictures
from diffusion_jax.commands.environment import check_writable
from diffusion_jax.commands.trained import TrainedRun, load_run
from diffusion_jax.experiment import sampling
from diffusion_jax.parallel import sharding
from diffusion_jax.reporting import pictures, results
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.batches import (
    PROGRESSIVE_IMAGES,
    Samples,
    class_of_images,
    joined,
    make_batch_sampler,
)

GRID_IMAGES = 100


def sample(config: ConfigDict, workdir: Path) -> int:
    """Draws config.sample.num_images images from a checkpoint of a run; returns the exit status.

    Writes samples/<job>/: png/<i>.png as they come, then grid.png, images.npz (uint8 `images`, N×H×W×C, and
    `labels` of a conditional model), job.json (what the job is), the pictures of `sample_pictures.py`, and
    results/sample.json. Images of the same job that an earlier, killed command has finished are not drawn again.

    Raises:
      InputError: No checkpoint, or workdir not writable.
      RunError: No sound checkpoint; disk full.
    """
    started = time.monotonic()
    check_writable(workdir)
    mesh = sharding.make_mesh(config.mesh.data)
    run = load_run(
        workdir,
        step=config.sample.step,
        ema=config.sample.ema,
        config=config,
        sharding=sharding.replicated(mesh),
    )
    config = run.config
    folder = workdir / "samples" / job_name(config, run.step, run.digest)
    sampler = sampling.make_sampler(run)
    images, drawn = _draw(run, sampler, mesh, folder)
    shared_t = sample_pictures.draw_shared(run, sampler, mesh, folder)
    if jax.process_index() != 0:
        return 0
    labels = class_of_images(np.arange(len(images)), config.model.num_classes, config.sample.labels)
    results.write_npz(folder / "images.npz", images=images, labels=labels)
    shown = Samples(
        images[:GRID_IMAGES], None, None, None if labels is None else labels[:GRID_IMAGES]
    )
    pictures.save_png(folder / "grid.png", shown.grid())
    seconds = time.monotonic() - started
    result = _result(
        config, run.step, sampling.nfe(run, sampler), folder, len(images), drawn, seconds
    )
    result["shared_t"] = shared_t
    results.write_text(folder / "job.json", json.dumps(result, indent=2) + "\n")
    path = results.add_result(workdir, "sample", result)
    print(f"{len(images)} images ({drawn} drawn now) in {folder}\nresults {path}", file=sys.stderr)
    return 0


def job_name(config: ConfigDict, step: int, checkpoint: str) -> str:
    """Names a sampling job by all that decides its pixels; not by batch size or devices.

    Args:
      config: The config.
      step: Step of the checkpoint.
      checkpoint: The checkpoint's digest, which stands for its parameters.
    """
    decisive = {
        "checkpoint": checkpoint,
        "trained": config_lib.config_hash(config),
        "step": step,
        "ema": config.sample.ema,
        "sampler": {
            name: value
            for name, value in sampling.sampler_options(config).items()
            if value is not None
        },
        "seed": config.sample.seed,
        "labels": config.sample.labels,
        "num_images": config.sample.num_images,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
    return f"step{step:08}-{config.sampler.name}-seed{config.sample.seed}-{digest}"


def _draw(
    run: TrainedRun, sampler: Sampler, mesh: jax.sharding.Mesh, folder: Path
) -> tuple[UInt8[np.ndarray, "n h w c"], int]:
    """Draws the images that are missing; returns all of them, and how many were drawn now."""
    from tqdm import tqdm

    fields, settings = run.config.sample, sampling.settings(run.config)
    num_steps = sampler.grid.num_steps
    frames = sample_pictures.frame_times(sampler) if fields.progressive else np.zeros(0)
    size = min(fields.batch_size, fields.num_images)
    writes = jax.process_index() == 0
    images = np.zeros((fields.num_images, *run.image_shape), np.uint8)
    missing = [i for i in range(fields.num_images) if not _read(folder, i, images)]
    if len(frames) and not sample_pictures.has_progressive(folder):
        missing = sorted({*missing, *range(min(PROGRESSIVE_IMAGES, fields.num_images))})
    if jax.process_count() > 1:
        missing = list(range(fields.num_images))  # Each process must draw the same batches.
    bar = tqdm(
        total=len(missing) * num_steps,
        unit="step",
        unit_scale=True,
        disable=not (writes and sys.stderr.isatty()),
    )
    base, shown_first = 0, []

    def progress(done: int) -> None:
        # Each device reports, and one may be behind another.
        bar.update(max(0, base + done * min(size, len(missing)) - bar.n))

    # A program that reports to the host is compiled anew each time: only for a person who looks.
    shown = progress if not bar.disable and jax.process_count() == 1 else None
    draw = make_batch_sampler(
        sampling.make_draw(run, num_frames=len(frames), progress=shown),
        mesh,
        size,
        num_classes=run.config.model.num_classes,
        with_frames=len(frames) > 0,
    )
    for first in range(0, len(missing), size):
        indices = np.array(missing[first : first + size])
        result = draw(run.params, settings, indices, fields.labels)
        jax.effects_barrier()  # The last calls of `progress` still use the old `base`.
        base += len(indices) * num_steps
        bar.update(base - bar.n)
        images[indices] = result.images
        if writes:
            for i, image in zip(indices, result.images, strict=True):
                pictures.save_png(folder / "png" / f"{i:06}.png", image)
        if first < PROGRESSIVE_IMAGES:
            shown_first.append(result)
    bar.close()
    if writes and len(frames) and not sample_pictures.has_progressive(folder):
        sample_pictures.save_progressive(folder, joined(shown_first), frames)
    return images, len(missing)


def _read(folder: Path, i: int, images: UInt8[np.ndarray, "n h w c"]) -> bool:
    """Reads image i of an earlier start of this job into its row; False if it is not there."""
    try:
        image = pictures.load_png(folder / "png" / f"{i:06}.png")
    except (OSError, ValueError):
        return False
    if image.shape != images.shape[1:]:
        return False
    images[i] = image
    return True


def _result(
    config: ConfigDict,
    step: int,
    nfe: int,
    folder: Path,
    num_images: int,
    drawn: int,
    seconds: float,
) -> dict[str, Any]:
    return {
        "job": folder.name,
        "num_images": num_images,
        "config_hash": config_lib.config_hash(config),
        "step": step,
        "ema": config.sample.ema,
        "sampler": sampling.sampler_options(config),
        "nfe": nfe,
        "seed": config.sample.seed,
        "labels": config.sample.labels,
        "drawn_this_start": drawn,
        "seconds_this_start": round(seconds, 1),
    }
