"""The probability-flow ODE of every Gaussian process, in one variable (Song et al., 2021, Eq. 13; Karras et al., 2022).

With s = log(std / signal), phi = atan(std / signal), r^2 = signal^2 + std^2 and z = x_t / r, which is
cos(phi) x_0 + sin(phi) eps, the ODE d(x_t / signal) / d(std / signal) = eps_hat becomes

    dz/dphi = cos(phi) eps_hat - sin(phi) x0_hat = v_hat            dz/ds = v_hat / (e^s + e^-s),

as dphi/ds = sin(phi) cos(phi). So the field needs no time derivatives of a process, is smooth where the process's own
time has kinks, and is bounded: z stays of the size of the data or the noise.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.ode import Field, Solution, solve
from diffusion_jax.processes.process import Point, Process


def level(point: Point) -> Float[Array, " b"]:
    """Returns s = log(std / signal), the time of the flow."""
    return -point.logsnr / 2


def field_of(denoise: Denoise, process: Process) -> Field:
    """Returns (z, s) -> dz/ds of a denoiser of the process.

    Args:
      denoise: (x_t, point) -> Prediction.
      process: The process that the denoiser was trained on; it maps s to time.
    """

    def field(z: Float[Array, " b *dims"], s: Float[Array, " b"]) -> Float[Array, " b *dims"]:
        point = process.at(process.times_of(-2 * s))
        v = denoise(per_image(point.scale, z) * z, point).v
        return per_image(1 / (2 * jnp.cosh(s)), z) * v

    return field


def follow_flow(
    denoise: Denoise,
    process: Process,
    x: Float[Array, " b *dims"],
    start: Point,
    stop: Point,
    **tolerances: Any,
) -> Solution:
    """Returns x at another point of the flow; NaN where the solver did not reach it.

    The time reached is in the process's own unit.

    Args:
      denoise: (x_t, point) -> Prediction.
      process: The process that the denoiser was trained on.
      x: Images at `start`.
      start: Point of these images; not the data itself.
      stop: Point to solve to, nearer the noise or the data, but not the data itself.
      **tolerances: rtol, atol and max_steps of `processes.ode.solve`.
    """
    z, field = x / per_image(start.scale, x), field_of(denoise, process)
    solution = solve(field, z, level(start), level(stop), **tolerances)
    there, stats = per_image(stop.scale, x) * solution.y, solution.stats
    reached = jnp.where(stats.finished, stop.time, process.times_of(-2 * stats.reached))
    return Solution(
        jnp.where(per_image(stats.finished, x), there, jnp.nan), stats._replace(reached=reached)
    )
