"""The basis of multistep solvers: steps that combine x_t and the last predictions of x_0 linearly.

With lambda = log(signal / std), a step of h = lambda_s - lambda_t of the probability-flow ODE from point t to s is (Lu
et al., 2022b, Eq. 8)

    x_s = std_s / std_t x_t + signal_s int_0^h exp(u - h) x0_hat(lambda_t + u) du.

A solver replaces x0_hat by the polynomial through some predictions, so the table of their weights defines it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import expect
from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import Sampler, State

PerStep = Float[np.ndarray, " n"]
# Factors of the last predictions in each step, the newest first; float64 on the host.
Weights = Float[np.ndarray, "n _"]


def ode(grid: Grid) -> tuple[PerStep, PerStep]:
    """Returns the factors of x_t and, where it is constant, of x0_hat: signal_s (1 - exp(-h))."""
    expect("grid", grid, Grid, "a Grid, such as make_grid(process, 50)")
    signal, coef_xt = np.exp(grid.log_signal), grid.std[1:] / grid.std[:-1]
    return coef_xt, signal[1:] - coef_xt * signal[:-1]


def sizes(grid: Grid, back: int) -> PerStep:
    """Returns h of the step this many steps earlier; 1 where it is infinite, or there is none."""
    h = np.diff(grid.logsnr[:-1]) / 2
    return np.concatenate([np.ones(back), h, np.ones(1)])[: grid.num_steps]


def first(coef_x0: PerStep) -> Weights:
    """Returns the weight of a constant x0_hat."""
    return coef_x0[:, None]


def second(grid: Grid, coef_x0: PerStep) -> Weights:
    """Returns the weights of x0_hat if it is linear in lambda, at the middle of the step."""
    ahead = sizes(grid, 0) / (2 * sizes(grid, 1))
    return np.stack([coef_x0 * (1 + ahead), -coef_x0 * ahead], -1)


def interpolated(grid: Grid, coef_x0: PerStep, nodes: Sequence[PerStep]) -> Weights:
    """Returns the integrals of the polynomials that are 1 at one of the nodes and 0 at the others.

    Args:
      grid: Points from noise to data.
      coef_x0: The integral of 1, as from `ode`.
      nodes: Positions of the predictions in each step: u in units of its h, from 0 at its start.
    """
    h = sizes(grid, 0)
    # int_0^h exp(u - h) (u / h)^n du for n = 0, 1, ..., by parts.
    moments = [-np.expm1(-h)]
    for n in range(1, len(nodes)):
        moments.append(1 - n / h * moments[-1])
    powers = np.stack(nodes, -1)[:, None, :] ** np.arange(len(nodes))[:, None]
    weights = np.linalg.solve(powers, np.stack(moments, -1)[:, :, None])[:, :, 0]
    return (coef_x0 / moments[0])[:, None] * weights


def lower_orders(weights: Sequence[Weights]) -> Float[np.ndarray, "order n _"]:
    """Returns the weights of the orders 1, 2, ... in each step; order k is lowered in the last k - 1 steps."""
    num_steps, widest = len(weights[0]), weights[-1].shape[1]
    table = np.stack([np.pad(w, ((0, 0), (0, widest - w.shape[1]))) for w in weights])
    for k in range(1, len(weights)):
        early = max(num_steps - k, 0)
        table[k, early:] = table[k - 1, early:]
    return table


def multistep(
    grid: Grid,
    coef_xt: PerStep,
    table: Float[np.ndarray, "known n known"],
    noise: PerStep | None = None,
) -> Sampler:
    """Returns x_s = coef_xt x_t + sum of weights and last predictions + noise z.

    Its memory is the earlier predictions, newest first, and their number; every run starts with none.

    Args:
      grid: Points from noise to data.
      coef_xt: Factor of x_t in each step.
      table: Weights of the predictions, the newest first: row k for a step that remembers k earlier ones.
      noise: Standard deviation of the noise of each step; None: none is drawn.
    """
    num_steps, most = grid.num_steps, len(table) - 1
    weights = table.reshape(-1, most + 1).T

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=((jnp.zeros_like(x),) * most, jnp.int32(0)))

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        past, known = state.memory
        x0_hat = denoise(state.x, grid.at(i)).x0
        predictions = (x0_hat, *past)
        x = take(coef_xt, i) * state.x
        for weight, predicted in zip(weights, predictions, strict=True):
            x += take(weight, known * num_steps + i) * predicted
        if noise is not None:
            x += take(noise, i) * image_normal(keys, x.shape[1:])
        return State(x, x0_hat, (predictions[:-1], jnp.minimum(known + 1, most)))

    return Sampler(grid, step, init)
