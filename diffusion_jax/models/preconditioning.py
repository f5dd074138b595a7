"""Preconditionings, the inputs and outputs of a network: eps, x0, v, score, mean, velocity, and EDM's.

All are linear in x_0 and eps with coefficients of the point alone, so each exact target determines x_0 and eps,
and its error is the error of eps times a factor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.models.inputs import Inputs, unit_inputs
from diffusion_jax.options import Component, Option, Registry, kinds
from diffusion_jax.processes import gaussian
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Point, Process


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """The wrapping of a network (Karras et al., 2022, Section 5): inputs, target, and meaning of the output.

    Attributes:
      target: (point, x_t, x0, eps) -> target of the network.
      predict: (point, x_t, output) -> (x0, eps).
      eps_error: point -> factor between errors: eps_hat - eps = factor * (output - target).
      inputs: (point, x_t) -> scaled x_t and time that the network is given.
    """

    target: Callable[[Point, Array, Array, Array], Array]
    predict: Callable[[Point, Array, Array], tuple[Array, Array]]
    eps_error: Callable[[Point], Array]
    inputs: Callable[[Point, Array], Inputs] = unit_inputs


def eps() -> Preconditioning:
    """The network returns the noise (Ho et al., 2020)."""
    return Preconditioning(
        target=lambda point, x_t, x0, eps: eps,
        predict=lambda point, x_t, eps: (gaussian.x0_from_eps(point, x_t, eps), eps),
        eps_error=lambda point: jnp.ones_like(point.signal),
    )


def score() -> Preconditioning:
    """The network returns std times the score, -eps: its output is divided by the noise level (Song & Ermon, 2020)."""
    return Preconditioning(
        target=lambda point, x_t, x0, eps: -eps,
        predict=lambda point, x_t, output: (gaussian.x0_from_eps(point, x_t, -output), -output),
        eps_error=lambda point: -jnp.ones_like(point.signal),
    )


def x0() -> Preconditioning:
    """The network returns the clean image."""
    return Preconditioning(
        target=lambda point, x_t, x0, eps: x0,
        predict=lambda point, x_t, x0: (x0, gaussian.eps_from_x0(point, x_t, x0)),
        eps_error=lambda point: -point.signal / point.std,
    )


def v() -> Preconditioning:
    """The network returns v = (signal eps - std x_0) / r (Salimans & Ho, 2022)."""
    return Preconditioning(
        target=lambda point, x_t, x0, eps: gaussian.v_from_x0_eps(point, x0, eps),
        predict=lambda point, x_t, v: (
            gaussian.x0_from_v(point, x_t, v),
            gaussian.eps_from_v(point, x_t, v),
        ),
        eps_error=lambda point: point.signal / point.scale,
    )


def velocity() -> Preconditioning:
    """The network returns eps - x_0 (Lipman et al., 2023; Liu et al., 2023).

    It is dx_t / dt of the straight line x_t = (1 - t) x_0 + t eps. Solving x_t = signal x_0 + std eps with it gives
    x_0 = (x_t - std velocity) / (signal + std) and eps = x_0 + velocity, for every process.
    """

    def parts(point: Point, x: Array) -> tuple[Array, Array, Array]:
        total = point.signal + point.std
        return (
            per_image(1 / total, x),
            per_image(point.signal / total, x),
            per_image(point.std / total, x),
        )

    def predict(point: Point, x_t: Array, velocity: Array) -> tuple[Array, Array]:
        scale, signal, std = parts(point, x_t)
        return scale * x_t - std * velocity, scale * x_t + signal * velocity

    return Preconditioning(
        target=lambda point, x_t, x0, eps: eps - x0,
        predict=predict,
        eps_error=lambda point: point.signal / (point.signal + point.std),
    )


def edm(
    *,
    sigma_data: Annotated[
        float, Option(kinds.Float(1e-3, 1e3), "standard deviation of the data's pixels")
    ] = 0.5,
) -> Preconditioning:
    """The network F of Karras et al. (2022), Eq. 7 and Table 1: D = c_skip y + c_out F(c_in y; c_noise).

    y = x_t / signal = x_0 + sigma n, and with d = sigma_data

        c_skip = d^2 / (sigma^2 + d^2)              c_out = sigma d / sqrt(sigma^2 + d^2)
        c_in = 1 / sqrt(sigma^2 + d^2)              c_noise = log(sigma) / 4.

    In signal and std, with q^2 = d^2 signal^2 + std^2, these are c_in y = x_t / q, c_skip y = d^2 signal x_t / q^2 and
    c_out = std d / q, so that nothing is divided by the signal. Inputs and target, (std x_0 - d^2 signal eps) / (q d),
    have variance 1 for white data of standard deviation d; the squared error of F is the paper's weighted error of D.

    Args:
      sigma_data: Standard deviation of the data.
    """

    def size(point: Point) -> Float[Array, " b"]:
        return jnp.hypot(sigma_data * point.signal, point.std)

    def target(point: Point, x_t: Array, x0: Array, eps: Array) -> Array:
        q = size(point)
        return per_image(point.std / (sigma_data * q), x_t) * x0 - (
            per_image(sigma_data * point.signal / q, x_t) * eps
        )

    def predict(point: Point, x_t: Array, output: Array) -> tuple[Array, Array]:
        q = size(point)
        skip, out = sigma_data**2 * point.signal / q**2, sigma_data * point.std / q
        x0 = per_image(skip, x_t) * x_t + per_image(out, x_t) * output
        eps = per_image(point.std / q**2, x_t) * x_t - (
            per_image(sigma_data * point.signal / q, x_t) * output
        )
        return x0, eps

    return Preconditioning(
        target,
        predict,
        eps_error=lambda point: -sigma_data * point.signal / size(point),
        inputs=lambda point, x_t: Inputs(
            x_t / per_image(size(point), x_t), jnp.log(point.sigma) / 4
        ),
    )


def mean(process: Process) -> Preconditioning:
    """The network returns mu_tilde, the mean of q(x_s | x_t, x_0), where s is the step before t on the whole grid.

    Its coefficients (Ho et al., 2020, Eq. 7) depend on the time, not on the steps of a sampler; between two times
    of the grid they are interpolated.

    Args:
      process: The process, for its whole grid.
    """
    grid = make_grid(process)
    table = gaussian.steps(grid)
    times = grid.time[-2::-1].astype(np.float32)  # Ascending, without the data.

    def interpolated(point: Point, values: Float[np.ndarray, " n"]) -> Array:
        return jnp.interp(point.time, times, values[::-1].astype(np.float32))

    def coefficients(point: Point, x: Array) -> list[Array]:
        return [
            per_image(interpolated(point, values), x) for values in (table.coef_x0, table.coef_xt)
        ]

    def target(point: Point, x_t: Array, x0: Array, eps: Array) -> Array:
        del eps
        coef_x0, coef_xt = coefficients(point, x_t)
        return coef_x0 * x0 + coef_xt * x_t

    def predict(point: Point, x_t: Array, mean: Array) -> tuple[Array, Array]:
        coef_x0, coef_xt = coefficients(point, x_t)
        x0 = (mean - coef_xt * x_t) / coef_x0
        return x0, gaussian.eps_from_x0(point, x_t, x0)

    def eps_error(point: Point) -> Array:
        return -point.signal / point.std / interpolated(point, table.coef_x0)

    return Preconditioning(target, predict, eps_error)


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionKind(Component[Preconditioning]):
    """What a network predicts; `make` maps its options to a `Preconditioning`.

    Attributes:
      noise_alone: Whether it is the noise up to a factor, which says nothing of x_0 where the signal is 0.
      own_inputs: Whether it determines the network's inputs too; otherwise they are chosen from `INPUTS`.
    """

    noise_alone: bool = False
    own_inputs: bool = False


PREDICTIONS: Registry[PredictionKind] = Registry(
    "prediction",
    {
        "eps": PredictionKind(eps, "the noise", noise_alone=True),
        "x0": PredictionKind(x0, "the clean image"),
        "v": PredictionKind(v, "the v of Salimans & Ho (2022)"),
        "mean": PredictionKind(mean, "the posterior mean, mu_tilde"),
        "score": PredictionKind(score, "std times the score", noise_alone=True),
        "velocity": PredictionKind(velocity, "eps - x0, of flow matching"),
        "edm": PredictionKind(
            edm, "the unit-variance target of Karras et al. (2022)", own_inputs=True
        ),
    },
    given=("process",),
)
