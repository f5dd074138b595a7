"""The optimiser, and how fast averages of the parameters follow them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# Number k of the step, from 0 -> decay of an average in that step
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_optimizer(
    learning_rate: float = 2e-4, warmup_steps: int = 5000, grad_clip: float = 1.0
) -> optax.GradientTransformation:
    """Returns Adam with a linear learning-rate warm-up and clipping of the gradients' global norm.

    Rate, warm-up and clipping at 1 are those of Ho et al. (2020)'s CIFAR-10 runs. That they clip is in their
    released code, not in the paper: each TPU core clips its own gradients there, before the mean over the cores.

    Args:
      learning_rate: Rate after the warm-up.
      warmup_steps: Step k (from 0) has rate learning_rate (k + 1) / warmup_steps until it is full.
      grad_clip: Largest global norm of the gradients; 0 for no limit.
    """

    def rate(count: Any) -> Any:
        return learning_rate * jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))

    clip = optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    return optax.chain(clip, optax.adam(rate))


def ema_decay(decay: float, *, warmup: bool = True) -> Decay:
    """Returns k -> min(decay, (1 + k) / (10 + k)), or k -> decay.

    The warm-up makes an early average follow the parameters instead of remembering their random start. Ho et
    al. (2020) train without it: their 0.9999 forgets the start within some ten thousand of 800,000 steps.

    Args:
      decay: Decay of the average after the warm-up, in [0, 1].
      warmup: Whether there is one.
    """

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)

    return at
