"""`--mode=sample`: images from a checkpoint, in files and a grid; picks up where it was killed."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import config as config_lib
from diffusion_jax.commands import sample_pictures
from diffusion_jax.commands.environment import check_writable
from diffusion_jax.commands.image_files import ImageFiles
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.commands.trained import TrainedRun, load_run
from diffusion_jax.experiment import sampling
from diffusion_jax.parallel import distributed, sharding
from diffusion_jax.reporting import pictures, results
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.batches import (
    Samples,
    class_of_images,
    make_batch_sampler,
)

GRID_IMAGES = 100


def sample(config: ConfigDict, workdir: Path) -> int:
    """Draws config.sample.num_images images from a checkpoint of a run; returns the exit status.

    Writes samples/<job>/: the files of sample.formats, such as images.npz (uint8 `images`, N×H×W×C, and `labels` of a
    conditional model), grid.png of the first images, job.json (what the job is), the pictures of `sample_pictures.py`,
    and results/sample.json. Batches of the same job that an earlier, killed command has finished are not drawn again.

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
    fields, sampler = config.sample, sampling.make_sampler(run)
    files = ImageFiles(folder, fields.num_images, run.image_shape)
    drawn = _draw(run, sampler, mesh, files)
    sample_pictures.draw_progressive(run, sampler, mesh, folder)
    shared_t = sample_pictures.draw_shared(run, sampler, mesh, folder)
    if jax.process_index() != 0:
        return 0
    labels = class_of_images(np.arange(fields.num_images), config.model.num_classes, fields.labels)
    first = files.head(GRID_IMAGES)
    shown = Samples(first, None, None, None if labels is None else labels[: len(first)])
    pictures.save_png(folder / "grid.png", shown.grid())
    paths = files.write(fields.formats, labels)
    result = {
        **_result(config, run.step, sampling.nfe(run, sampler)),
        "shared_t": shared_t,
        "files": [path.name for path in paths],
        "drawn_this_start": drawn,
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    results.write_text(
        folder / "job.json", json.dumps({"job": folder.name, **result}, indent=2) + "\n"
    )
    path = results.add_result(workdir, "sample", {"job": folder.name, **result})
    print(
        f"{fields.num_images} images ({drawn} drawn now) in {folder}\nresults {path}",
        file=sys.stderr,
    )
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


def _draw(run: TrainedRun, sampler: Sampler, mesh: jax.sharding.Mesh, files: ImageFiles) -> int:
    """Draws the images that are missing, batch by batch; returns their number."""
    fields, settings = run.config.sample, sampling.settings(run.config)
    finished = distributed.first_decides("images finished", files.num_finished)
    with ImagesBar(
        fields.num_images, sampler.grid.num_steps, fields.batch_size, finished=finished
    ) as bar:
        draw = make_batch_sampler(
            sampling.make_draw(run, progress=bar.progress),
            mesh,
            min(fields.batch_size, fields.num_images),
            num_classes=run.config.model.num_classes,
        )
        for first in range(finished, fields.num_images, fields.batch_size):
            indices = np.arange(first, min(first + fields.batch_size, fields.num_images))
            images = draw(run.params, settings, indices, fields.labels).images
            if jax.process_index() == 0:
                files.keep(first, images)
            bar.done(len(indices))
    return fields.num_images - finished


def _result(config: ConfigDict, step: int, nfe: int) -> dict[str, Any]:
    return {
        "num_images": config.sample.num_images,
        "config_hash": config_lib.config_hash(config),
        "step": step,
        "ema": config.sample.ema,
        "sampler": sampling.sampler_options(config),
        "nfe": nfe,
        "seed": config.sample.seed,
        "labels": config.sample.labels,
    }
