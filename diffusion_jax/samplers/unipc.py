"""UniPC (Zhao et al., 2023): a multistep predictor, and a corrector that costs no evaluation of the network.

With lambda = log(signal / std), the predictor UniP-p goes from point t to s, h further, by extrapolation of the last p
predictions of x_0. At x_s the network is evaluated, and UniC-p takes the same step again with the curve through that
prediction and the p before it. Its x_s is where the next step begins; the network is not evaluated there again. In the
paper's form for predictions of x_0, with m = x0_hat at s and m_0, m_1, ... before it,

    x_s = std_s / std_t x_t - signal_s (expm1(-h) m_0 + B(h) sum_k rho_k (m_k - m_0) / r_k),

where r_k h is how far m_k lies from m_0, the sum has k = 1, ..., p - 1 in UniP-p and m too in UniC-p (r = 1), and
rho integrates polynomials exactly. So B(h) cancels, unless the sum has one term: there the paper sets rho = 1/2, and
B matters. Here it is B_2(h), expm1(-h). UniP-1, 2 and 3 are then DPM-Solver++ of these orders.

Both results have the same factor of x_t. So a correction adds a sum of predictions to x_s, which the next step scales
by its own factor: together they are one multistep step, with other weights.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Int
from diffusion_jax.processes.process import Grid
from diffusion_jax.samplers.dpm_solver import extrapolations
from diffusion_jax.samplers.loop import Sampler
from diffusion_jax.samplers.multistep import (
    PerStep,
    Weights,
    interpolated,
    lower_orders,
    multistep,
    ode,
    sizes,
)

ORDERS = (1, 2, 3)


def unipc(
    grid: Grid,
    *,
    order: Annotated[
        int, Option(Int(1, 3), "order of its predictor; 3, or 2 where guidance is strong")
    ] = 3,
) -> Sampler:
    """Returns UniPC-p: deterministic, UniP-p with UniC-p, of order p + 1 with one evaluation per step.

    p grows from 1 as predictions are remembered, and falls to 1 again at the step to the data, which ends at x0_hat.
    A run that stops early ends at the predictor's result, and one that starts there has no memory.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 10, "logsnr")`.
      order: p in {1, 2, 3}; its authors advise 3, and 2 for guided sampling.

    Raises:
      InputError: Another order.
    """
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; it must be 1, 2 or 3")
    coef_xt, coef_x0 = ode(grid)
    predictors = extrapolations(grid, coef_x0)[:order]
    correctors = _interpolations(grid, coef_x0)[:order]
    predict = lower_orders(predictors)
    correct = lower_orders(
        [c - np.pad(p, ((0, 0), (1, 0))) for c, p in zip(correctors, predictors, strict=True)]
    )
    table = np.zeros((order + 1, grid.num_steps, order + 1))
    table[:, :, :order] = np.concatenate([predict, predict[-1:]])
    # The previous step is corrected at the start of this one: row k remembers its k predictions.
    table[1:, 1:] += coef_xt[1:, None] * correct[:, :-1]
    return multistep(grid, coef_xt, table)


def _interpolations(grid: Grid, coef_x0: PerStep) -> list[Weights]:
    """Returns the weights of UniC-1, 2 and 3: of the prediction at the step's end, then of those before."""
    h, h1, h2 = (sizes(grid, back) for back in range(3))
    nodes = [h / h, 0 * h, -h1 / h, -(h1 + h2) / h]
    halves = np.stack([coef_x0 / 2, coef_x0 / 2], -1)
    return [halves, *(interpolated(grid, coef_x0, nodes[: p + 1]) for p in (2, 3))]
