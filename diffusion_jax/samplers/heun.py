"""Heun's method with churn (Karras et al., 2022, Algorithm 2), in the noise level sigma = std / signal.

With xbar = x / signal = x_0 + sigma eps the probability-flow ODE is d xbar / d sigma = eps_hat(x, t) (Eq. 1, with
(xbar - x0_hat) / sigma = eps_hat), so the method applies to a network trained on any process. A step
from sigma_t to sigma_s first raises the noise to sigma_hat = (1 + gamma) sigma_t, and there takes

    Euler  xbar_s = xbar_hat + (sigma_s - sigma_hat) eps_hat             x_s = signal_s x0_hat + std_s eps_hat
    Heun   xbar_s += (sigma_s - sigma_hat) (eps_hat' - eps_hat) / 2

with eps_hat' at Euler's x_s. At the data there is no eps_hat': the last step is Euler's, which ends at x0_hat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.grid import process_of
from diffusion_jax.processes.process import Grid, Points, Process, take
from diffusion_jax.samplers.loop import Sampler, State, refined_cost

LONG_STEP = 30  # Factor of sigma in a step; longer steps draw poor digits, or noise.
MOST_CHURN = np.sqrt(2) - 1  # Largest gamma: a step at most doubles the variance of the noise.

CHURN = Option(kinds.Float(0), "total fresh noise of all steps; 0: none", off=0.0)
CHURN_MIN = Option(
    kinds.Float(0), "smallest std / signal at which noise is added", needs=("churn",)
)
CHURN_MAX = Option(
    kinds.Float(0), "largest std / signal at which noise is added; unset: any", needs=("churn",)
)
CHURN_NOISE = Option(
    kinds.Float(0), "standard deviation of that noise, relative to the exact one", needs=("churn",)
)


def heun(
    grid: Grid,
    process: Process,
    *,
    churn: Annotated[float, CHURN] = 0.0,
    churn_min: Annotated[float, CHURN_MIN] = 0.0,
    churn_max: Annotated[float | None, CHURN_MAX] = None,
    churn_noise: Annotated[float, CHURN_NOISE] = 1.0,
) -> Sampler:
    """Returns Heun's method, of order 2 in 2 N - 1 evaluations; deterministic without churn.

    gamma = min(churn / N, sqrt(2) - 1) where sigma_t lies in [churn_min, churn_max], else 0. The network is given the
    time at which the process has sigma_hat; the largest sigma_hat is the process's at its last time, so a step that
    begins there gets no fresh noise. Steps are long where sigma falls by a large factor: use the spacing karras, as
    the paper does.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 18, "karras")`.
      process: The process of the grid.
      churn: S_churn, the total fresh noise of all steps, 0 or more; 0: none is drawn.
      churn_min: S_min, the smallest sigma that gets fresh noise, 0 or more.
      churn_max: S_max, the largest, at least churn_min; None: no limit.
      churn_noise: S_noise, standard deviation of the fresh noise relative to the exact one, 0 or more.

    Raises:
      InputError: An option out of its range.

    Example:
      >>> process = dj.VP()
      >>> dj.samplers.heun(dj.make_grid(process, 18, "karras"), process).nfe  # Two a step, but for the last.
      35
    """
    largest = np.inf if churn_max is None else churn_max
    _check(churn, churn_min, largest, churn_noise)
    num_steps = grid.num_steps
    hats, fresh = _churned(grid, process, min(churn / num_steps, MOST_CHURN), churn_min, largest)
    ratio = np.exp(hats.log_signal - grid.log_signal[:-1])
    added, signal = churn_noise * fresh, np.exp(grid.log_signal[1:])
    # signal_s (sigma_s - sigma_hat) / 2.
    half = (grid.std[1:] - np.exp(grid.log_signal[1:] - hats.log_signal) * hats.std) / 2

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=jnp.zeros_like(x))  # eps_hat where the step began.

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        x = state.x
        if fresh.any():
            x = take(ratio, i) * x + take(added, i) * image_normal(keys, x.shape[1:])
        first = denoise(x, hats.at(i))
        euler = take(signal, i) * first.x0 + take(grid.std[1:], i) * first.eps
        return State(euler, first.x0, first.eps)

    def refine(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        del keys
        second = denoise(state.x, grid.at(i + 1))
        return state._replace(x=state.x + take(half, i) * (second.eps - state.memory))

    return Sampler(grid, step, init, refine, refined_cost(grid, 1))


def _churned(
    grid: Grid, process: Process, gamma: float, smallest: float, largest: float
) -> tuple[Points, Float[np.ndarray, " n"]]:
    """Returns the points with raised noise where the steps begin, and the standard deviation of the added noise."""
    process, log_sigma = process_of(grid, process), -grid.logsnr[:-1] / 2
    low, high = np.log(np.maximum([smallest, largest], np.finfo(float).tiny))
    churns = (low <= log_sigma) & (log_sigma <= high) & (gamma > 0)
    raised = process.times_of(-2 * (log_sigma + np.log1p(gamma)))
    hats = process.at(np.where(churns, np.maximum(raised, grid.time[:-1]), grid.time[:-1]))
    carried = np.exp(hats.log_signal - grid.log_signal[:-1]) * grid.std[:-1]
    variance = np.square(hats.std) - np.square(carried)
    return hats, np.sqrt(np.where(churns, np.maximum(variance, 0), 0.0))


def _check(churn: float, smallest: float, largest: float, noise: float) -> None:
    for name, value in (("churn", churn), ("churn_min", smallest), ("churn_noise", noise)):
        if not 0 <= value < np.inf:
            raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0")
    if not smallest <= largest:
        raise InputError(f"churn_max is {largest!r}; it must be at least churn_min, {smallest!r}")


def empty_range(options: Mapping[str, Any]) -> str | None:
    """Returns a message if no noise level lies in the range of `churn_min` and `churn_max`, or None."""
    low, high = options["churn_min"], options["churn_max"]
    if high is None or low <= high:
        return None
    return f"sampler.churn_max is {high!r}; it must be at least sampler.churn_min, {low!r}"


def long_steps(grid: Grid) -> str | None:
    """Returns a warning if sigma falls by too large a factor in a step of the grid, or None."""
    if grid.num_steps < 2:
        return None
    most = np.exp(np.diff(grid.logsnr[:-1]) / 2).max()
    if most <= LONG_STEP:
        return None
    return f"heun: std / signal falls by a factor of {most:,.0f} in a step; use more steps, with sampler.spacing=karras"
