"""Compiled sampling in batches of one shape, over a mesh; for notebooks, training and `--mode=sample`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from diffusion_jax.lifecycle import stopping
from diffusion_jax.parallel.map_batches import map_batches
from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.reporting import pictures
from diffusion_jax.samplers.loop import SampleResult, frame_steps
from diffusion_jax.samplers.shared import Shared

COLUMNS = 11  # Times of the reverse process in a picture.
STRIP_IMAGES = 4
PROGRESSIVE_IMAGES = 8
PARTS, SHORTEST = (
    100,
    0.5,
)  # Parts of a batch, at most, and seconds of one: shorter ones are joined.


def class_of_images(
    indices: np.ndarray, num_classes: int, labels: Sequence[int] | None
) -> np.ndarray | None:
    """Returns the class of each image, cycling through `labels` or all classes.

    Args:
      indices: Indices of the images.
      num_classes: Number of classes of the model; 0 gives None.
      labels: Classes to cycle through; None: all.
    """
    if num_classes == 0:
        return None
    cycle = np.asarray(labels if labels is not None else range(num_classes), np.int32)
    return cycle[indices % len(cycle)]


class Samples(NamedTuple):
    """Images on the host, with frames and statistics; see `samplers.SampleResult`.

    Class i of the labels has the name class_names[i], if that is known.
    """

    images: UInt8[np.ndarray, "n h w c"]
    frames_x_t: UInt8[np.ndarray, "f n h w c"] | None
    frames_x0: UInt8[np.ndarray, "f n h w c"] | None
    labels: Int32[np.ndarray, " n"] | None
    stats: SolverStats
    finite: Bool[np.ndarray, " n"]
    class_names: tuple[str, ...] = ()

    def grid(self) -> UInt8[np.ndarray, "gh gw c"]:
        """Returns a picture of all images, magnified if tiny; one named row per class if there are classes."""
        images = pictures.magnified(self.images)
        return pictures.grid_by_class(images, self.labels, self.class_names)

    def strip(self) -> UInt8[np.ndarray, "gh gw c"] | None:
        """Returns a picture of the reverse process of the first images; None without frames."""
        if self.frames_x_t is None or self.frames_x0 is None:
            return None
        shown = _columns(len(self.frames_x0))
        x_t, x0_hat = (f[shown, :STRIP_IMAGES] for f in (self.frames_x_t, self.frames_x0))
        return pictures.strip(x_t, x0_hat, self._names(x0_hat.shape[1]))

    def progressive(self) -> UInt8[np.ndarray, "gh gw c"] | None:
        """Returns a picture of x0_hat over the reverse process of the first images; None without frames."""
        if self.frames_x0 is None:
            return None
        shown = self.frames_x0[_columns(len(self.frames_x0)), :PROGRESSIVE_IMAGES]
        return pictures.progressive(shown, self._names(shown.shape[1]))

    def _names(self, count: int) -> list[str]:
        """Returns the class of each of the first images in words; none without classes."""
        if self.labels is None:
            return []
        return pictures.class_labels(self.labels[:count].tolist(), self.class_names)


def _columns(num_frames: int) -> np.ndarray:
    """Returns the frames that a picture shows."""
    return frame_steps(num_frames - 1, min(COLUMNS, num_frames))


def make_batch_sampler(
    draw: Callable[..., SampleResult],
    mesh: jax.sharding.Mesh,
    batch_size: int,
    *,
    num_classes: int = 0,
    class_names: tuple[str, ...] = (),
    with_frames: bool = False,
) -> Callable[..., Samples]:
    """Returns (params, settings, indices, labels=None) -> Samples.

    Image i depends only on i, the settings and its label.

    Args:
      draw: (params, settings, indices, labels) -> uint8 images; called inside `jit`. Settings are a tree of numbers,
        the seed among them, replicated over the devices; new numbers need no recompilation.
      mesh: Devices.
      batch_size: Images per batch.
      num_classes: Number of classes of the model; 0 if it is unconditional.
      class_names: Their names, for pictures.
      with_frames: Whether `draw` keeps frames.
    """
    out_axes = (0, 1, 1, 0, 0) if with_frames else (0, None, None, 0, 0)
    run = map_batches(draw, mesh, batch_size, out_axes=out_axes)

    def draw_batch(
        params: Any, settings: Any, indices: np.ndarray, labels: Sequence[int] | None = None
    ) -> Samples:
        indices = np.asarray(indices, np.int32)
        classes = class_of_images(indices, num_classes, labels)
        images, x_t, x0_hat, stats, finite = run((params, settings), (indices, classes))
        return Samples(images, x_t, x0_hat, classes, stats, finite, class_names)

    return draw_batch


def make_sampler_in_parts(
    draw: Callable[..., tuple],
    mesh: jax.sharding.Mesh,
    batch_size: int,
    image_shape: tuple[int, int, int],
    num_steps: int,
    advance: Callable[[int], object],
    *,
    num_classes: int = 0,
) -> Callable[..., Samples]:
    """Returns (params, settings, indices, labels=None) -> Samples, as `make_batch_sampler` does, but in parts.

    A batch takes several runs of one program, so that its progress is known and a signal stops it, without a call of
    the host from the program, which JAX's compilation cache would not keep.

    Args:
      draw: (params, settings, start, stop, indices, labels, x) -> x_t at the point `stop`, uint8 images of it,
        statistics of the steps, and whether all is finite; called inside `jit`.
      mesh: Devices.
      batch_size: Images per batch, and the most at a call.
      image_shape: (H, W, C).
      num_steps: Number of steps of the sampler.
      advance: Called with the number of steps done, after each part.
      num_classes: Number of classes of the model; 0 if it is unconditional.
    """
    run = map_batches(draw, mesh, batch_size, out_axes=(0, 0, 0, 0))

    def draw_batch(
        params: Any, settings: Any, indices: np.ndarray, labels: Sequence[int] | None = None
    ) -> Samples:
        indices = np.asarray(indices, np.int32)
        classes = class_of_images(indices, num_classes, labels)
        x, cost = np.zeros((len(indices), *image_shape), np.float32), 0
        stop, length = 0, max(1, num_steps // PARTS)
        while True:
            start, stop, began = stop, min(stop + length, num_steps), time.monotonic()
            whole = params, settings, np.int32(start), np.int32(stop)
            x, images, stats, finite = run(whole, (indices, classes, x))
            cost = cost + stats.evaluations
            advance(stop)
            if stop == num_steps:
                stats = stats._replace(evaluations=cost)
                return Samples(images, None, None, classes, stats, finite)
            stopping.check()
            length *= 2 if time.monotonic() - began < SHORTEST else 1

    return draw_batch


def make_shared_sampler(
    draw: Callable[..., Shared], mesh: jax.sharding.Mesh, num_images: int, *, num_classes: int = 0
) -> Callable[..., Shared]:
    """Returns (params, settings, point, labels=None) -> Shared of the first images; one program for all points.

    Args:
      draw: (params, settings, point, indices, labels) -> Shared of uint8 images, to be compiled.
      mesh: Devices.
      num_images: Number of images.
      num_classes: Number of classes of the model; 0 if it is unconditional.
    """
    run = map_batches(draw, mesh, num_images, out_axes=(0, 0, 0))
    indices = np.arange(num_images, dtype=np.int32)

    def draw_shared(
        params: Any, settings: Any, point: int, labels: Sequence[int] | None = None
    ) -> Shared:
        rows = indices, class_of_images(indices, num_classes, labels)
        return Shared(*run((params, settings, np.int32(point)), rows))

    return draw_shared
