"""One-step rules for the reverse-time SDE of any process (Song et al., 2021, Appendix D and E).

The reverse of dx = drift x dt + diffusion dw over Dt > 0 in the process's own time is

    x_s = x_t - (drift x_t - diffusion^2 score) Dt + diffusion Dt^(1/2) z                (Euler and Maruyama)

and that of x_t = signal_{t|s} x_s + var_{t|s}^(1/2) z, from s to t, is

    x_s = (2 - signal_{t|s}) x_t + var_{t|s} score + var_{t|s}^(1/2) z                   (reverse diffusion)

which uses signal and variance of the whole step instead of the rates at its start; both agree to first order.
`ancestral` is the third of the paper's rules.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.gaussian import steps
from diffusion_jax.processes.grid import process_of
from diffusion_jax.processes.process import Grid, Process, take
from diffusion_jax.samplers.ancestral import ancestral
from diffusion_jax.samplers.loop import Sampler, State


def euler_maruyama(grid: Grid, process: Process) -> Sampler:
    """Returns the Euler-Maruyama rule for the reverse-time SDE, with the rates at the start of each step.

    Its order is 1, strong and weak: the noise is additive. The step to the data ends at x0_hat, without noise.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 1000)`.
      process: The process of the grid.
    """
    drift, diffusion2 = map(np.asarray, process_of(grid, process).rates(grid.time[:-1]))
    length = -np.diff(grid.time)
    return _reverse(grid, 1 - drift * length, diffusion2 * length)


def reverse_diffusion(grid: Grid) -> Sampler:
    """Returns the rule that reverses the forward step between neighbors; of order 1.

    The step to the data ends at x0_hat, without noise.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 1000)`.
    """
    table = steps(grid)
    return _reverse(grid, 2 - table.signal, table.variance)


def _reverse(
    grid: Grid, coef_x: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"]
) -> Sampler:
    """Returns the rule x_s = coef_x x_t + variance score + variance^(1/2) z."""

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        x = state.x
        scale, drift, std = (take(table, i) for table in (coef_x, variance, np.sqrt(variance)))
        prediction = denoise(x, grid.at(i))
        moved = scale * x + drift * prediction.score + std * image_normal(keys, x.shape[1:])
        return State(moved, prediction.x0)

    return Sampler(grid, step)


# (grid, process) -> a sampler with one evaluation per step
PREDICTORS: dict[str, Callable[[Grid, Process], Sampler]] = {
    "ancestral": lambda grid, process: ancestral(grid, variance="fixed_small"),
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": lambda grid, process: reverse_diffusion(grid),
}
