"""Ancestral sampling (Ho et al., 2020, Algorithm 2): each step draws from p(x_{t-1} | x_t)."""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from diffusion_jax.errors import choose
from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option
from diffusion_jax.options.kinds import Choice
from diffusion_jax.processes.process import Grid
from diffusion_jax.processes.reverse import VARIANCES, p_posterior
from diffusion_jax.samplers.loop import Sampler, State


def ancestral(
    grid: Grid,
    *,
    variance: Annotated[
        str,
        Option(
            Choice(tuple(VARIANCES)),
            "variance of the steps: beta_t, the posterior's, or the network's; unset: process.variance",
            default=None,
            inherits="process.variance",
        ),
    ] = "fixed_large",
) -> Sampler:
    """Returns the update x_s = mu(x_t, x0_hat) + variance^(1/2) z, with z = 0 in the step to the data.

    mu is the mean of q(x_s | x_t, x_0) at the predicted x_0, Eq. 6-7. With far fewer steps than the chain,
    fixed_large adds much more noise than the posterior has: use fixed_small, or learned if the network supports it.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 50)`.
      variance: fixed_large (beta_t), fixed_small (beta_tilde_t), or learned (predicted, between the two).

    Raises:
      InputError: Unknown variance.

    Example:
      >>> process = dj.DDPM(dj.make_schedule("linear", 1000))
      >>> dj.ancestral(dj.make_grid(process, 100), variance="fixed_small").nfe
      100
    """
    choose("variance", variance, VARIANCES)

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        prediction = denoise(state.x, grid.at(i))
        p = p_posterior(
            grid,
            prediction.x0,
            state.x,
            step=jnp.full(state.x.shape[:1], i),
            variance=variance,
            fraction=prediction.fraction,
        )
        noise = jnp.sqrt(p.variance) * image_normal(keys, state.x.shape[1:])
        return State(p.mean + noise, prediction.x0)

    return Sampler(grid, step)
