"""The loss on held-out images, comparable from one checkpoint to the next."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.parallel import sharding
from diffusion_jax.training.step import LossFn, make_eval_step


def make_held_out_loss(
    loss_fn: LossFn,
    split: data.Split,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    *,
    num_timesteps: int,
    conditional: bool,
    num_images: int,
    batch_size: int,
) -> Callable[[Any], float]:
    """Returns params -> mean loss over the first `num_images` of a split, with the same noise every time.

    Args:
      loss_fn: (params, x0, t, eps, labels, dropout_key) -> (b,).
      split: Held-out images.
      mesh: Devices.
      key: Decides noise and timesteps.
      num_timesteps: T.
      conditional: Whether the loss is given labels.
      num_images: Number of images, at most; fewer if the split is smaller.
      batch_size: Images at once, rounded up to a multiple of the devices.
    """
    total = min(num_images, split.num_images)
    size = -(-min(batch_size, total) // mesh.size) * mesh.size
    batched = sharding.batch_sharding(mesh)
    eval_step = make_eval_step(loss_fn, key, num_timesteps=num_timesteps, conditional=conditional)
    compiled = jax.jit(eval_step, out_shardings=batched)
    rows = sharding.local_rows(batched, size)

    def held_out(params: Any) -> float:
        losses = []
        for k, first in enumerate(range(0, total, size)):
            indices = np.resize(np.arange(first, min(first + size, total)), size)
            batch = sharding.put(batched, split.read(indices[rows]))
            losses.append(sharding.fetch(compiled(params, batch, k))[: total - first])
        return float(np.concatenate(losses).mean())

    return held_out
