"""Heun's rule for the probability-flow ODE of any process (Song et al., 2021), in the angle between data and noise.

With phi = atan(std / signal), r^2 = signal^2 + std^2 and z = x_t / r, x_t / r = cos(phi) x_0 + sin(phi) eps, and the
ODE dx = (drift x - diffusion^2 score / 2) dt of every process is

    dz / dphi = v_hat(x_t, t)

(Salimans & Ho, 2022, Appendix D): it needs neither rates nor a scale that grows without bound, as std / signal does
where the signal vanishes. The angle runs from pi / 2 in noise to 0 at the data. A step from phi_t
to phi_s is the trapezoidal rule,

    z' = z + (phi_s - phi_t) v_hat(z)           z_s = z + (phi_s - phi_t) (v_hat(z) + v_hat(z')) / 2.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import Sampler, State, refined_cost


def ode_heun(grid: Grid) -> Sampler:
    """Returns Heun's rule in the angle: deterministic, of order 2 in 2 N - 1 evaluations, for every process.

    The step to the data is one evaluation: it ends at x0_hat = cos(phi) z - sin(phi) v_hat.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 18, "karras")`.
    """
    signal = np.exp(grid.log_signal)
    r = np.hypot(signal, grid.std)
    # phi_s - phi_t from its own sine and cosine: angles in noise differ by far less than pi / 2, their size.
    across = signal[:-1] * grid.std[1:] - signal[1:] * grid.std[:-1]
    along = signal[:-1] * signal[1:] + grid.std[:-1] * grid.std[1:]
    turn, ratio = r[1:] * np.arctan2(across, along), r[1:] / r[:-1]

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=jnp.zeros_like(x))  # v_hat at the start of the step.

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        del keys
        first = denoise(state.x, grid.at(i))
        euler = take(ratio, i) * state.x + take(turn, i) * first.v
        return State(euler, first.x0, first.v)

    def refine(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        del keys
        second = denoise(state.x, grid.at(i + 1))
        return state._replace(x=state.x + take(turn, i) / 2 * (second.v - state.memory))

    return Sampler(grid, step, init, refine, refined_cost(grid, 1))
