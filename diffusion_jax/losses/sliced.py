"""Sliced score matching (Song et al., 2019), which needs a derivative of the network instead of a noise target.

For a score model s of a density p, with random v of covariance I,

    E[v' (grad s) v + |s|^2 / 2] = E |s - grad log p|^2 / 2 - E |grad log p|^2 / 2,

the variance-reduced objective (Eq. 8), where the second term of the right side does not depend on s. `sliced` is for a
Gaussian process, `sliced_objective` for any SDE that can be simulated: its density given x_0 need not be known. Both
are twice this, per dimension, so they differ from the mean squared error of s by a term independent of s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.keys import SlicedScoreStream, fold_in
from diffusion_jax.likelihood.divergence import draw_probes, hutchinson
from diffusion_jax.losses.objective import NoiseDraw, Objective, make_objective
from diffusion_jax.losses.time_samplers import TimeSampler, uniform
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.models.diffusion_model import DiffusionModel, Network
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.dynamics import SDE, simulate
from diffusion_jax.processes.gaussian import q_sample


def sliced(
    model: DiffusionModel,
    *,
    num_probes: Annotated[
        int, Option(kinds.Int(1, 10_000), "random directions per image and step")
    ] = 1,
    weighting: Weighting | None = None,
    times: TimeSampler | None = None,
) -> Objective:
    """Returns sliced score matching with the weight std^2: it estimates the squared error of eps without eps.

    With std s = -eps_hat it is 1 + mean (std s)^2 + 2 std^2 v' (grad s) v / D for images of D dimensions. Its
    expectation, and so its expected gradient, are those of the mean squared error of eps, for every prediction; its
    variance is larger, and the loss of an image may be negative.

    Args:
      model: The model to train; its network must be forward-differentiable.
      num_probes: Number of random directions v per image, vectors of signs.
      weighting: Weight of the squared error of eps; None: 1.
      times: Time sampler; None: independent times.
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
        point = model.process.at(times.time(model.process, noise.u))
        x_t = q_sample(point, x0, noise.eps)

        def std_score(x_t: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
            return -model.predict(params, x_t, point, labels, dropout_keys).eps

        square, divergence = _terms(std_score, x_t, noise.keys, num_probes)
        losses = 1 + square + 2 * point.std * divergence
        return losses if weighting is None else weighting(point) * losses

    return make_objective(loss, times)


def sliced_objective(
    sde: SDE,
    network: Network,
    *,
    num_steps: int = 100,
    num_probes: int = 1,
    weighting: Callable[[Float[Array, " b"]], Float[Array, " b"]] | None = None,
    times: TimeSampler | None = None,
) -> Objective:
    """Returns sliced score matching along a custom SDE: weight (mean s^2 + 2 v' (grad s) v / D).

    x_t is simulated from x_0 to a time of each image, uniform between `start` and `end`. The expectation is the mean
    squared error of the network minus the mean square of the true score.

    Args:
      sde: SDE from the data at `start`. Its drift need not be affine.
      network: (params, x_t, t, labels, dropout_keys) -> score, for t from `start` to `end`, forward-differentiable.
      num_steps: Euler-Maruyama steps to each image's time.
      num_probes: Number of random directions v per image, vectors of signs.
      weighting: t -> weight of each image's loss; None: 1. For data without a density, such as images, the loss
        has no minimum at `start`: a weight that is 0 there keeps it finite.
      times: Time sampler; None: independent times.
    """

    def loss(
        params: Any,
        aux: Any,
        x0: Array,
        labels: Array | None,
        noise: NoiseDraw,
        dropout_keys: Array | None,
    ) -> Float[Array, " b"]:
        del aux
        t = sde.start + (sde.end - sde.start) * noise.u
        keys = fold_in(_given(noise.keys), SlicedScoreStream.PATH)
        x_t = simulate(sde, keys, x0, sde.start, t, num_steps)

        def score(x_t: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
            return network(params, x_t, t, labels, dropout_keys)

        square, divergence = _terms(score, x_t, noise.keys, num_probes)
        losses = square + 2 * divergence
        return losses if weighting is None else weighting(t) * losses

    return make_objective(loss, times or uniform())


def _terms(
    field: Callable[[Array], Array],
    x: Float[Array, " b *dims"],
    keys: Key[Array, " b"] | None,
    num_probes: int,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Returns the mean square of the field and an estimate of its divergence per dimension."""
    keys = fold_in(_given(keys), SlicedScoreStream.PROBES)
    probes = draw_probes(keys, x.shape[1:], num_probes)
    value, divergence = hutchinson(probes)(field, x)
    square = jnp.mean(jnp.square(value), axis=tuple(range(1, x.ndim)))
    return square, divergence / math.prod(x.shape[1:])


def _given(keys: Key[Array, " b"] | None) -> Key[Array, " b"]:
    if keys is None:
        raise ValueError("sliced score matching needs the keys of NoiseDraw")
    return keys
