"""Pictures of the reverse process that `--mode=sample` adds to its images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float64

from diffusion_jax.experiment import sampling
from diffusion_jax.experiment.checks import warn_of_times
from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel import distributed
from diffusion_jax.reading.npz import read_npz
from diffusion_jax.reporting import pictures, results
from diffusion_jax.runs import Run
from diffusion_jax.samplers import Sampler, frame_steps, nearest_point
from diffusion_jax.samplers.batches import (
    PROGRESSIVE_IMAGES,
    class_of_images,
    make_batch_sampler,
    make_shared_sampler,
)

FRAMES = 31  # Moments in progressive.npz; every third is a column of the pictures.
PROGRESSIVE = ("progressive.npz", "progressive.png", "strip.png")
SHARED_IMAGES, SHARED_SAMPLES = 4, 8


def draw_progressive(
    run: Run,
    sampler: Sampler,
    mesh: jax.sharding.Mesh,
    folder: Path,
    num_images: int,
    labels: Sequence[int] | None,
) -> None:
    """Draws how the first images came about, if the folder does not have it.

    Writes strip.png (x_t and x0_hat), progressive.png and progressive.npz (x0_hat), of images that are drawn once more:
    at another batch size, so they may differ from the job's by a gray level.

    Args:
      run: The run.
      sampler: Its sampler.
      mesh: Devices.
      folder: Of the job.
      num_images: Number of the job's images.
      labels: The field `sample.labels`.
    """
    if distributed.broadcast_from_first(
        "whether it is there",
        lambda: (
            all((folder / name).exists() for name in PROGRESSIVE)
            and {"frames", "times"} <= _sound(folder / PROGRESSIVE[0]).keys()
        ),
    ):
        return
    stopping.check()
    num_steps = sampler.grid.num_steps
    shown = frame_steps(num_steps, min(FRAMES, num_steps + 1))
    count = min(PROGRESSIVE_IMAGES, num_images)
    draw = make_batch_sampler(
        sampling.make_draw(run, num_frames=len(shown)),
        mesh,
        count,
        num_classes=run.label_classes,
        with_frames=True,
    )
    samples = draw(run.params, sampling.traced_options(run), np.arange(count), labels)
    sampling.check_finished(run, run.params, samples.finite, samples.stats)
    if jax.process_index() != 0:
        return
    assert samples.frames_x0 is not None
    frames, times = samples.frames_x0.swapaxes(0, 1), sampler.grid.time[shown]
    results.write_npz(folder / "progressive.npz", frames=frames, times=times, labels=samples.labels)
    for name, picture in (("strip", samples.strip()), ("progressive", samples.progressive())):
        assert picture is not None
        pictures.save_png(folder / f"{name}.png", picture)


def draw_shared(
    run: Run,
    sampler: Sampler,
    mesh: jax.sharding.Mesh,
    folder: Path,
    shared_t: Sequence[float],
    num_images: int,
    labels: Sequence[int] | None,
) -> list[float]:
    """Draws shared.png and shared.npz of the first images, unless the folder has them for these times.

    Args:
      run: The run.
      sampler: Its sampler.
      mesh: Devices.
      folder: Of the job.
      shared_t: The field `sample.shared_t`.
      num_images: Number of the job's images.
      labels: The field `sample.labels`.

    Returns:
      The times, descending: of the sampler's, those nearest to `shared_t`.
    """
    points = sorted({nearest_point(sampler.grid, t) for t in shared_t})
    times = sampler.grid.time[points]
    warn_of_times(sampler.grid, shared_t, points, "sample.shared_t")
    settings = sampling.traced_options(run)
    if distributed.broadcast_from_first("whether to draw", lambda: not _has_shared(folder, times)):
        count = min(SHARED_IMAGES, num_images)
        draw = make_shared_sampler(
            sampling.make_draw_shared(run, SHARED_SAMPLES),
            mesh,
            count,
            num_classes=run.label_classes,
        )
        drawn = []
        for point in points:
            stopping.check()
            drawn.append(draw(run.params, settings, point, labels))
        x_t, x0_hat, samples = (np.stack(images, axis=1) for images in zip(*drawn, strict=True))
        if (samples == samples[:, :, :1]).all():
            warnings.warn(
                f"sample.shared_t: the samples of an x_t are all the same, as sampler.name={run.sampler_name} "
                "adds no noise after it",
                stacklevel=1,
            )
        if jax.process_index() == 0:
            picture = pictures.shared(x_t, x0_hat, samples, times.tolist())
            pictures.save_png(folder / "shared.png", picture)
            shown = class_of_images(np.arange(count), run.label_classes, labels)
            arrays = {"x_t": x_t, "x0_hat": x0_hat, "samples": samples, "labels": shown}
            results.write_npz(folder / "shared.npz", times=times, **arrays)
    return times.tolist()


def _has_shared(folder: Path, times: Float64[np.ndarray, " t"]) -> bool:
    """Whether the folder has the picture of these times; the arrays are written last."""
    arrays = _sound(folder / "shared.npz")
    return (
        (folder / "shared.png").exists()
        and {"times", "x_t", "x0_hat", "samples"} <= arrays.keys()
        and np.array_equal(arrays["times"], times)
    )


def _sound(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, none if it is damaged or not there."""
    try:
        return read_npz(path)
    except (OSError, ValueError):
        return {}
