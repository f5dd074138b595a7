"""What training carries from step to step, and the optimiser."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models import Model

QUARTILES = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MetricSums:
    """Sums over the steps since the last logged one; part of the state, so that a resume continues them.

    Scalars and arrays of shape (4,); not annotated as such, since JAX builds the same tree of shapes,
    shardings and other things.

    Attributes:
      steps: Number of steps summed.
      loss: Sum of the steps' losses.
      quartile_loss: Sum of the images' losses, by quarter of the timesteps, least noisy first; (4,).
      quartile_images: Number of images in each quarter; (4,).
      grad_norm: Sum of the gradients' global norms, before clipping.
      param_norm: Global norm of the parameters after the last step.
      bad_step: First step at which loss, gradients or new parameters were not finite; -1 if none. Never reset.
    """

    steps: Any
    loss: Any
    quartile_loss: Any
    quartile_images: Any
    grad_norm: Any
    param_norm: Any
    bad_step: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, their average, the optimiser's state, the number of steps done, and the metrics."""

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    metrics: MetricSums


def zero_metrics() -> MetricSums:
    """Returns sums over no steps."""
    zero, zeros = jnp.zeros(()), jnp.zeros((QUARTILES,))
    none = jnp.zeros((), jnp.int32)
    sums = MetricSums(none, zero, zeros, zeros, zero, zero, none - 1)
    return jax.tree.map(jnp.copy, sums)  # No aliases: all are donated.


def make_optimizer(
    learning_rate: float = 2e-4, warmup_steps: int = 5000, grad_clip: float = 1.0
) -> optax.GradientTransformation:
    """Returns Adam with a linear learning-rate warm-up and global-norm clipping, as Ho et al. train.

    Args:
      learning_rate: Rate after the warm-up.
      warmup_steps: Step k (from 0) has rate learning_rate (k + 1) / warmup_steps until it is full.
      grad_clip: Largest global norm of the gradients; 0 for no limit.
    """

    def rate(count: Any) -> Any:
        return learning_rate * jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))

    clip = optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    return optax.chain(clip, optax.adam(rate))


def create_state(
    key: Key[Array, ""], model: Model, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state at step 0, with freshly initialised parameters."""
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # Not an alias: both are donated.
        opt_state=optimizer.init(params),
        metrics=zero_metrics(),
    )


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> TrainState:
    """Returns the shapes, types and shardings of a state: the template to restore a checkpoint into."""
    shapes = jax.eval_shape(lambda key: create_state(key, model, optimizer), jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def ema_decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Returns min(decay, (1 + k) / (10 + k)) for step k = 0, 1, ...

    The warm-up makes an early average follow the parameters instead of remembering their random start.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
