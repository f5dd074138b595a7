"""L_simple of Ho et al. (2020), Eq. 14, its like for other predictions, and both with a weight of each noise level."""

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
    """Returns each image's squared error of the network, the mean over all dimensions but the batch.

    With eps prediction: mean (eps - eps_hat(x_t, t))^2, Ho et al. (2020), Eq. 14. x0, v and the posterior's mean are
    compared in their own space, unweighted (Salimans & Ho, 2022). With a weighting it is the weight times the
    squared error of eps, whatever is predicted. The expectation over t and eps is the caller's: the mean
    over the batch.

    Args:
      model: What is trained; what its network says of variances is not.
      params: Parameters of the network.
      x0: Clean images in [-1, 1].
      t: Time of each image.
      eps: Standard normal noise.
      labels: Class of each image.
      dropout_keys: Sources of the network's dropout, one per image; None turns it off.
      weighting: Weight of the squared error of eps, such as `min_snr()`; None: that of the prediction itself counts.
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
    """Returns L_simple over the process's own distribution of times (DDPM: uniform over the T steps)."""
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
