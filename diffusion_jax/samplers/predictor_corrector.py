"""Predictor-corrector sampling (Song et al., 2021, Algorithms 2 and 3): a step of a solver, then Langevin moves.

The corrector moves images at s within q(x_s), by x <- x + epsilon score + (2 epsilon)^(1/2) z with the paper's

    epsilon = 2 alpha (r |z| / |score|)^2

where alpha is the square of the step's signal_{t|s} (1 for a process that keeps the signal), and r the signal-to-noise
ratio that a move targets. The paper takes the norms' means over a batch. Here they are their sizes in closed form,
D^(1/2) and D^(1/2) / std, so that an image does not depend on its batch: epsilon = 2 alpha (r std)^2.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from jaxtyping import Array, Int, Key

from diffusion_jax.errors import InputError, choose
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.gaussian import steps
from diffusion_jax.processes.grid import process_of
from diffusion_jax.processes.process import Grid, Process, take
from diffusion_jax.samplers.langevin import moves
from diffusion_jax.samplers.loop import Sampler, State, refined_cost
from diffusion_jax.samplers.predictors import PREDICTORS


def predictor_corrector(
    grid: Grid,
    process: Process,
    *,
    predictor: Annotated[str, Option(kinds.Choice(tuple(PREDICTORS)), "rule of each step")] = (
        "reverse_diffusion"
    ),
    corrector_steps: Annotated[
        int,
        Option(
            kinds.Int(0, 10_000),
            "Langevin moves after each step, one evaluation each; 0: none",
            off=0,
        ),
    ] = 1,
    snr: Annotated[
        float,
        Option(
            kinds.Float(0, 1, open=True),
            "signal-to-noise ratio of a move: it adds 2 snr times the noise of x_t, or less",
            needs=("corrector_steps",),
        ),
    ] = 0.16,
) -> Sampler:
    """Returns a predictor with M Langevin moves after each step but the last, to the data, which ends at x0_hat.

    There are (1 + M) (N - 1) + 1 evaluations.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 1000)`.
      process: The process of the grid.
      predictor: A key of `PREDICTORS`.
      corrector_steps: M, 0 or more; 0: the predictor alone.
      snr: r, in (0, 1): at 1 the variance of moved images grows without bound. 0.16 is the paper's.

    Raises:
      InputError: Unknown predictor, or an option out of its range.
    """
    process_of(grid, process)
    predict = choose("predictor", predictor, PREDICTORS)(grid, process)
    if corrector_steps < 0:
        raise InputError(f"corrector_steps is {corrector_steps!r}; it must be 0 or more")
    if not 0 < snr < 1:
        raise InputError(f"snr is {snr!r}; it must be above 0 and below 1")
    if corrector_steps == 0:
        return predict
    size = 2 * np.square(steps(grid).signal * snr * grid.std[1:])  # 0 at the data.

    def refine(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        moved = moves(denoise, state, grid.at(i + 1), take(size, i), keys, range(corrector_steps))
        return state._replace(x=moved.x)

    return predict._replace(refine=refine, cost=refined_cost(grid, corrector_steps))
