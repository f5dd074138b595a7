"""Any SDE dx = drift(x, t) dt + diffusion(t) dw: its reverse, its ODE and its simulation (Song et al., 2021).

Nothing here needs a closed form of x_t, so the drift may be any function of x. Time runs from `start` (the data) to
`end` (the prior); `of_process` makes such an SDE from a `Process`. The score is any function (x, t) -> array; a
denoiser gives `lambda x, t: denoise(x, process.at(t)).score`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.keys import fold_in, image_normal
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.process import Process

# (x, t) -> array like x: a drift, a score, or the right side of an ODE
VectorField = Callable[[Float[Array, " b *dims"], Float[Array, " b"]], Float[Array, " b *dims"]]


class Prior(NamedTuple):
    """The distribution of x at the last time.

    Attributes:
      sample: (keys, shape of one image) -> x, image i from key i alone.
      log_density: x -> log density of each image, in nats.
    """

    sample: Callable[[Key[Array, " b"], tuple[int, ...]], Array]
    log_density: Callable[[Float[Array, " b *dims"]], Float[Array, " b"]]


class SDE(NamedTuple):
    """dx = drift(x, t) dt + diffusion(t) dw.

    Attributes:
      drift: (x, t of each image) -> array like x.
      diffusion: t -> one nonnegative number per image.
      start: Time of the data.
      end: Time of the prior, different from `start` and usually larger.
      prior: Distribution of x at `end`.
    """

    drift: VectorField
    diffusion: Callable[[Float[Array, " b"]], Float[Array, " b"]]
    start: float
    end: float
    prior: Prior


def normal_prior(std: float = 1.0) -> Prior:
    """Returns N(0, std^2 I)."""

    def sample(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Array:
        return std * image_normal(keys, shape)

    def log_density(x: Float[Array, " b *dims"]) -> Float[Array, " b"]:
        axes = tuple(range(1, x.ndim))
        constant = math.prod(x.shape[1:]) * (math.log(2 * math.pi) / 2 + math.log(std))
        return -jnp.sum(jnp.square(x / std), axis=axes) / 2 - constant

    return Prior(sample, log_density)


def of_process(process: Process) -> SDE:
    """Returns the SDE of a process, in the process's own time.

    VE has noise at `start` already: there x = x_0 + sigma_min eps.
    """
    start, end = process.ends

    def drift(x: Float[Array, " b *dims"], t: Float[Array, " b"]) -> Float[Array, " b *dims"]:
        return per_image(jnp.asarray(process.rates(t).drift), x) * x

    return SDE(
        drift=drift,
        diffusion=lambda t: jnp.sqrt(process.rates(t).diffusion2),
        start=float(start),
        end=float(end),
        prior=normal_prior(float(process.prior_std)),
    )


def reverse(sde: SDE, score: VectorField) -> SDE:
    """Returns the SDE that takes the prior back to the data (Anderson, 1982; Song et al., 2021, Eq. 6).

    dx = (drift - diffusion^2 score) dt + diffusion dw, where t runs from `end` to `start`: dt has that sign.

    Args:
      sde: The SDE from the data to the prior.
      score: (x, t) -> gradient of log p_t(x).
    """
    return sde._replace(drift=_with_share_of(1.0, sde, score))


def probability_flow(sde: SDE, score: VectorField) -> VectorField:
    """Returns (x, t) -> dx/dt of the ODE with the SDE's marginals (Song et al., 2021, Eq. 13).

    dx/dt = drift - diffusion^2 score / 2, as `likelihood.exact.flow_likelihood` and `processes.ode.solve` take it.
    """
    return _with_share_of(0.5, sde, score)


def _with_share_of(share: float, sde: SDE, score: VectorField) -> VectorField:
    def field(x: Float[Array, " b *dims"], t: Float[Array, " b"]) -> Float[Array, " b *dims"]:
        return sde.drift(x, t) - per_image(share * jnp.square(sde.diffusion(t)), x) * score(x, t)

    return field


def simulate(
    sde: SDE,
    keys: Key[Array, " b"],
    x: Float[Array, " b *dims"],
    t_from: Float[Array, " b"] | float,
    t_to: Float[Array, " b"] | float,
    num_steps: int,
) -> Float[Array, " b *dims"]:
    """Returns x at t_to, by uniform Euler-Maruyama steps; works inside `jit` and eagerly.

    x <- x + drift dt + diffusion |dt|^(1/2) z, where dt has the sign of t_to - t_from; a `reverse` SDE runs backward.
    The noise of an image depends on its key alone, not on its times.

    Args:
      sde: The SDE to simulate.
      keys: One key per image.
      x: Images at t_from.
      t_from: First time, one for all images or one per image.
      t_to: Last time, one for all images or one per image.
      num_steps: Number of steps, 1 or more.
    """

    def unit_noise(i: Int[Array, ""]) -> Float[Array, " b *dims"]:
        return image_normal(fold_in(keys, i), x.shape[1:])

    return _walk(sde, x, t_from, t_to, num_steps, unit_noise)


def simulate_along(
    sde: SDE,
    unit_noise: Float[Array, " n b *dims"],
    x: Float[Array, " b *dims"],
    t_from: Float[Array, " b"] | float,
    t_to: Float[Array, " b"] | float,
) -> Float[Array, " b *dims"]:
    """Returns x at t_to along a given Brownian path, as `simulate` does along a random one.

    Args:
      sde: The SDE to simulate.
      unit_noise: z of each step, w's increment over the step divided by |dt|^(1/2).
      x: Images at t_from.
      t_from: First time, one for all images or one per image.
      t_to: Last time, one for all images or one per image.
    """
    return _walk(sde, x, t_from, t_to, len(unit_noise), lambda i: unit_noise[i])


def _walk(
    sde: SDE,
    x: Float[Array, " b *dims"],
    t_from: Float[Array, " b"] | float,
    t_to: Float[Array, " b"] | float,
    num_steps: int,
    unit_noise: Callable[[Int[Array, ""]], Float[Array, " b *dims"]],
) -> Float[Array, " b *dims"]:
    first, last = (jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1]) for t in (t_from, t_to))
    dt = (last - first) / num_steps

    def step(i: Int[Array, ""], x: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
        t = first + i * dt
        spread = sde.diffusion(t) * jnp.sqrt(jnp.abs(dt))
        return x + per_image(dt, x) * sde.drift(x, t) + per_image(spread, x) * unit_noise(i)

    return jax.lax.fori_loop(0, num_steps, step, x)
