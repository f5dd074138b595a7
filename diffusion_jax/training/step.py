"""One training step (Ho et al., 2020, Algorithm 1), as a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from diffusion_jax.data.transforms import drop_labels, random_flip, to_model_range
from diffusion_jax.errors import InputError
from diffusion_jax.keys import indexed, threefry
from diffusion_jax.losses import NoiseDraw, Objective
from diffusion_jax.parallel.sharding import fsdp_shardings, gather_parts, over_batch
from diffusion_jax.training.optimizer import Decay, share_of
from diffusion_jax.training.state import TrainState

QUARTILES = 4

# image: uint8 (b, h, w, c), or float32 for data that are not pixels; label: int32 (b,)
DeviceBatch = dict[str, Any]


class StepMetrics(NamedTuple):
    """Metrics of a step, not part of the state; arrays on the device or on the host.

    Attributes:
      loss: Mean of weight * loss over the batch: an estimate of the objective for every time sampler.
      quartile_loss: Sum of the images' weight * loss, by quarter of the times, least noisy first; (4,).
      quartile_images: Sum of the images' weights in each quarter, their number if all are 1; (4,).
      grad_norm: Global norm of the gradients, before clipping.
      param_norm: Global norm of the new parameters.
    """

    loss: Any
    quartile_loss: Any
    quartile_images: Any
    grad_norm: Any
    param_norm: Any


TrainStep = Callable[[TrainState, DeviceBatch], tuple[TrainState, StepMetrics]]


class StepKeys(NamedTuple):
    """Independent keys of one training step, each for the whole global batch."""

    flip: Key[Array, ""]
    draw: Key[Array, ""]
    dropout: Key[Array, ""]
    labels: Key[Array, ""]


def step_keys(key: Key[Array, ""], step: int | Int[Array, ""]) -> StepKeys:
    """Returns the keys of a step, a pure function of the run's key and the step's number."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), len(StepKeys._fields)))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    averages: Mapping[str, Decay] | None = None,
    flip: bool = False,
    conditional: bool = False,
    label_dropout: float = 0.0,
    no_label: int | None = None,
    accumulate: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainStep:
    """Returns (state, batch) -> (state, metrics), to be compiled by the caller.

    Images become floats by `to_model_range`, which in a compiled program sees their type alone: to check the values
    of a custom loader, call it on one NumPy batch.

    All randomness of step k comes from fold_in(key, k) and is drawn for the global batch, so the result does
    not depend on the number of devices beyond float rounding.

    Args:
      objective: The objective to minimize, such as `loss_function("simple", model)` of a `DiffusionModel`.
      optimizer: Optax transformation.
      key: Base key of the run.
      averages: Decay of each average of the parameters, by its name in `state.ema`.
      flip: Whether to mirror images at random.
      conditional: Whether the objective is given labels.
      label_dropout: Share of the labels replaced by `no_label`, so that the network also learns the unconditional
        model (Ho & Salimans, 2022).
      no_label: The label that stands for no class, the number of classes; needed for label_dropout.
      accumulate: Number of equal micro-batches, processed in turn, whose gradients are averaged.
      mesh: Devices, each of which computes loss and gradients of its own rows of every micro-batch, and along `fsdp`
        updates its part of the state (`state_shardings`); None: one device.

    Raises:
      InputError: A key of another type, a decay that is not a function of the step, or label_dropout without labels or
        without no_label.

    Example:
      >>> network = dj.as_functions(dj.models.MLP(channels=8, num_res_blocks=1), (4, 4, 1))
      >>> loss = dj.loss_function("simple", dj.DiffusionModel(dj.VP(), "v", network.apply))
      >>> optimizer = dj.training.make_optimizer(1e-3, warmup_steps=10)
      >>> step = jax.jit(dj.training.make_train_step(loss, optimizer, jax.random.key(0)))
      >>> state = dj.training.create_state(jax.random.key(1), network, optimizer)
      >>> batch = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, np.int32)}
      >>> state, metrics = step(state, batch)
      >>> int(state.step), bool(jnp.isfinite(metrics.loss))
      (1, True)
    """
    key, decays = threefry(key), dict(averages or {})
    _check(decays, conditional, label_dropout, no_label)

    def gradients(whole: Any, inputs: tuple) -> tuple[tuple[Array, Array], Any]:
        shardings = mesh and fsdp_shardings(whole, mesh)
        local = partial(_gradients, objective, accumulate, shardings)
        return over_batch(local, mesh, ((0, 0), "params"), shardings)(whole, inputs)

    def train_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        keys = step_keys(key, state.step)
        images: UInt8[Array, "b h w c"] | Float32[Array, "b h w c"] = batch["image"]
        x0 = to_model_range(random_flip(keys.flip, images) if flip else images)
        noise = objective.draw(state.aux, keys.draw, x0.shape)
        labels = batch["label"] if conditional else None
        if labels is not None and no_label is not None and label_dropout > 0:
            labels = drop_labels(keys.labels, labels, label_dropout, no_label)
        inputs = x0, labels, noise, indexed(keys.dropout, jnp.arange(len(x0)))
        (losses, weighted), grads = gradients({"params": state.params, "aux": state.aux}, inputs)
        grads = jax.tree.map(_in_order, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = _follow(state.ema, params, decays, state.step)
        aux = objective.update(state.aux, params, noise, losses)
        metrics = _metrics(weighted, noise, grads, params)
        return TrainState(state.step + 1, params, ema, opt_state, aux), metrics

    return train_step


def _in_order(gradient: Array) -> Array:
    """Asks for the gradient of a kernel in the order of its axes.

    Some convolutions of XLA's TPU backend leave it in another one, in which XLA would then keep all of the state, and
    turn parameters, moments and averages at the start and the end of each step.
    """
    if gradient.ndim != 4:
        return gradient
    return with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))


