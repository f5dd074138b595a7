"""DPM-Solver++ (Lu et al., 2022b), multistep: solvers of the probability-flow ODE, or its SDE, in log(signal / std).

With lambda = log(signal / std), a step of h = lambda_s - lambda_t from point t to s is (Eq. 8)

    ODE  x_s = std_s / std_t x_t + signal_s int_0^h exp(u - h) x0_hat(lambda_t + u) du,

where earlier predictions, at lambda_t - h_1 and lambda_t - h_1 - h_2, say how x0_hat changes. The SDE's integral has
exp(2 (u - h)), twice; where x0_hat is constant, it makes the step of ancestral sampling with fixed_small.

The order grows from 1 as predictions are remembered, and falls to 1 again at the step to the data, where h is infinite
and x_s = signal_s x0_hat. So any number of steps will do.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Denoise
from diffusion_jax.keys import image_normal
from diffusion_jax.processes.gaussian import per_image, steps
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import Sampler, State

PerStep = Float[np.ndarray, " n"]
# Factors of the last predictions in each step, the newest first; float64 on the host.
Weights = Float[np.ndarray, "n _"]


def dpmpp_2m(grid: Grid) -> Sampler:
    """Returns DPM-Solver++(2M), Algorithm 2 of Lu et al. (2022b): deterministic, of order 2.

    Args:
      grid: Points from noise to data, such as `process.grid(20, "logsnr")`.
    """
    coef_xt, coef_x0 = _ode(grid)
    return _multistep(grid, coef_xt, [_first(coef_x0), _second(grid, coef_x0)])


def dpmpp_2m_sde(grid: Grid) -> Sampler:
    """Returns SDE-DPM-Solver++(2M) of Lu et al. (2022b): fresh noise in each step but the last.

    Args:
      grid: Points from noise to data.
    """
    table = steps(grid)
    weights = [_first(table.coef_x0), _second(grid, table.coef_x0)]
    return _multistep(grid, table.coef_xt, weights, np.sqrt(table.posterior_variance))


def dpmpp_3m(grid: Grid) -> Sampler:
    """Returns DPM-Solver++(3M): deterministic, of order 3, the integral of the parabola through three predictions.

    Much used code takes half of the parabola's curvature, which leaves order 2.

    Args:
      grid: Points from noise to data.
    """
    coef_xt, coef_x0 = _ode(grid)
    weights = [_first(coef_x0), _second(grid, coef_x0), _third(grid, coef_x0)]
    return _multistep(grid, coef_xt, weights)


def _ode(grid: Grid) -> tuple[PerStep, PerStep]:
    """Returns the factors of x_t and, where it is constant, of x0_hat: signal_s (1 - exp(-h))."""
    signal, coef_xt = np.exp(grid.log_signal), grid.std[1:] / grid.std[:-1]
    return coef_xt, signal[1:] - coef_xt * signal[:-1]


def _sizes(grid: Grid, back: int) -> PerStep:
    """Returns h of the step this far before each step; 1 where it is infinite, or there is none."""
    h = np.diff(grid.log_signal[:-1] - np.log(grid.std[:-1]))
    return np.concatenate([np.ones(back), h, np.ones(1)])[: grid.num_steps]


def _first(coef_x0: PerStep) -> Weights:
    return coef_x0[:, None]


def _second(grid: Grid, coef_x0: PerStep) -> Weights:
    """Returns the weights of x0_hat where it is linear in lambda, at the middle of the step."""
    ahead = _sizes(grid, 0) / (2 * _sizes(grid, 1))
    return np.stack([coef_x0 * (1 + ahead), -coef_x0 * ahead], -1)


def _third(grid: Grid, coef_x0: PerStep) -> Weights:
    """Returns the integrals of the parabolas that are 1 at one of three predictions and 0 at the others."""
    h, h1, h2 = (_sizes(grid, back) for back in range(3))
    flat = -np.expm1(-h)  # int_0^h exp(u - h) u^n du for n = 0, 1, 2.
    linear = h - flat
    square = h**2 - 2 * linear
    curved = square + h1 * linear  # Of u (u + h1).
    signal = (coef_x0 / flat)[:, None]
    newest = flat + linear / h1 + curved / (h1 * (h1 + h2))
    middle = -linear / h1 - curved / (h1 * h2)
    return signal * np.stack([newest, middle, curved / (h2 * (h1 + h2))], -1)


def _table(weights: list[Weights]) -> Float[np.ndarray, "order n order"]:
    """Returns the weights of each order in each step; order k is lowered in the last k - 1 steps."""
    order, num_steps = len(weights), len(weights[0])
    table = np.stack([np.pad(w, ((0, 0), (0, order - w.shape[1]))) for w in weights])
    for k in range(1, order):
        early = max(num_steps - k, 0)
        table[k, early:] = table[k - 1, early:]
    return table


def _multistep(
    grid: Grid, coef_xt: PerStep, weights: list[Weights], noise: PerStep | None = None
) -> Sampler:
    """Returns x_s = coef_xt x_t + sum of weights and last predictions + noise z.

    Its memory is the earlier predictions, newest first, and their number: a run that starts at any point begins with
    order 1.
    """
    num_steps, order = grid.num_steps, len(weights)
    table = _table(weights).reshape(order * num_steps, order)

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=((jnp.zeros_like(x),) * (order - 1), jnp.int32(0)))

    def step(denoise: Denoise, state: State, i: Int[Array, " b"], keys: Key[Array, " b"]) -> State:
        past, known = state.memory
        x0_hat = denoise(state.x, grid.at(i)).x0
        predictions = (x0_hat, *past)
        x = per_image(take(coef_xt, i), state.x) * state.x
        for weight, predicted in zip(table.T, predictions, strict=True):
            x += per_image(take(weight, known * num_steps + i), x) * predicted
        if noise is not None:
            x += per_image(take(noise, i), x) * image_normal(keys, x.shape[1:])
        return State(x, x0_hat, (predictions[:-1], jnp.minimum(known + 1, order - 1)))

    return Sampler(grid, step, nfe=num_steps, init=init)
