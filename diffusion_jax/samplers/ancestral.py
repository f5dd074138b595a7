"""Ancestral sampling (Ho et al., 2020, Algorithm 2): each step draws from p(x_{t-1} | x_t)."""

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.denoiser import Denoise
from diffusion_jax.errors import choose
from diffusion_jax.keys import image_normal
from diffusion_jax.processes.gaussian import Steps, per_image, steps
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import Sampler, State


def _fixed_large(table: Steps) -> Float[np.ndarray, " n"]:
    return table.variance


def _fixed_small(table: Steps) -> Float[np.ndarray, " n"]:
    return table.posterior_variance


# Variance of p(x_s | x_t), Section 3.2: beta_t and beta_tilde_t.
VARIANCES = {"fixed_large": _fixed_large, "fixed_small": _fixed_small}


def ancestral(grid: Grid, *, variance: str = "fixed_large") -> Sampler:
    """Returns the update x_s = mu(x_t, x0_hat) + variance^(1/2) z, with z = 0 in the step to the data.

    mu is the mean of q(x_s | x_t, x_0) at the predicted x_0, Eq. 6-7. With far fewer steps than the chain has,
    fixed_large adds much more noise than the posterior has: take fixed_small.

    Args:
      grid: Points from noise to data, such as `process.grid(50)`.
      variance: fixed_large (beta_t) or fixed_small (beta_tilde_t).

    Raises:
      InputError: Unknown variance.
    """
    table = steps(grid)
    variances = choose("variance", variance, VARIANCES)(table)
    std = np.sqrt(np.where(grid.std[1:] > 0, variances, 0.0))

    def step(denoise: Denoise, state: State, i: Int[Array, " b"], keys: Key[Array, " b"]) -> State:
        coef_x0, coef_xt, noise = (
            per_image(take(values, i), state.x) for values in (table.coef_x0, table.coef_xt, std)
        )
        x0_hat = denoise(state.x, grid.at(i)).x0
        mean = coef_x0 * x0_hat + coef_xt * state.x
        return State(mean + noise * image_normal(keys, state.x.shape[1:]), x0_hat)

    return Sampler(grid, step, nfe=grid.num_steps)
