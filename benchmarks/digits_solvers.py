"""The solvers that `digits_samplers.py` measures, each with the spacing and the numbers of steps that suit it.

The spacings were chosen by the same distance on 500 images of seed 0: of uniform, trailing, logsnr, karras and
quadratic in 5 and 10 steps; heun's also of leading and of karras from sigma = 80, 20 and 10, in 3, 5 and 10; pndm's of
leading and trailing in 5 and 10; ancestral sampling's of uniform and trailing in 50, on 300 images.
"""

from typing import NamedTuple

import numpy as np

from diffusion_jax.processes.grid import make_grid
from diffusion_jax.processes.process import Grid, Process
from diffusion_jax.samplers import SAMPLERS, Sampler

ANCESTRAL = "ancestral"  # Its run of the most steps is what the others are held against.


class Solver(NamedTuple):
    """Where a solver is measured.

    Attributes:
      spacing: Spacing of the grid that suits it, or `FROM_20`.
      steps: Numbers of steps.
    """

    spacing: str
    steps: tuple[int, ...]


# The cosine schedule's sigma = std / signal begins at 20,000, where karras spends most of its steps.
FROM_20 = "karras from sigma = 20"
FAST = (5, 8, 10, 15, 20, 50)
SOLVERS = {
    ANCESTRAL: Solver("uniform", (10, 20, 50, 100, 250, 1000)),
    "ddim": Solver("trailing", (*FAST, 100)),
    "dpmpp_2m": Solver("trailing", FAST),
    "dpmpp_2m_sde": Solver("trailing", FAST),
    "dpmpp_3m": Solver("trailing", FAST),
    "heun": Solver(FROM_20, (3, 5, 10, 25)),
    "pndm": Solver("leading", (2, 3, 6, 11, 41)),
    "unipc": Solver("trailing", FAST),
}


def make_sampler(process: Process, name: str, steps: int, spacing: str) -> Sampler:
    """Returns a solver, with fixed_small if it is ancestral, and the defaults of its other options."""
    grid = grid_of(process, steps, spacing)
    return SAMPLERS[name].from_fields({"variance": "fixed_small"}, grid=grid, process=process)


def grid_of(process: Process, steps: int, spacing: str) -> Grid:
    """Returns a grid of any spacing, or of `FROM_20`: evenly spaced in sigma^(1/7) from 20 to the chain's smallest."""
    if spacing != FROM_20:
        return make_grid(process, steps, spacing)
    first = process.at(np.zeros(1))
    least = float(first.std[0] / np.exp(first.log_signal[0]))
    sigma = np.linspace(20 ** (1 / 7), least ** (1 / 7), steps) ** 7
    return make_grid(process, None, list(process.times_of(-2 * np.log(sigma))))
