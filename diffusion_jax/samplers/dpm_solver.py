"""DPM-Solver++ (Lu et al., 2022b), multistep: solvers of the probability-flow ODE, or its SDE, in log(signal / std).

A step extrapolates the last predictions of x_0, see `multistep.py`. The SDE's integral has exp(2 (u - h)), twice; where
x0_hat is constant, it makes the step of ancestral sampling with fixed_small.

The order grows from 1 as predictions are remembered, and falls to 1 again at the step to the data, where h is infinite
and x_s = signal_s x0_hat. So any number of steps works.
"""

from __future__ import annotations

import numpy as np

from diffusion_jax.processes.gaussian import steps
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers.loop import Sampler
from diffusion_jax.samplers.multistep import (
    PerStep,
    Weights,
    first,
    interpolated,
    lower_orders,
    multistep,
    ode,
    second,
    sizes,
)


def dpmpp_2m(grid: Grid) -> Sampler:
    """Returns DPM-Solver++(2M), Algorithm 2 of Lu et al. (2022b): deterministic, of order 2.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 20, "logsnr")`.
    """
    coef_xt, coef_x0 = ode(grid)
    return multistep(grid, coef_xt, lower_orders(extrapolations(grid, coef_x0)[:2]))


def dpmpp_2m_sde(grid: Grid) -> Sampler:
    """Returns SDE-DPM-Solver++(2M) of Lu et al. (2022b): fresh noise in each step but the last.

    Args:
      grid: Points from noise to data.
    """
    table = steps(grid)
    weights = lower_orders([first(table.coef_x0), second(grid, table.coef_x0)])
    return multistep(grid, table.coef_xt, weights, np.sqrt(table.posterior_variance))


def dpmpp_3m(grid: Grid) -> Sampler:
    """Returns DPM-Solver++(3M): deterministic, of order 3, the integral of the parabola through three predictions.

    Widely used code takes half of the parabola's curvature, which reduces the order to 2.

    Args:
      grid: Points from noise to data.
    """
    coef_xt, coef_x0 = ode(grid)
    return multistep(grid, coef_xt, lower_orders(extrapolations(grid, coef_x0)))


def extrapolations(grid: Grid, coef_x0: PerStep) -> list[Weights]:
    """Returns the weights of the last predictions in a step of order 1, 2 and 3 of the ODE."""
    h, h1, h2 = (sizes(grid, back) for back in range(3))
    nodes = [0 * h, -h1 / h, -(h1 + h2) / h]
    return [first(coef_x0), second(grid, coef_x0), interpolated(grid, coef_x0, nodes)]
