"""Images that share high-level structure: several samples from one x_t (Ho et al., 2020, Figure 7)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers.loop import Sampler, continuation_keys, sample_loop


class Shared(NamedTuple):
    """The shared structure of images, and samples drawn from it.

    Attributes:
      x_t: Each image, partly denoised.
      x0_hat: The clean image predicted from it.
      samples: Samples of p(x_0 | x_t), k per x_t.
    """

    x_t: Float[Array, " b *dims"]
    x0_hat: Float[Array, " b *dims"]
    samples: Float[Array, " b k *dims"]


def shared_structure(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    point: int | Int[Array, ""],
    num_samples: int,
) -> Shared:
    """Draws x_t once per key, and several samples from it; call inside `jit`.

    The x_t are those of `sample_loop` with these keys; continuation k has its own key, derived from the image's.
    No noise is added from the sampler's last point on: all samples of an image are the same there.

    Args:
      denoise: (x_t, point) -> Prediction, for a batch of as many images as there are keys.
      sampler: Update rule, such as `ancestral(make_grid(process))`; a rule that adds no noise draws equal samples.
      keys: One key per image, as from `image_keys`.
      shape: Shape of one image, (H, W, C).
      point: Index of the point of the grid that x_t is at, in {0, ..., num_steps - 1}, see `nearest_point`; may be
        traced, so that one program serves all.
      num_samples: Number of samples per x_t.

    Raises:
      InputError: point out of range.
    """
    x_t = sample_loop(denoise, sampler, keys, shape, stop=point).images

    def go_on(k: Int[Array, ""]) -> Float[Array, " b *dims"]:
        own = continuation_keys(keys, k)
        return sample_loop(denoise, sampler, own, shape, x_init=x_t, start=point).images

    x0_hat = denoise(x_t, sampler.grid.at(jnp.full(keys.shape, point))).x0
    return Shared(x_t, x0_hat, jax.vmap(go_on, out_axes=1)(jnp.arange(num_samples)))


def nearest_point(grid: Grid, time: float | int) -> int:
    """Returns the index of the point nearest to a time, among those where a step begins; of two, the noisier.

    Args:
      grid: Points from noise to data.
      time: Time of the grid's process.
    """
    return int(np.argmin(np.abs(grid.time[:-1] - time)))
