"""One training step (Ho et al., 2020, Algorithm 1), as a pure function of state and batch."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from diffusion_jax.data.transforms import random_flip, to_model_range
from diffusion_jax.processes.schedules import Schedule
from diffusion_jax.training.state import (
    QUARTILES,
    MetricSums,
    TrainState,
    ema_decay_at,
    zero_metrics,
)

GOLDEN_RATIO = (5**0.5 - 1) / 2

# (params, x0, t, eps, labels, dropout_key) -> loss of each image
LossFn = Callable[..., Float[Array, " b"]]
DeviceBatch = dict[str, Any]  # image: uint8 (b, h, w, c); label: int32 (b,)
TrainStep = Callable[[TrainState, DeviceBatch], TrainState]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    num_timesteps: int,
    ema_decay: float,
    flip: bool = False,
    conditional: bool = False,
    accumulate: int = 1,
    log_every: int = 100,
) -> TrainStep:
    """Returns (state, batch) -> state, to be compiled by the caller.

    All randomness of step k comes from fold_in(key, k) and is drawn for the global batch, so the result does
    not depend on the number of devices beyond float rounding.

    Args:
      loss_fn: (params, x0, t, eps, labels, dropout_key) -> (b,).
      optimizer: Optax transformation.
      key: Base key of the run.
      num_timesteps: T; t is drawn uniformly from {0, ..., T - 1}.
      ema_decay: Decay of the parameters' average after its warm-up.
      flip: Whether to mirror images at random.
      conditional: Whether the loss is given labels.
      accumulate: Number of equal micro-batches, one after the other, whose gradients are averaged.
      log_every: The metric sums start anew after each multiple of this many steps.
    """

    def mean_loss(params: Any, micro: dict[str, Any], dropout_key: Array) -> tuple[Array, Array]:
        losses = loss_fn(
            params, micro["x0"], micro["t"], micro["eps"], micro["labels"], dropout_key
        )
        return losses.mean(), losses

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)

    def gradients(params: Any, inputs: dict[str, Any], key: Array) -> tuple[Array, Array, Any]:
        """Returns the loss, each image's loss, and the gradients, over all micro-batches."""
        if accumulate == 1:
            (loss, losses), grads = value_and_grad(params, inputs, key)
            return loss, losses, grads

        def add(carry: tuple, xs: tuple) -> tuple[tuple, Array]:
            micro, index = xs
            (loss, losses), grads = value_and_grad(params, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, (loss, grads)), losses

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        xs = (jax.tree.map(lambda x: _strided(x, accumulate), inputs), jnp.arange(accumulate))
        (loss, grads), losses = jax.lax.scan(add, zeros, xs)
        grads = jax.tree.map(lambda g: g / accumulate, grads)
        return loss / accumulate, losses.swapaxes(0, 1).reshape(-1), grads

    def train_step(state: TrainState, batch: DeviceBatch) -> TrainState:
        flip_key, t_key, eps_key, dropout_key = jax.random.split(
            jax.random.fold_in(key, state.step), 4
        )
        images: UInt8[Array, "b h w c"] = batch["image"]
        x0 = to_model_range(random_flip(flip_key, images) if flip else images)
        inputs = {
            "x0": x0,
            "t": jax.random.randint(t_key, x0.shape[:1], 0, num_timesteps),
            "eps": _normal(eps_key, x0.shape),
            "labels": batch["label"] if conditional else None,
        }
        loss, losses, grads = gradients(state.params, inputs, dropout_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay)
        ema_params = jax.tree.map(
            lambda average, new: average + (1 - decay) * (new - average), state.ema_params, params
        )
        quarter = inputs["t"] * QUARTILES // num_timesteps
        metrics = _add_step(state, log_every, loss, losses, quarter, optax.tree.norm(grads), params)
        return TrainState(state.step + 1, params, ema_params, opt_state, metrics)

    return train_step


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Standard normal noise, drawn flat: a shaped draw is much slower on XLA's CPU backend."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def _strided(x: Array, accumulate: int) -> Array:
    """Splits a batch so that micro-batch i has rows i, i + n, ...: a sharded batch stays where it is."""
    return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)


def _add_step(
    state: TrainState,
    log_every: int,
    loss: Float[Array, ""],
    losses: Float[Array, " b"],
    quarter: Int[Array, " b"],
    grad_norm: Float[Array, ""],
    params: Any,
) -> MetricSums:
    old = state.metrics
    # The row of the last multiple of log_every has been handed out: begin the next one.
    fresh = dataclasses.replace(zero_metrics(), bad_step=old.bad_step)
    restart = state.step % log_every == 0
    old = jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, old)
    param_norm = optax.tree.norm(params)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
    bad = ~finite & (old.bad_step < 0)
    one_hot = jax.nn.one_hot(quarter, QUARTILES)
    return MetricSums(
        steps=old.steps + 1,
        loss=old.loss + loss,
        quartile_loss=old.quartile_loss + losses @ one_hot,
        quartile_images=old.quartile_images + one_hot.sum(0),
        grad_norm=old.grad_norm + grad_norm,
        param_norm=param_norm,
        bad_step=jnp.where(bad, state.step + 1, old.bad_step),
    )


def make_eval_step(loss_fn: LossFn, key: Key[Array, ""], *, num_timesteps: int, conditional: bool):
    """Returns (params, batch, k) -> losses of each image of held-out batch k, with fixed noise and t.

    The timesteps are spread evenly over {0, ..., T - 1} instead of drawn, which removes most of the noise
    that makes losses of single batches incomparable. Multiples of the golden ratio do so for the first
    rows of a batch too: the others may be padding.
    """

    def eval_step(params: Any, batch: DeviceBatch, k: Int[Array, ""]) -> Float[Array, " b"]:
        t_key, eps_key = jax.random.split(jax.random.fold_in(key, k))
        x0 = to_model_range(batch["image"])
        offset = jax.random.uniform(t_key)
        spread = (jnp.asarray(np.arange(x0.shape[0]) * GOLDEN_RATIO % 1, jnp.float32) + offset) % 1
        t = jnp.minimum(spread * num_timesteps, num_timesteps - 1).astype(jnp.int32)
        labels = batch["label"] if conditional else None
        return loss_fn(params, x0, t, _normal(eps_key, x0.shape), labels, None)

    return eval_step


def make_multi_step(train_step: TrainStep, num_steps: int) -> TrainStep:
    """Returns a step that takes batches stacked along a new first axis and does them in one `lax.scan`."""
    if num_steps == 1:
        return train_step

    def multi_step(state: TrainState, batches: DeviceBatch) -> TrainState:
        return jax.lax.scan(lambda s, b: (train_step(s, b), None), state, batches)[0]

    return multi_step


def loss_function(
    loss: Callable[..., Float[Array, " b"]], schedule: Schedule, prediction: str, apply_fn: Any
) -> LossFn:
    """Binds a loss of `losses.LOSSES` to its process and network."""

    def bound(
        params: Any, x0: Array, t: Array, eps: Array, labels: Array | None, key: Array | None
    ) -> Float[Array, " b"]:
        return loss(schedule, prediction, apply_fn, params, x0, t, eps, labels, key)

    return bound
