"""DDIM (Song et al., 2021): from the deterministic map of x_T to an image (eta = 0) to ancestral sampling (eta = 1)."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Option, kinds
from diffusion_jax.processes.gaussian import steps
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import Sampler, State


def ddim(
    grid: Grid,
    *,
    eta: Annotated[
        float | Float[Array, ""],
        Option(
            kinds.Float(0, 1),
            "share of fresh noise in a step; 0: none, 1: as ancestral with fixed_small",
            traced=True,
        ),
    ] = 0.0,
) -> Sampler:
    """Returns the update x_s = signal_s x0_hat + (std_s^2 - sigma^2)^(1/2) eps_hat + sigma z, Eq. 12.

    sigma = eta beta_tilde^(1/2), Eq. 16, with the variance beta_tilde of q(x_s | x_t, x_0): the marginals are the same
    for every eta. The last step, to the data, ends at x0_hat.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 50)`.
      eta: Share of fresh noise in each step, in [0, 1]; 1 is `ancestral` with fixed_small. An array may be
        an argument of the compiled program, and is not checked.

    Raises:
      InputError: eta outside [0, 1].

    Example:
      >>> dj.ddim(dj.make_grid(dj.VP(), 50), eta=0.5).nfe  # Evaluations of the network.
      50
    """
    if not isinstance(eta, jax.Array) and not 0 <= eta <= 1:
        raise InputError(f"eta is {eta!r}; it must be from 0 to 1")
    deterministic = not isinstance(eta, jax.Array) and eta == 0
    table = steps(grid)
    std = grid.std[1:]
    # sigma^2 = eta^2 std_s^2 (1 - kept), so eps_hat gets std_s^2 (1 - eta^2 + eta^2 kept): no cancellation.
    kept = np.square(table.signal * std / grid.std[:-1])

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        prediction = denoise(state.x, grid.at(i))
        coef_eps = take(std, i) * jnp.sqrt((1 - eta) * (1 + eta) + eta**2 * take(kept, i))
        x = take(grid.signal[1:], i) * prediction.x0 + coef_eps * prediction.eps
        if not deterministic:
            sigma = eta * take(np.sqrt(table.posterior_variance), i)
            x += sigma * image_normal(keys, x.shape[1:])
        return State(x, prediction.x0)

    return Sampler(grid, step)
