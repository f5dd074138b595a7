"""The probability-flow ODE with step sizes set by a tolerance (Song et al., 2021, Section 4.3).

Each image has its own step sizes, so it does not depend on others; see `processes/ode.py` and `models/flow.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.flow import follow_flow
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.grid import check_process
from diffusion_jax.processes.ode import Solution, SolverStats
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.samplers.loop import Index, Sampler, State, equal_stats

RTOL = Option(
    kinds.Float(1e-7, 1),
    "relative tolerance of a solver's step; float32 has none below 1e-7",
    traced=True,
)
ATOL = Option(kinds.Float(1e-9, 1), "absolute tolerance, likewise", traced=True)
MAX_STEPS = Option(
    kinds.Int(1, 1_000_000),
    "maximum number of solver steps between two points of the grid, rejected ones included",
)


def ode_adaptive(
    grid: Grid,
    process: Process,
    *,
    rtol: Annotated[float | Float[Array, ""], RTOL] = 1e-5,
    atol: Annotated[float | Float[Array, ""], ATOL] = 1e-5,
    max_steps: Annotated[int, MAX_STEPS] = 1000,
) -> Sampler:
    """Returns the adaptive solution of the probability-flow ODE, between one point of the grid and the next.

    The last step, to the data, is x0_hat. A grid of two steps suffices for samples, `make_grid(process, 2)`; more
    give more frames, and points to edit at. `SampleResult.stats` has the cost of each image. An image whose solution
    between two points takes more than max_steps is NaN from there on.

    Args:
      grid: Points from noise to data.
      process: The process of the grid.
      rtol: Relative tolerance of a solver's step, positive; float32 has none below 1e-7. May be traced.
      atol: Absolute tolerance likewise, of x_t over (signal^2 + std^2)^(1/2).
      max_steps: Maximum number of solver steps between two points, rejected ones included; six evaluations each.
    """
    check_process(process)
    tolerances = {"rtol": rtol, "atol": atol, "max_steps": max_steps}

    def init(x: Float[Array, " b *dims"]) -> State:
        stats = equal_stats(x, 0, float(grid.time[0]))
        return State(x, x, stats._replace(finished=jnp.isfinite(x.reshape(x.shape[0], -1)[:, 0])))

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Array) -> State:
        del keys
        x0_hat, before = denoise(state.x, grid.at(i)).x0, state.memory
        # Unfinished images cost nothing more and do not advance.
        reached = jnp.where(before.finished, grid.at(i + 1).time, before.reached)
        evaluations = before.evaluations + before.finished
        memory = before._replace(evaluations=evaluations, reached=reached)
        return state._replace(x0_hat=x0_hat, memory=memory)

    def refine(denoise: Denoise, state: State, i: Int[Array, ""], keys: Array) -> State:
        del keys
        before, ends = state.memory, (grid.at(jnp.full(state.x.shape[:1], k)) for k in (i, i + 1))
        there = follow_flow(denoise, process, state.x, *ends, **tolerances)
        going, stats = before.finished, there.stats
        memory = SolverStats(
            evaluations=before.evaluations + jnp.where(going, stats.evaluations, 0),
            finished=going & stats.finished,
            reached=jnp.where(going, stats.reached, before.reached),
        )
        return State(there.y, state.x0_hat, memory)

    return Sampler(grid, step, init, refine, lambda start, stop: None, _remembered_stats)


def _remembered_stats(sampler: Sampler, state: State, start: Index, stop: Index) -> SolverStats:
    return state.memory


def ode_encode(
    denoise: Denoise,
    grid: Grid,
    process: Process,
    x0: Float[Array, " b *dims"],
    *,
    rtol: Annotated[float | Float[Array, ""], RTOL] = 1e-5,
    atol: Annotated[float | Float[Array, ""], ATOL] = 1e-5,
    max_steps: Annotated[int, MAX_STEPS] = 1000,
) -> Solution:
    """Returns the x_T that the flow maps to x0, as `ode_decode` does; call inside `jit`.

    x0 is taken to lie at the grid's last point before the data, without added noise, so both are exact up to the
    tolerances, and no denoising step loses anything. NaN where max_steps was exhausted.

    Args:
      denoise: (x_t, point) -> Prediction; without clipping, whose kinks are hard to solve.
      grid: Points from noise to data; only the first and the last but one matter.
      process: The process of the grid.
      x0: Clean images.
      rtol: See `ode_adaptive`.
      atol: See `ode_adaptive`.
      max_steps: See `ode_adaptive`.
    """
    ends = (grid.at(jnp.full(x0.shape[:1], i)) for i in (grid.num_steps - 1, 0))
    return follow_flow(denoise, process, x0, *ends, rtol=rtol, atol=atol, max_steps=max_steps)


def ode_decode(
    denoise: Denoise,
    grid: Grid,
    process: Process,
    x_init: Float[Array, " b *dims"],
    *,
    rtol: Annotated[float | Float[Array, ""], RTOL] = 1e-5,
    atol: Annotated[float | Float[Array, ""], ATOL] = 1e-5,
    max_steps: Annotated[int, MAX_STEPS] = 1000,
) -> Solution:
    """Returns the images that the flow maps x_T to, without a denoising step: the inverse of `ode_encode`.

    A scaled x_T gives images of another temperature.

    Args:
      denoise: (x_t, point) -> Prediction.
      grid: Points from noise to data; only the first and the last but one matter.
      process: The process of the grid.
      x_init: x_T.
      rtol: See `ode_adaptive`.
      atol: See `ode_adaptive`.
      max_steps: See `ode_adaptive`.
    """
    ends = (grid.at(jnp.full(x_init.shape[:1], i)) for i in (0, grid.num_steps - 1))
    return follow_flow(denoise, process, x_init, *ends, rtol=rtol, atol=atol, max_steps=max_steps)


def more_steps(options: Mapping[str, Any]) -> str:
    """Returns the limits at which a solution was not finished, and what to change."""
    return (
        f"after sampler.max_steps={options['max_steps']} steps with sampler.rtol={options['rtol']:g} and sampler.atol="
        f"{options['atol']:g}; allow more steps, or larger tolerances"
    )
