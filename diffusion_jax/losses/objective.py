"""The interface of objectives: the noise of a batch, and the loss of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.keys import indexed, standard_normal, threefry
from diffusion_jax.losses.time_samplers import TimeSampler


class NoiseDraw(NamedTuple):
    """The random numbers of a batch, drawn for the whole batch, so its loss does not depend on how it is split.

    Attributes:
      u: Determines the time of each image, in [0, 1), least noisy first; rows are divided into quarters by it.
      eps: Standard normal noise.
      weight: Weight of the image's loss in the mean over the batch, 1 on average; 1 unless some times are
        drawn more often than others.
      keys: One key per image, independent of its u and eps, for anything else that a loss draws; None if nothing.
    """

    u: Float[Array, " b"]
    eps: Float[Array, " b *dims"]
    weight: Float[Array, " b"]
    keys: Key[Array, " b"] | None = None


# (params, aux, x0, labels, noise, dropout_keys) -> loss of each image, not weighted
Loss = Callable[[Any, Any, Array, Array | None, NoiseDraw, Array | None], Array]


class Objective(NamedTuple):
    """The mean of weight * loss, which is minimized, and the distribution of its noise.

    Attributes:
      init: params -> aux, the objective's own state (a history of losses, a target network): a pytree of arrays,
        saved with the parameters.
      draw: (aux, key, shape of the batch of images) -> NoiseDraw.
      loss: (params, aux, x0, labels, noise, dropout_keys) -> loss of each image, not weighted; x0 in [-1, 1], labels
        and dropout_keys, one per image, may be None. There is no gradient for aux.
      update: (aux, params, noise, losses) -> aux after the step; params after the step, losses not weighted.
    """

    init: Callable[[Any], Any]
    draw: Callable[[Any, Array, tuple[int, ...]], NoiseDraw]
    loss: Loss
    update: Callable[[Any, Any, NoiseDraw, Array], Any]


def make_objective(loss: Loss, times: TimeSampler) -> Objective:
    """Returns the objective with this loss, these times and normal noise; its state is that of the time sampler."""

    def draw(aux: Any, key: Key[Array, ""], shape: tuple[int, ...]) -> NoiseDraw:
        u_key, eps_key, own_key = jax.random.split(threefry(key), 3)
        u, weight = times.draw(aux, u_key, shape[0])
        keys = indexed(own_key, jnp.arange(shape[0]))
        return NoiseDraw(u, standard_normal(eps_key, shape), weight, keys)

    def update(aux: Any, params: Any, noise: NoiseDraw, losses: Float[Array, " b"]) -> Any:
        del params
        return times.update(aux, noise.u, losses)

    return Objective(lambda params: times.init(), draw, loss, update)
