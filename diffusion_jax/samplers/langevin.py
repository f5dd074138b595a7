"""Annealed Langevin dynamics (Song & Ermon, 2019, Algorithm 1; 2020), for processes that only add noise.

At each noise level sigma the images move T times by

    x <- x + alpha score + (2 alpha)^(1/2) z,      alpha = eta sigma^2

whose stationary distribution is nearly q(x_t); then the next, smaller sigma. If the data are a point, from which x has
a variance of s^2 sigma^2, a move has s^2 <- (1 - eta)^2 s^2 + 2 eta (Song & Ermon, 2020, Proposition 3).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import StepStream, fold_in, image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.process import Grid, Point, take
from diffusion_jax.samplers.loop import Sampler, State, refined_cost

NUM_MOVES = Option(
    kinds.Int(1, 1_000_000),
    "moves at each noise level, one evaluation each",
    field="langevin_steps",
)
STEP_SIZE = Option(
    kinds.Float(0, 2, open=True),
    "size of a move relative to the noise's variance; unset: the best for the number of moves, per level",
    field="langevin_step_size",
)


def langevin(
    grid: Grid,
    *,
    num_moves: Annotated[int, NUM_MOVES] = 5,
    step_size: Annotated[float | None, STEP_SIZE] = None,
) -> Sampler:
    """Returns annealed Langevin dynamics: step i goes on to the noise level of point i + 1, and moves T times there.

    So x at every point has the noise of that point; point 0 needs no moves, since x comes from the
    process's prior. The step to the data is the denoising one of Jolicoeur-Martineau et al. (2021): it ends at
    x0_hat. There are T (N - 1) + 1 evaluations.

    Args:
      grid: Points from noise to data of a process that keeps the signal: VE or NCSN.
      num_moves: T, moves at each noise level, 1 or more.
      step_size: eta, in (0, 2); epsilon / sigma_L^2 of the paper of 2020, half of that of 2019. None: that
        of `step_sizes` for each step.

    Raises:
      InputError: The grid's signal changes, or an option is out of range.
    """
    if num_moves < 1:
        raise InputError(f"num_moves is {num_moves!r}; it must be 1 or more")
    if step_size is not None and not 0 < step_size < 2:
        raise InputError(f"step_size is {step_size!r}; it must be above 0 and below 2")
    if (grid.log_signal != 0).any():
        raise InputError(
            f"langevin is for processes that keep the signal (ve, ncsn); it is {grid.signal[0]:.2g} in the grid's noise"
        )
    levels = grid.std[:-1]
    eta = step_size
    if eta is None:
        eta = step_sizes(levels[:-1] / levels[1:], num_moves)
    size = np.append(eta * np.square(levels[1:]), 0.0)

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        level = grid.at(jnp.minimum(i + 1, grid.num_steps - 1))  # There is no score at the data.
        return moves(denoise, state, level, take(size, i), keys, range(1))

    def refine(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        others = range(1, num_moves)
        return moves(denoise, state, grid.at(i + 1), take(size, i), keys, others)

    return Sampler(grid, step, refine=refine, cost=refined_cost(grid, num_moves - 1))


def moves(
    denoise: Denoise,
    state: State,
    point: Point,
    size: Float[Array, ""],
    keys: Key[Array, " b"],
    numbers: range,
) -> State:
    """Returns the state after moves x + size score + (2 size)^(1/2) z, with the x0_hat of the last.

    Args:
      denoise: (x_t, point) -> Prediction.
      state: Images at that point.
      point: Their point, before and after.
      size: alpha; 0: the images stay.
      keys: Keys of the images' current step; the noise of each move has its own stream.
      numbers: Indices of the moves within the step, consecutive.
    """
    own = fold_in(keys, StepStream.MOVES)

    def move(k: Int[Array, ""], state: State) -> State:
        prediction = denoise(state.x, point)
        noise = jnp.sqrt(2 * size) * image_normal(fold_in(own, k), state.x.shape[1:])
        return State(state.x + size * prediction.score + noise, prediction.x0)

    return jax.lax.fori_loop(numbers.start, numbers.stop, move, state)


def step_sizes(ratio: Float[np.ndarray, " n"], moves: int) -> Float[np.ndarray, " n"]:
    """Returns the eta with which the variance follows sigma best, Technique 4 of Song & Ermon (2020), in float64.

    Images that arrive with s^2 = ratio^2, the variance of the level before, have after T moves

        s^2 = (1 - eta)^(2 T) (ratio^2 - c) + c,       c = 2 eta / (1 - (1 - eta)^2) = 2 / (2 - eta),

    which exceeds 1 for every eta, from too little mixing or too long moves. Its minimum is where its derivative
    changes sign, once in (0, 1); found by bisection. The paper has one eta for its geometric sigmas; here each step has
    the one of its own ratio, which is the same there, so that any grid works.

    Args:
      ratio: Previous noise level over the current one, above 1, of each step.
      moves: T, moves at each level, 1 or more.
    """
    low, high = np.zeros_like(ratio), np.ones_like(ratio)
    for _ in range(60):
        eta = (low + high) / 2
        c, kept = 2 / (2 - eta), (1 - eta) ** (2 * moves)
        slope = c**2 / 2 * (1 - kept) - 2 * moves * kept / (1 - eta) * (ratio**2 - c)
        low, high = np.where(slope < 0, eta, low), np.where(slope < 0, high, eta)
    return (low + high) / 2
