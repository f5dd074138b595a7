"""Weightings of the error at each noise level. Each multiplies the eps-MSE, for every prediction.

With SNR = signal^2 / std^2, the x0-MSE is the eps-MSE divided by SNR. So a paper's weight of the x0-MSE appears
here times 1 / SNR, and an objective that is defined by one prediction can be trained with any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.options import Component, Option, Registry, kinds
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point, Process

# point -> weight of each image's eps-MSE
Weighting = Callable[[Point], Float[Array, " b"]]


def snr_of(point: Point) -> Float[Array, " b"]:
    """Returns SNR = signal^2 / std^2; within e^-40 and e^40, by `SMALLEST`."""
    return jnp.square(point.signal / point.std)


def snr() -> Weighting:
    """Returns the weight 1, of the eps-MSE itself: the SNR-weighted x0-MSE, Salimans & Ho (2022), Section 4."""
    return lambda point: jnp.ones_like(point.signal)


def truncated_snr() -> Weighting:
    """Returns max(SNR, 1) / SNR: the larger of x0-MSE and eps-MSE, Salimans & Ho (2022), Section 4."""
    return lambda point: jnp.maximum(1.0, 1 / snr_of(point))


def min_snr(
    *,
    gamma: Annotated[
        float,
        Option(kinds.Float(1e-3, 1e6), "largest weight of an x0 error", field="min_snr_gamma"),
    ] = 5.0,
) -> Weighting:
    """Returns min(SNR, gamma) / SNR: the x0-MSE with a weight of at most gamma, Hang et al. (2023).

    Args:
      gamma: Largest weight of the x0-MSE, positive.
    """
    return lambda point: jnp.minimum(1.0, gamma / snr_of(point))


def p2(
    *,
    k: Annotated[
        float, Option(kinds.Float(1e-3, 1e3), "k of 1 / (k + SNR)^gamma", field="p2_k")
    ] = 1.0,
    gamma: Annotated[
        float, Option(kinds.Float(0, 10), "gamma of 1 / (k + SNR)^gamma", field="p2_gamma")
    ] = 1.0,
) -> Weighting:
    """Returns 1 / (k + SNR)^gamma, which downweights imperceptible details, Choi et al. (2022).

    Args:
      k: Limits the weight of pure noise to k^-gamma; positive.
      gamma: Decay exponent of the weight; 0 makes it 1.
    """
    return lambda point: (k + snr_of(point)) ** -gamma


def sigmoid(
    *,
    bias: Annotated[
        float,
        Option(kinds.Float(-20, 20), "the log SNR whose weight is one half", field="sigmoid_bias"),
    ] = 2.0,
) -> Weighting:
    """Returns sigmoid(bias - log SNR), Kingma & Gao (2023); 2 is their best for 64 x 64 images.

    Large images, whose pixels repeat one another, need a smaller bias (Hoogeboom et al., 2024). The papers
    integrate over log SNR; here the weight applies at the times that the process trains at, so how
    densely they cover log SNR counts too.

    Args:
      bias: The log SNR at which the weight is one half.
    """
    return lambda point: jax.nn.sigmoid(bias - 2 * jnp.log(point.signal / point.std))


def likelihood(process: Process) -> Weighting:
    """Returns g^2 / (2 std^2) in u, which makes the loss a bound of the negative log-likelihood (Song et al., 2021b).

    The loss is then that bound in nats per dimension, up to a constant. As g^2 / std^2 = -d logsnr / du, it is
    largest near the data; draw times accordingly (`TIME_SAMPLERS["likelihood"]`), or a few dominate the loss.

    Args:
      process: The process of the points.
    """
    last, *_, data = make_grid(process).time

    def weight(point: Point) -> Float[Array, " b"]:
        in_u = (last - data) * process.rates(point.time).diffusion2
        return in_u / (2 * jnp.square(point.std))

    return weight


WEIGHTINGS: Registry[Component[Weighting]] = Registry(
    "weighting",
    {
        "snr": Component(snr, "1 for eps errors"),
        "truncated_snr": Component(truncated_snr, "the larger of x0 and eps errors"),
        "min_snr": Component(min_snr, "x0 errors, with a limited weight"),
        "p2": Component(p2, "less where details appear"),
        "sigmoid": Component(sigmoid, "a sigmoid of log SNR"),
        "likelihood": Component(likelihood, "the bound on the likelihood"),
    },
    given=("process",),
)
