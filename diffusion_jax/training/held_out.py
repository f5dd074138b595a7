"""The loss on held-out images, comparable from one checkpoint to the next."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax import data
from diffusion_jax.data.transforms import to_model_range
from diffusion_jax.losses import Draws, Objective, standard_normal
from diffusion_jax.parallel import sharding
from diffusion_jax.training.step import DeviceBatch

GOLDEN_RATIO = (5**0.5 - 1) / 2


def make_eval_step(
    objective: Objective, key: Key[Array, ""], *, conditional: bool
) -> Callable[[Any, DeviceBatch, Int[Array, ""]], Float[Array, " b"]]:
    """Returns (params, batch, k) -> losses of each image of held-out batch k, with fixed noise and times.

    The times are spread evenly over the process instead of drawn, which removes most of the noise
    that makes losses of single batches incomparable. Multiples of the golden ratio do so for the first
    rows of a batch too: the others may be padding.
    """

    def eval_step(params: Any, batch: DeviceBatch, k: Int[Array, ""]) -> Float[Array, " b"]:
        u_key, eps_key = jax.random.split(jax.random.fold_in(key, k))
        x0 = to_model_range(batch["image"])
        spread = jnp.asarray(np.arange(x0.shape[0]) * GOLDEN_RATIO % 1, jnp.float32)
        draws = Draws((spread + jax.random.uniform(u_key)) % 1, standard_normal(eps_key, x0.shape))
        return objective.loss(params, x0, batch["label"] if conditional else None, draws, None)

    return eval_step


def make_held_out_loss(
    objective: Objective,
    split: data.Split,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    *,
    conditional: bool,
    num_images: int,
    batch_size: int,
) -> Callable[[Any], float]:
    """Returns params -> mean loss over the first `num_images` of a split, with the same noise every time.

    Args:
      objective: What is measured.
      split: Held-out images.
      mesh: Devices.
      key: Decides noise and times.
      conditional: Whether the objective is given labels.
      num_images: Number of images, at most; fewer if the split is smaller.
      batch_size: Images at once, rounded up to a multiple of the devices.
    """
    total = min(num_images, split.num_images)
    size = -(-min(batch_size, total) // mesh.size) * mesh.size
    batched = sharding.batch_sharding(mesh)
    eval_step = make_eval_step(objective, key, conditional=conditional)
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
