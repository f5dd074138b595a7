"""The loss on held-out images, comparable from one checkpoint to the next and between machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.keys import image_normal, indexed
from diffusion_jax.losses import NoiseDraw, Objective
from diffusion_jax.parallel.map_batches import map_batches
from diffusion_jax.training.step import DeviceBatch

GOLDEN_RATIO = 2654435769  # (sqrt(5) - 1) / 2 in units of 2^-32.


def held_out_draws(
    key: Key[Array, ""], indices: Int[Array, " b"], image_shape: tuple[int, ...]
) -> NoiseDraw:
    """Returns time, noise and key of each held-out image, which depend on the key and its index alone.

    The times are spread evenly over the process instead of drawn, which removes most of the noise that
    makes losses of few images incomparable: u_i = i times the golden ratio + one random offset, modulo 1.
    The first n are spread evenly for any n.

    Args:
      key: Key of noise and offset.
      indices: Indices of the images in their split.
      image_shape: Shape of one image.
    """
    u_key, eps_key, own_key = jax.random.split(key, 3)
    # Integers of 32 bits take the sum modulo 1 without rounding, however large the index.
    spread = indices.astype(jnp.uint32) * jnp.uint32(GOLDEN_RATIO) + jax.random.bits(u_key)
    u = (spread >> 8) * jnp.float32(2**-24)  # 24 bits, the resolution of float32 below 1.
    eps = image_normal(indexed(eps_key, indices), image_shape)
    return NoiseDraw(u, eps, jnp.ones_like(u), indexed(own_key, indices))


def make_held_out_loss(
    objective: Objective,
    split: data.Split,
    mesh: jax.sharding.Mesh,
    key: Key[Array, ""],
    *,
    conditional: bool,
    num_images: int,
    batch_size: int,
) -> Callable[[Any, Any], float]:
    """Returns (params, aux) -> mean loss over the first `num_images` of a split, with the same noise every time.

    Neither the devices nor `batch_size` change it beyond float rounding.

    Args:
      objective: The objective to measure.
      split: Held-out images.
      mesh: Devices.
      key: Key of noise and times.
      conditional: Whether the objective is given labels.
      num_images: Maximum number of images; fewer if the split is smaller.
      batch_size: Images per batch, rounded up to a multiple of the number of devices.
    """
    total = min(num_images, split.num_images)

    def losses_of(
        params: Any, aux: Any, batch: DeviceBatch, indices: Int[Array, " b"]
    ) -> tuple[Float[Array, " b"]]:
        x0 = to_model_range(batch["image"])
        noise = held_out_draws(key, indices, x0.shape[1:])
        labels = batch["label"] if conditional else None
        return (objective.loss(params, aux, x0, labels, noise, None),)

    mapped = map_batches(
        losses_of,
        mesh,
        min(batch_size, total),
        load=lambda indices: (split.read(indices), indices.astype(np.int32)),
    )

    def held_out(params: Any, aux: Any) -> float:
        (losses,) = mapped((params, aux), (np.arange(total),))
        return float(losses.mean())

    return held_out
