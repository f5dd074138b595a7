"""Training objectives: L_simple of Ho et al. (2020), Eq. 14, and its like for x0 and v."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Real

from diffusion_jax.denoiser import PARAMETERIZATIONS, Network
from diffusion_jax.errors import choose
from diffusion_jax.keys import standard_normal
from diffusion_jax.processes.gaussian import q_sample
from diffusion_jax.processes.process import Process


class Draws(NamedTuple):
    """The random numbers of a batch, drawn for all of it at once: its loss does not depend on how it is split.

    Attributes:
      u: Decides the time of each image, in [0, 1), least noisy first; rows are divided into quarters by it.
      eps: Standard normal noise.
    """

    u: Float[Array, " b"]
    eps: Float[Array, " b *dims"]


class Objective(NamedTuple):
    """What is minimised, and how its times are drawn.

    Attributes:
      init: () -> aux, the objective's own state (a history of losses, say): a pytree of arrays, saved with
        the parameters.
      draw: (aux, key, shape of the batch of images) -> Draws.
      loss: (params, x0, labels, draws, dropout_keys) -> loss of each image; x0 in [-1, 1], labels and
        dropout_keys, one an image, may be None.
      update: (aux, draws, losses) -> aux after the step.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, tuple[int, ...]], Draws]
    loss: Callable[[Any, Array, Array | None, Draws, Array | None], Array]
    update: Callable[[Any, Draws, Array], Any]


def draw_uniform(aux: Any, key: Key[Array, ""], shape: tuple[int, ...]) -> Draws:
    """Returns independent uniform u and normal eps."""
    del aux
    u_key, eps_key = jax.random.split(key)
    return Draws(jax.random.uniform(u_key, shape[:1]), standard_normal(eps_key, shape))


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
) -> Float[Array, " b"]:
    """Returns each image's squared error of the network, the mean over all dimensions but the batch.

    With eps prediction: mean (eps - eps_hat(x_t, t))^2, Ho et al. (2020), Eq. 14. x0 and v are
    compared in their own space, unweighted (Salimans & Ho, 2022). The expectation over t and eps is
    the caller's: the mean over the batch.

    Args:
      process: Gives x_t its signal and noise.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> array of the shape of x_t.
      params: Parameters of the network.
      x0: Clean images in [-1, 1].
      t: Time of each image.
      eps: Standard normal noise.
      labels: Class of each image.
      dropout_keys: Sources of the network's dropout, one an image; None turns it off.

    Raises:
      InputError: Unknown prediction.
    """
    target = choose("prediction", prediction, PARAMETERIZATIONS).target
    point = process.at(t)
    output = network(params, q_sample(point, x0, eps), point.time, labels, dropout_keys)
    error = target(point, x0, eps) - output
    return jnp.mean(jnp.square(error), axis=tuple(range(1, x0.ndim)))


def simple(process: Process, prediction: str, network: Network) -> Objective:
    """Returns L_simple with times of the process's own distribution (DDPM: uniform over the T steps)."""

    def loss(
        params: Any, x0: Array, labels: Array | None, draws: Draws, dropout_keys: Array | None
    ) -> Float[Array, " b"]:
        t = process.training_time(draws.u)
        return simple_loss(
            process, prediction, network, params, x0, t, draws.eps, labels, dropout_keys
        )

    return Objective(lambda: (), draw_uniform, loss, lambda aux, draws, losses: aux)


# (process, prediction, network) -> Objective
OBJECTIVES: dict[str, Callable[[Process, str, Network], Objective]] = {"simple": simple}


def loss_function(name: str, process: Process, prediction: str, network: Network) -> Objective:
    """Returns the objective of that name.

    Args:
      name: A key of `OBJECTIVES`.
      process: The forward process.
      prediction: What the network predicts, a key of `PARAMETERIZATIONS`.
      network: (params, x_t, time, labels, dropout_keys) -> output.

    Raises:
      InputError: Unknown name or prediction.
    """
    choose("prediction", prediction, PARAMETERIZATIONS)
    return choose("loss", name, OBJECTIVES)(process, prediction, network)
