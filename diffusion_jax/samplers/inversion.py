"""DDIM's inversion (Song et al., 2021, Section 4.3): from an image to the x_T that it would be sampled from."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import InputError
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.ode import Solution
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import at_one_point, equal_stats


def encoding_nfe(grid: Grid, iterations: int = 0) -> int:
    """Returns the network evaluations per image of `encode`: iterations + 1 per step.

    Args:
      grid: Grid of `encode`.
      iterations: Fixed-point iterations per step.
    """
    return grid.num_steps * (iterations + 1)


def encode(
    denoise: Denoise,
    grid: Grid,
    x0: Float[Array, " b *dims"],
    *,
    iterations: Annotated[
        int,
        Option(
            kinds.Int(0, 10_000),
            "fixed-point iterations per step in finding x_T; 0: plain inversion",
            needs=("latents",),
        ),
    ] = 0,
) -> Solution:
    """Returns the x_T that `ddim(grid)`, given it as `x_init`, decodes to about x0; call inside `jit`.

    A step of the sampler from point t to s is, solved for x_t,

        x_t = signal_{t|s} x_s + (std_t - signal_{t|s} std_s) eps_hat(x_t, t),

    an equation that holds for a clipped prediction too. Plain inversion puts the current eps_hat(x_s, s) on the
    right, whose error falls with the number of steps. Each iteration then inserts the left side on the right (a fixed
    point; it contracts where eps_hat changes little along a step). No network is trained at the data:
    the first step takes eps_hat(signal_t x_0, t).

    Args:
      denoise: (x_t, point) -> Prediction, the same as the sampler's.
      grid: The sampler's grid, from noise to data.
      x0: Clean images.
      iterations: Fixed-point iterations per step, 0 or more, one network evaluation each; see `encoding_nfe`.

    Raises:
      InputError: iterations below 0.
    """
    if iterations < 0:
        raise InputError(f"iterations is {iterations}; it must be 0 or more")
    num_steps, denoise_all = grid.num_steps, at_one_point(denoise)
    ratio = np.exp(grid.log_signal[:-1] - grid.log_signal[1:])
    coef_eps = grid.std[:-1] - ratio * grid.std[1:]

    def step(k: Int[Array, ""], x_s: Float[Array, " b *dims"]) -> Float[Array, " b *dims"]:
        i = num_steps - 1 - k
        scaled = take(ratio, i) * x_s

        def solve(x: Float[Array, " b *dims"], at: Int[Array, ""]) -> Float[Array, " b *dims"]:
            return scaled + take(coef_eps, i) * denoise_all(x, grid.at(at)).eps

        present = jnp.where(k == 0, scaled, x_s)
        x_t = solve(present, jnp.minimum(i + 1, num_steps - 1))
        return jax.lax.fori_loop(0, iterations, lambda _, x: solve(x, i), x_t)

    x_T = jax.lax.fori_loop(0, num_steps, step, x0)
    return Solution(x_T, equal_stats(x_T, encoding_nfe(grid, iterations), grid.time[0]))
