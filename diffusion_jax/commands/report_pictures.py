"""Pictures that `--mode=report` draws itself: the reverse process of a few images, and training images beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float16, Float64, UInt8

from diffusion_jax import data
from diffusion_jax.commands.job import by_first_names, described_average
from diffusion_jax.data.split import READ_CHUNK
from diffusion_jax.experiment import sampling
from diffusion_jax.experiment.build import Experiment
from diffusion_jax.lifecycle import stopping
from diffusion_jax.metrics.neighbors import nearest_neighbors
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
from diffusion_jax.report import drawn
from diffusion_jax.runs import Run
from diffusion_jax.samplers import frame_steps
from diffusion_jax.samplers.batches import COLUMNS, Samples, make_batch_sampler

IMAGES, NEIGHBORS = 8, 4
MOST_BYTES = 1 << 29  # Of the training images that a page is searched for.
MOST_SIDE = 64  # Larger images are compared after a reduction to this many pixels or less.
REVERSE, NEAREST = "reverse", "nearest"


def draw_reverse(run: Run, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Draws the reverse process of the first images by the sampler of a training's pictures, unless it is there.

    Raises:
      InputError: An adaptive sampler did not finish an image.
      RunError: Images that are not finite; disk full.
    """
    exp = sampling.for_pictures(run)
    decided_by = decides(exp, run.step, described_average(run))
    if broadcast_from_first(
        "whether it is drawn", lambda: drawn.kept(workdir, REVERSE, decided_by) is not None
    ):
        return
    stopping.check()
    times = frame_times(exp)
    program = sampling.make_draw(exp, num_frames=len(times))
    draw = make_batch_sampler(program, mesh, IMAGES, num_classes=exp.num_classes, with_frames=True)
    labels = exp.config.sample.labels
    samples = draw(run.params, sampling.traced_options(exp), np.arange(IMAGES), labels)
    sampling.check_finished(exp, run.params, samples.finite, samples.stats)
    if jax.process_index() == 0:
        keep_reverse(workdir, samples, times, decided_by)


def decides(exp: Experiment, step: int, average: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides the images drawn for the page.

    Args:
      exp: The experiment with the sampler that draws them.
      step: Of the checkpoint.
      average: Which average of its parameters.
    """
    return {
        "config_hash": exp.config_hash,
        "step": step,
        **average,
        "sampler": by_first_names("sampler", sampling.sampler_options(exp)),
        "seed": exp.config.sample.seed,
        "labels": exp.config.sample.labels,
    }


def frame_times(exp: Experiment) -> Float64[np.ndarray, " f"]:
    """Returns the times of the moments that are kept, from noise to data."""
    grid = sampling.sampler_of(exp).grid
    return grid.time[frame_steps(grid.num_steps, min(COLUMNS, grid.num_steps + 1))]


def keep_reverse(
    workdir: Path, samples: Samples, times: Float64[np.ndarray, " f"], decided_by: dict[str, Any]
) -> None:
    """Writes the moments of the first images; `samples` has frames at these times."""
    assert samples.frames_x_t is not None and samples.frames_x0 is not None
    x_t, x0_hat = (frames[:, :IMAGES] for frames in (samples.frames_x_t, samples.frames_x0))
    drawn.keep(workdir, REVERSE, decided_by, x_t=x_t, x0_hat=x0_hat, t=times)


def find_nearest(run: Run, workdir: Path, say: Callable[[str], None]) -> None:
    """Finds the training images that are nearest, in pixels, to the images drawn for the page, unless they are there.

    Args:
      run: The run, whose reverse process is drawn.
      workdir: Its folder.
      say: Tells the user what is left out.

    Raises:
      InputError: The training images are gone.
      RunError: Disk full.
    """
    split = run.load_split("train", labeled=False)

    def find() -> None:
        moments = drawn.told(workdir, REVERSE)
        decided_by = {**moments, "data": data.fingerprint(split)}
        if drawn.kept(workdir, NEAREST, decided_by) is not None:
            return
        arrays = drawn.kept(workdir, REVERSE, moments) or {}
        if split.num_bytes > MOST_BYTES:
            say(
                f"{split.num_bytes / 2**30:.1f} GiB of training images are too many to search for nearest ones here; "
                "--mode=evaluate --config.eval.metrics=nearest does it"
            )
        elif "x_t" in arrays:
            drawn.keep(workdir, NEAREST, decided_by, **_nearest(arrays["x_t"][-1], split))

    run_on_first("nearest training images", find)


def _nearest(images: UInt8[np.ndarray, "n h w c"], split: data.Split) -> dict[str, np.ndarray]:
    """Returns the images, the training images nearest to each, their indices and root-mean-square distances."""
    parts = []
    for first in range(0, split.num_images, READ_CHUNK):
        stopping.check()
        indices = np.arange(first, min(first + READ_CHUNK, split.num_images))
        parts.append(_vectors(split.read(indices)["image"]))
    training = np.concatenate(parts)
    found = nearest_neighbors(_vectors(images), training, count=min(NEIGHBORS, len(training)))
    beside = split.read(found.indices.ravel())["image"]
    return {
        "images": images,
        "neighbors": beside.reshape(*found.indices.shape, *images.shape[1:]),
        "indices": found.indices,
        "rms": found.distances / np.sqrt(training.shape[1]),
    }


def _vectors(images: UInt8[np.ndarray, "n h w c"]) -> Float16[np.ndarray, "n d"]:
    """Returns the pixels of each image, large ones averaged over squares."""
    skip = -(-max(images.shape[1:3]) // MOST_SIDE)
    if skip > 1:
        height, width = (size // skip for size in images.shape[1:3])
        cut = images[:, : height * skip, : width * skip]
        squares = cut.reshape(len(cut), height, skip, width, skip, -1)
        images = squares.mean((2, 4)).round().astype(np.uint8)
    return images.reshape(len(images), -1).astype(np.float16)  # Exact for these.
