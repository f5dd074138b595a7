"""Pictures that `--mode=report` draws itself: the reverse process of a few images, and training images beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float16, UInt8

from diffusion_jax import data
from diffusion_jax.commands.job import described_average
from diffusion_jax.data.split import READ_CHUNK
from diffusion_jax.experiment import sampling
from diffusion_jax.lifecycle import stopping
from diffusion_jax.metrics.neighbors import nearest_neighbors
from diffusion_jax.parallel.distributed import broadcast_from_first, run_on_first
from diffusion_jax.report import drawn
from diffusion_jax.runs import Run
from diffusion_jax.samplers.batches import make_batch_sampler

NEIGHBORS = 4
MOST_BYTES = 1 << 29  # Of the training images that a page is searched for.
MOST_SIDE = 64  # Larger images are compared after a reduction to this many pixels or less.


def draw_reverse(run: Run, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Draws the reverse process of the first images by the sampler of a training's pictures, unless it is there.

    Raises:
      InputError: An adaptive sampler did not finish an image.
      RunError: Images that are not finite; disk full.
    """
    exp = sampling.for_pictures(run)
    decided_by = sampling.decides_pictures(exp, run.step, described_average(run))
    if broadcast_from_first(
        "whether it is drawn", lambda: drawn.kept(workdir, drawn.REVERSE, decided_by) is not None
    ):
        return
    stopping.check()
    times = sampling.picture_times(exp)
    program = sampling.make_draw(exp, num_frames=len(times))
    draw = make_batch_sampler(
        program, mesh, drawn.IMAGES, num_classes=exp.label_classes, with_frames=True
    )
    samples = draw(
        run.params, sampling.traced_options(exp), np.arange(drawn.IMAGES), decided_by["labels"]
    )
    sampling.check_finished(exp, run.params, samples.finite, samples.stats)
    if jax.process_index() == 0:
        drawn.keep_reverse(workdir, samples, times, decided_by)


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
        moments = drawn.told(workdir, drawn.REVERSE)
        decided_by = {**moments, "data": data.fingerprint(split)}
        if drawn.kept(workdir, drawn.NEAREST, decided_by) is not None:
            return
        arrays = drawn.kept(workdir, drawn.REVERSE, moments) or {}
        if split.num_bytes > MOST_BYTES:
            say(
                f"{split.num_bytes / 2**30:.1f} GiB of training images are too many to search for nearest ones here; "
                "--mode=evaluate --config.eval.metrics=nearest does it"
            )
        elif "x_t" in arrays:
            drawn.keep(workdir, drawn.NEAREST, decided_by, **_nearest(arrays["x_t"][-1], split))

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
