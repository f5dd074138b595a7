"""L_simple of Ho et al. (2020), Eq. 14, its analogs for other predictions, and weighted forms of both."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Real

from diffusion_jax.losses.objective import NoiseDraw, Objective, make_objective
from diffusion_jax.losses.time_samplers import TimeSampler, uniform
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.models.diffusion_model import DiffusionModel
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.process import Point


def simple_loss(
    model: DiffusionModel,
    params: Any,
    x0: Float[Array, " b *dims"],
    t: Real[Array, " b"],
    eps: Float[Array, " b *dims"],
    labels: Int[Array, " b"] | None = None,
    dropout_keys: Key[Array, " b"] | None = None,
    *,
    weighting: Weighting | None = None,
) -> Float[Array, " b"]:
    """Returns the squared error of the network for each image, the mean over all dimensions but the batch.

    With eps prediction: mean (eps - eps_hat(x_t, t))^2, Ho et al. (2020), Eq. 14. x0, v and the posterior's mean are
    compared in their own space, unweighted (Salimans & Ho, 2022). With a weighting it is the weight times the
    squared error of eps, for every prediction. The caller takes the expectation over t and eps: the mean
    over the batch.

    Args:
      model: The model to train; the variance output of its network is ignored.
      params: Parameters of the network.
      x0: Clean images in [-1, 1].
      t: Time of each image.
      eps: Standard normal noise.
      labels: Class of each image.
      dropout_keys: Dropout keys, one per image; None turns dropout off.
      weighting: Weight of the squared error of eps, such as `min_snr()`; None: the error of the prediction itself.
    """
    point = model.process.at(t)
    x_t = q_sample(point, x0, eps)
    output = model.output(params, x_t, point, labels, dropout_keys)
    return squared_error(model, point, model.target(point, x_t, x0, eps) - output.mean, weighting)


def squared_error(
    model: DiffusionModel,
    point: Point,
    error: Float[Array, " b *dims"],
    weighting: Weighting | None,
) -> Float[Array, " b"]:
    """Returns each image's mean squared error of the output, or, with a weighting, the weighted one of eps."""
    losses = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    if weighting is None:
        return losses
    return weighting(point) * jnp.square(model.eps_error(point)) * losses


def simple(
    model: DiffusionModel,
    *,
    weighting: Weighting | None = None,
    times: TimeSampler | None = None,
) -> Objective:
    """Returns L_simple over the process's own distribution of times (DDPM: uniform over the T steps).

    Args:
      model: The model to train.
      weighting: Weight of each noise level; None: equal weights for errors of what the model predicts.
      times: Distribution of times; None: independent and even.
    """
    times = times or uniform()

    def loss(
        params: Any,
        aux: Any,
        x0: Array,
        labels: Array | None,
        noise: NoiseDraw,
        dropout_keys: Array | None,
    ) -> Float[Array, " b"]:
        del aux
        t = times.time(model.process, noise.u)
        return simple_loss(
            model, params, x0, t, noise.eps, labels, dropout_keys, weighting=weighting
        )

    return make_objective(loss, times)
