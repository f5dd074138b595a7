"""What `--mode=sample` shows besides the images: how they came about."""

from pathlib import Path

import numpy as np
from jaxtyping import Float64

from diffusion_jax.reporting import pictures, results
from diffusion_jax.samplers import Sampler, moments
from diffusion_jax.samplers.batches import PROGRESSIVE_IMAGES, Samples

FRAMES = 31  # Moments in progressive.npz; every third is a column of the pictures.
PROGRESSIVE = ("progressive.npz", "progressive.png", "strip.png")


def frame_times(sampler: Sampler) -> Float64[np.ndarray, " f"]:
    """Returns the times of the moments to keep, noise first; the last is the data's."""
    num_steps = sampler.grid.num_steps
    return sampler.grid.time[moments(num_steps, min(FRAMES, num_steps + 1))]


def has_progressive(folder: Path) -> bool:
    """Whether a job's folder holds all that `save_progressive` writes."""
    return all((folder / name).exists() for name in PROGRESSIVE)


def save_progressive(folder: Path, samples: Samples, times: Float64[np.ndarray, " f"]) -> None:
    """Writes strip.png (x_t and x0_hat), progressive.png and progressive.npz (x0_hat) of the first images.

    Args:
      folder: Of the job.
      samples: The job's first images, with a frame a time.
      times: From `frame_times`.
    """
    assert samples.frames_x0 is not None
    frames = samples.frames_x0[:, :PROGRESSIVE_IMAGES].swapaxes(0, 1)
    labels = None if samples.labels is None else samples.labels[:PROGRESSIVE_IMAGES]
    results.write_npz(folder / "progressive.npz", frames=frames, times=times, labels=labels)
    for name, picture in (("strip", samples.strip()), ("progressive", samples.progressive())):
        assert picture is not None
        pictures.save_png(folder / f"{name}.png", picture)
