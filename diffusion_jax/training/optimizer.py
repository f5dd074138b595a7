"""The optimizer, its learning rate, and the decay of parameter averages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.training.averages import power_exponent

# Number k of the step, from 0 -> decay of an average in that step
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


# Name -> (steps of the decay -> (steps since the warm-up -> share of the rate)). The share ends at 0 and stays there.
DECAYS: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda num_steps: optax.constant_schedule(1.0),
    "linear": functools.partial(optax.linear_schedule, 1.0, 0.0),
    "cosine": functools.partial(optax.cosine_decay_schedule, 1.0),
}


def learning_rate_schedule(
    peak: float, warmup_steps: int, decay: str = "constant", num_steps: int = 800_000
) -> optax.Schedule:
    """Returns k -> learning rate of step k, counted from 0.

    It is peak (k + 1) / warmup_steps while k < warmup_steps. From there on, with f = (k - warmup_steps) /
    (num_steps - warmup_steps) limited to 1, it is peak (constant), peak (1 - f) (linear) or
    peak (1 + cos(pi f)) / 2 (cosine; Loshchilov & Hutter, 2017, Eq. 5 without restarts).

    Args:
      peak: Rate at the end of the warm-up.
      warmup_steps: Length of the warm-up; 0 for none.
      decay: A name of DECAYS.
      num_steps: Step at which the rate would be 0: the first after training.
    """
    share = DECAYS[decay](max(num_steps - warmup_steps, 1))

    def rate(count: Any) -> Any:
        warm = jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))
        return peak * warm * share(jnp.maximum(count - warmup_steps, 0))

    return rate


def make_optimizer(
    learning_rate: float = 2e-4,
    warmup_steps: int = 5000,
    grad_clip: float = 1.0,
    *,
    decay: str = "constant",
    num_steps: int = 800_000,
) -> optax.GradientTransformation:
    """Returns Adam with a linear learning-rate warm-up and clipping of the gradients' global norm.

    Rate, warm-up, clipping at 1 and the constant rate are those of Ho et al. (2020)'s CIFAR-10 runs. The
    clipping is in their released code, not in the paper: each TPU core clips its own gradients there, before the mean
    over the cores.

    Args:
      learning_rate: Rate after the warm-up.
      warmup_steps: Step k (from 0) has rate learning_rate (k + 1) / warmup_steps until it is full.
      grad_clip: Largest global norm of the gradients; 0 for no limit.
      decay: Decay of the rate after the warm-up, a name of DECAYS; see `learning_rate_schedule`.
      num_steps: Length of the training, at which the rate has decayed to 0.
    """
    rate = learning_rate_schedule(learning_rate, warmup_steps, decay, num_steps)
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    return optax.chain(clip, optax.adam(rate))


def ema_decay(decay: float, *, warmup: bool = True) -> Decay:
    """Returns k -> min(decay, (1 + k) / (10 + k)), or k -> decay.

    The warm-up makes an early average follow the parameters instead of remembering their random start. Ho et
    al. (2020) train without it: their 0.9999 forgets the start within some ten thousand of 800,000 steps.

    Args:
      decay: Decay of the average after the warm-up, in [0, 1].
      warmup: Whether there is a warm-up.

    Example:
      >>> decay = dj.training.ema_decay(0.99)
      >>> [round(float(decay(jnp.array(step))), 3) for step in (0, 90, 9000)]
      [0.1, 0.91, 0.99]
    """

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else jnp.float32(decay)

    return at


@dataclasses.dataclass(frozen=True)
class ShareDecay:
    """A decay given by its difference from 1, of which float32 has more digits than of the decay.

    Attributes:
      share: k -> share of the new parameters in step k, 1 - decay.
    """

    share: Decay

    def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the decay in a step."""
        return 1 - self.share(step)


def share_of(decay: Decay, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the share of the new parameters in an average after step k, counted from 0."""
    return decay.share(step) if isinstance(decay, ShareDecay) else 1 - decay(step)


def exact_ema_decay(decay: float, *, warmup: bool = True) -> ShareDecay:
    """Returns `ema_decay`, but for the rounding of 1 - decay: of 0.9999, float32 has 1.00017e-4.

    Args:
      decay: Decay of the average after the warm-up, in [0, 1].
      warmup: Whether there is a warm-up.
    """
    share = 1 - decay
    return ShareDecay(
        lambda k: jnp.maximum(share, 9 / (10.0 + k)) if warmup else jnp.float32(share)
    )


def power_decay(length: float) -> ShareDecay:
    """Returns k -> (1 - 1 / (k + 1))^(gamma + 1), the decay of a power-function average (Karras et al., 2024, Eq. 127).

    After t steps, the parameters of step i, from 1, have the weight (i / t)^(gamma + 1) - ((i - 1) / t)^(gamma + 1),
    and the initialization has none.

    Args:
      length: Standard deviation of the weights over the training's length, sigma_rel, in (0, 0.28).
    """
    exponent = power_exponent(length) + 1
    return ShareDecay(lambda k: -jnp.expm1(exponent * jnp.log1p(-1 / (k + 1.0))))
