"""L_simple of Ho et al. (2020), Eq. 14, its like for other predictions, and both with a weight of each noise level."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Real

from diffusion_jax.losses.objective import Draws, Objective
from diffusion_jax.losses.times import Times, objective_of, uniform
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.models.denoiser import (
    Network,
    Parameterization,
    network_output,
    parameterization,
)
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.process import Point, Process


def simple_loss(
    process: Process,
    prediction: str,
    network: Network,
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
      process: Gives x_t its signal and noise.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> array of the shape of x_t, or with twice its channels, of
        which the second half is not trained.
      params: Parameters of the network.
      x0: Clean images in [-1, 1].
      t: Time of each image.
      eps: Standard normal noise.
      labels: Class of each image.
      dropout_keys: Sources of the network's dropout, one an image; None turns it off.
      weighting: Weight of the squared error of eps, such as `min_snr()`; None: that of the prediction itself counts.

    Raises:
      InputError: Unknown prediction.
    """
    meaning = parameterization(prediction, process)
    point = process.at(t)
    x_t = q_sample(point, x0, eps)
    output = network_output(network, params, x_t, point, labels, dropout_keys)
    error = meaning.target(point, x_t, x0, eps) - output.mean
    return squared_error(meaning, point, error, weighting)


def squared_error(
    meaning: Parameterization,
    point: Point,
    error: Float[Array, " b *dims"],
    weighting: Weighting | None,
) -> Float[Array, " b"]:
    """Returns each image's mean squared error of the output, or, with a weighting, the weighted one of eps."""
    losses = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    if weighting is None:
        return losses
    return weighting(point) * jnp.square(meaning.eps_error(point)) * losses


def simple(
    process: Process,
    prediction: str,
    network: Network,
    *,
    weighting: Weighting | None = None,
    times: Times | None = None,
) -> Objective:
    """Returns L_simple over the process's own distribution of times (DDPM: uniform over the T steps)."""
    times = times or uniform()

    def loss(
        params: Any, x0: Array, labels: Array | None, draws: Draws, dropout_keys: Array | None
    ) -> Float[Array, " b"]:
        t = times.time(process, draws.u)
        return simple_loss(
            *(process, prediction, network, params, x0, t, draws.eps, labels, dropout_keys),
            weighting=weighting,
        )

    return objective_of(loss, times)
