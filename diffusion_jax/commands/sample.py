"""`--mode=sample`: images from a checkpoint, in files and a grid; picks up where it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Int64, UInt8
from ml_collections import ConfigDict

from diffusion_jax.commands import job, sample_pictures
from diffusion_jax.commands.environment import own
from diffusion_jax.commands.image_files import ImageFiles
from diffusion_jax.commands.images_bar import ImagesBar
from diffusion_jax.experiment import sampling
from diffusion_jax.experiment.parts import make_draw_part
from diffusion_jax.reading import json_text
from diffusion_jax.reading.regular import read_regular
from diffusion_jax.reporting import pictures
from diffusion_jax.runs import Run
from diffusion_jax.samplers import Sampler
from diffusion_jax.samplers.batches import (
    Samples,
    class_of_images,
    make_batch_sampler,
    make_sampler_in_parts,
)

GRID_IMAGES = 100

DrawBatch = Callable[..., Samples]  # (params, traced options, indices, labels) -> samples.
MakeBatches = Callable[[Run, jax.sharding.Mesh, int, ImagesBar], DrawBatch]


def sample(config: ConfigDict, workdir: Path) -> int:
    """Draws config.sample.num_images images from a checkpoint of a run; returns the exit status.

    Writes samples/<job>/: the files of sample.formats, such as images.npz (uint8 `images`, N×H×W×C, and `labels` of a
    conditional model), grid.png of the first images, job.json (what the job is), the pictures of `sample_pictures.py`,
    and results/sample.json. Batches of the same job that an earlier, killed command has finished are not drawn again.

    Raises:
      InputError: No checkpoint, workdir not writable, or an image that an adaptive sampler did not finish.
      RunError: No sound checkpoint; disk full.
    """
    started = time.monotonic()
    run, mesh = job.open_run(config, workdir)
    drawn = draw_job(run, mesh, workdir, "sample")
    fields, folder = run.config.sample, drawn.folder
    shared_t = _draw_pictures(run, drawn.sampler, mesh, folder)
    if jax.process_index() != 0:
        return 0
    _save_grid(run, drawn.files, drawn.labels, folder)
    paths = drawn.files.write(fields.formats, drawn.labels, run.names_to_draw)
    result = {
        **drawn.record,
        "shared_t": shared_t,
        "files": [path.name for path in paths],
        "drawn_this_start": drawn.drawn,
        "seconds_this_start": round(time.monotonic() - started, 1),
    }
    said = f"{fields.num_images} images ({drawn.drawn} drawn now)"
    job.save_result(workdir, "sample", folder, result, said)
    return 0


class Drawn(NamedTuple):
    """A job whose images are drawn, if not yet in the files that were asked for.

    Attributes:
      folder: The job's folder.
      files: Its images.
      sampler: What drew them.
      labels: Class of each image; None without classes.
      record: What the job says of itself.
      drawn: Number of images that were drawn now.
    """

    folder: Path
    files: ImageFiles
    sampler: Sampler
    labels: Int[np.ndarray, " n"] | None
    record: dict[str, Any]
    drawn: int


def draw_job(
    run: Run,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    mode: str,
    make_batches: MakeBatches | None = None,
) -> Drawn:
    """Draws the images of the job that the config describes, but for those that an earlier start has drawn.

    Args:
      run: What draws them.
      mesh: Devices.
      workdir: Folder of the run.
      mode: The command's mode, which then owns the job's folder.
      make_batches: (run, mesh, batch size, bar) -> the compiled sampler of a batch; None: a new one.

    Raises:
      InputError: Another command owns the folder; an adaptive sampler did not finish an image.
      RunError: Images that are not finite; disk full.
    """
    fields = run.config.sample
    num_images, batch_size = fields.num_images, min(fields.batch_size, fields.num_images)
    folder = workdir / "samples" / job.job_name(run, num_images=num_images)
    own(folder, mode)
    files = ImageFiles(folder, num_images, run.image_shape)
    sampler = sampling.make_sampler(run)
    finished = files.finished()
    costs: list[int] = []  # Image by image.
    bar = ImagesBar(num_images, sampler.grid.num_steps, batch_size, finished=len(finished))
    draw_batch = (make_batches or _make_batches)(run, mesh, batch_size, bar)
    drawn = job.draw_missing(files, bar, _make_draw(run, draw_batch, costs), batch_size, finished)
    labels = class_of_images(np.arange(num_images), run.label_classes, fields.labels)
    record = {"num_images": num_images}
    if jax.process_index() == 0:
        record |= job.record(run, _nfe(run, sampler, costs, folder), labels)
    return Drawn(folder, files, sampler, labels, record, drawn)


def _make_batches(run: Run, mesh: jax.sharding.Mesh, batch_size: int, bar: ImagesBar) -> DrawBatch:
    """Returns the sampler of a batch: in parts, unless it has memory, or other processes must do the same parts."""
    sampler, num_classes = sampling.sampler_of(run), run.label_classes
    if sampler.has_memory or jax.process_count() > 1:
        program = sampling.make_draw(run, progress=bar.progress)
        return make_batch_sampler(program, mesh, batch_size, num_classes=num_classes)
    program, num_steps = make_draw_part(run), sampler.grid.num_steps
    size = batch_size, run.image_shape, num_steps
    return make_sampler_in_parts(program, mesh, *size, bar.advance, num_classes=num_classes)


def _make_draw(run: Run, draw_batch: DrawBatch, costs: list[int]) -> job.Draw:
    """Returns indices -> their images; what each of them cost is appended to `costs`."""
    settings, labels = sampling.traced_options(run), run.config.sample.labels

    def draw(indices: Int64[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w c"]:
        samples = draw_batch(run.params, settings, indices, labels)
        sampling.check_finished(run, run.params, samples.finite, samples.stats)
        costs.extend(np.asarray(samples.stats.evaluations).tolist())
        return samples.images

    return draw


def _draw_pictures(
    run: Run, sampler: Sampler, mesh: jax.sharding.Mesh, folder: Path
) -> list[float] | None:
    """Draws what the config asks for besides the images; returns the times of `sample.shared_t` that were taken."""
    fields = run.config.sample
    what = run, sampler, mesh, folder
    if fields.progressive:
        sample_pictures.draw_progressive(*what, fields.num_images, fields.labels)
    if fields.shared_t is None:
        return None
    return sample_pictures.draw_shared(*what, fields.shared_t, fields.num_images, fields.labels)


def _save_grid(
    run: Run, files: ImageFiles, labels: Int[np.ndarray, " n"] | None, folder: Path
) -> None:
    first = files.head(GRID_IMAGES)
    classes = None if labels is None else labels[: len(first)]
    grid = pictures.grid_by_class(pictures.magnified(first), classes, run.label_names)
    pictures.save_png(folder / "grid.png", grid)


def _nfe(run: Run, sampler: Sampler, costs: list[int], folder: Path) -> Any:
    """Returns the network evaluations an image: the same of each, or of an adaptive sampler their mean and maximum.

    These are of the images drawn now; if there were none, what the job said before.
    """
    if (nfe := sampling.evaluations_of(run, sampler.nfe)) is not None:
        return nfe
    if costs:
        twice = sampling.evaluations(run)
        mean = round(float(np.mean(costs)) * twice, 1)
        return {"mean": mean, "max": max(costs) * twice, "images": len(costs)}
    try:
        return json_text.parse_object(read_regular(folder / "job.json"))["nfe"]
    except (OSError, ValueError, KeyError):
        return None
