"""Weightings: how much the error at each noise level counts. Each multiplies the eps-MSE, whatever is predicted.

With SNR = signal^2 / std^2, the x0-MSE is the eps-MSE divided by SNR. So the weights that papers give the
x0-MSE are theirs here times 1 / SNR, and an objective that is defined by one prediction can be trained with any.
"""

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
    """Returns 1 / (k + SNR)^gamma, which passes over what the eye hardly sees, Choi et al. (2022).

    Args:
      k: Limits the weight of pure noise to k^-gamma; positive.
      gamma: How steeply the weight falls; 0 makes it 1.
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

    Large images, whose pixels repeat one another, want a smaller bias (Hoogeboom et al., 2024). The papers
    integrate over log SNR; here the weight applies at the times that the process trains at, so how
    densely they cover log SNR counts too.

    Args:
      bias: The log SNR at which the weight is one half.
    """
    return lambda point: jax.nn.sigmoid(bias - 2 * jnp.log(point.signal / point.std))


def likelihood(process: Process) -> Weighting:
    """Returns g^2 / (2 std^2) by u, with which the loss bounds the negative log-likelihood (Song et al., 2021b).

    The loss is then that bound in nats per dimension, but for a constant. As g^2 / std^2 = -d logsnr / du, it is the
    largest near the data; draw times by the same (`TIME_SAMPLERS["likelihood"]`), or few of them decide all.

    Args:
      process: The process that the points are of.
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