def _metrics(
    weighted: Float[Array, " b"], noise: NoiseDraw, grads: Any, params: Any
) -> StepMetrics:
    one_hot = jax.nn.one_hot((noise.u * QUARTILES).astype(jnp.int32), QUARTILES)
    return StepMetrics(
        loss=weighted.mean(),
        quartile_loss=weighted @ one_hot,
        quartile_images=(noise.weight[:, None] * one_hot).sum(0),
        grad_norm=optax.tree.norm(grads),
        param_norm=optax.tree.norm(params),
    )


def _check(
    decays: Mapping[str, Decay], conditional: bool, label_dropout: float, no_label: int | None
) -> None:
    for name, decay in decays.items():
        if not callable(decay):
            raise InputError(
                f"averages[{name!r}] is {decay!r}; it must be a function of the step, such as ema_decay({decay!r})"
            )
    if not 0 <= label_dropout <= 1:
        raise InputError(f"label_dropout is {label_dropout!r}; it must be from 0 to 1")
    if label_dropout > 0 and not conditional:
        raise InputError(
            f"label_dropout is {label_dropout!r}, but no labels are used; set conditional=True"
        )
    if label_dropout > 0 and no_label is None:
        raise InputError(
            f"label_dropout is {label_dropout!r}, but no_label is missing: the number of classes, the label for none"
        )


def _follow(
    averages: Mapping[str, Any], params: Any, decays: Mapping[str, Decay], step: Int[Array, ""]
) -> dict[str, Any]:
    """Returns the averages after a step, which are those of the state that have a decay."""

    def follow(average: Any, share: Float[Array, ""]) -> Any:
        return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

    return {name: follow(averages[name], share_of(decay, step)) for name, decay in decays.items()}


def _gradients(
    objective: Objective,
    accumulate: int,
    shardings: Any,
    whole: dict[str, Any],
    inputs: tuple[Array, Array | None, NoiseDraw, Key[Array, " b"]],
) -> tuple[tuple[Float[Array, " b"], Float[Array, " b"]], Any]:
    """Returns each image's loss and weighted loss, and the gradients of the mean weighted loss, over all micro-batches.

    Parameters and aux may be this device's shards (`shardings`); the gradients are then too.
    """
    aux = whole["aux"] if shardings is None else gather_parts(whole["aux"], shardings["aux"])

    def mean_loss(params: Any, micro: tuple) -> tuple[Array, tuple[Array, Array]]:
        _, _, noise, _ = micro
        params = params if shardings is None else gather_parts(params, shardings["params"])
        losses = objective.loss(params, aux, *micro)
        weighted = noise.weight * losses
        return weighted.mean(), (losses, weighted)

    gradient = jax.grad(mean_loss, has_aux=True)
    if accumulate == 1:
        grads, losses = gradient(whole["params"], inputs)
        return losses, grads

    def add(total: Any, micro: tuple) -> tuple[Any, tuple[Array, Array]]:
        grads, losses = gradient(whole["params"], micro)
        return jax.tree.map(jnp.add, total, grads), losses

    micros = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), inputs)
    grads, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, whole["params"]), micros)
    losses = jax.tree.map(lambda x: x.reshape(-1), losses)
    return losses, jax.tree.map(lambda g: g / accumulate, grads)


def make_multi_step(train_step: TrainStep, num_steps: int) -> TrainStep:
    """Returns a step that takes batches stacked along a new first axis and does them in one `lax.scan`.

    Its metrics are stacked likewise. With one step it is `train_step` itself, and nothing is stacked.

    Args:
      train_step: From `make_train_step`.
      num_steps: Number of steps in one program, at least 1.
    """
    if num_steps == 1:
        return train_step

    def multi_step(state: TrainState, batches: DeviceBatch) -> tuple[TrainState, StepMetrics]:
        return jax.lax.scan(train_step, state, batches)

    return multi_step
