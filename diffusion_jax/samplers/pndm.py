"""PNDM (Liu et al., 2022): a classical solver of order 4 for eps along the chain, with DDIM's step instead of Euler's.

With phi(x_t, eps, t, s) = signal_s / signal_t x_t + (std_s - signal_s / signal_t std_t) eps, DDIM's step, a
step from t to s is phi with an eps combined from several evaluations. The first three steps are pseudo Runge-Kutta,
with m halfway in time between t and s,

    e_1 = eps_hat(x_t, t)                           e_2 = eps_hat(phi(x_t, e_1, t, m), m)
    e_3 = eps_hat(phi(x_t, e_2, t, m), m)           e_4 = eps_hat(phi(x_t, e_3, t, s), s)
    eps = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6,

the others pseudo linear multistep, where e, e', ... are those at x_t and at the steps before:

    eps = (55 e - 59 e' + 37 e'' - 9 e''') / 24.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.processes.grid import process_of
from diffusion_jax.processes.process import Grid, Points, Process, take
from diffusion_jax.samplers.loop import Index, Sampler, State

Coefs = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]

UNEVEN = 2  # The longest step over the shortest: rounding to timesteps alone makes it no more.
TINY_SIGNAL = 1e-3
WARM_UP = 3  # Runge-Kutta steps.
# Adams-Bashforth weights of the last predictions, the newest first: row k for a step that remembers k earlier.
WEIGHTS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


def pndm(grid: Grid, process: Process) -> Sampler:
    """Returns F-PNDM, Algorithm 2 of Liu et al. (2022): deterministic, 4 evaluations in each of the first three steps.

    As the paper proves, the order is 2, with small errors. N >= 4 steps take N + 9 evaluations, fewer take 4 N - 3:
    the network has no eps at the data, so the step to it is not Runge-Kutta, but multistep, of the order that the
    memory allows (one step: x0_hat). With uniform and leading spacing it is shorter than the steps that its weights are
    for; the paper's code does the same, which leaves an error of about 1e-3 there. Every run starts without memory, so
    with Runge-Kutta steps.

    The multistep weights are for evenly spaced times: use uniform, leading or trailing. phi divides by the
    signal, and a combined eps is not clipped: if the last timestep has next to no signal (cosine, jsd), use leading,
    as the paper does.

    Args:
      grid: Points from noise to data, such as `make_grid(process, 20, "leading")`.
      process: The process of the grid.
    """
    halfway = process_of(grid, process).at((grid.time[:-1] + grid.time[1:]) / 2)
    begin, end = (
        Points(grid.time[part], grid.log_signal[part], grid.std[part])
        for part in (slice(-1), slice(1, None))
    )
    to_half, to_end = _transfer(begin, halfway), _transfer(begin, end)

    def init(x: Float[Array, " b *dims"]) -> State:
        return State(x, x, memory=((jnp.zeros_like(x),) * WARM_UP, jnp.int32(0)))

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        past, known = state.memory
        first = denoise(state.x, grid.at(i))

        def phi(eps: Float[Array, " b *dims"], coefs: Coefs) -> Float[Array, " b *dims"]:
            coef_x, coef_eps = (take(c, i) for c in coefs)
            return coef_x * state.x + coef_eps * eps

        def runge_kutta() -> Float[Array, " b *dims"]:
            e_2 = denoise(phi(first.eps, to_half), halfway.at(i)).eps
            e_3 = denoise(phi(e_2, to_half), halfway.at(i)).eps
            e_4 = denoise(phi(e_3, to_end), grid.at(i + 1)).eps
            return (first.eps + 2 * e_2 + 2 * e_3 + e_4) / 6

        to_data = i == grid.num_steps - 1
        eps = jax.lax.cond(
            *((known < WARM_UP) & ~to_data, runge_kutta),
            lambda: _multistep((first.eps, *past), known),
        )
        memory = (first.eps, *past[:-1]), jnp.minimum(known + 1, WARM_UP)
        x = phi(eps, to_end)
        # Result of a step to the data: x0 of the multistep eps.
        return State(x, jnp.where(to_data, x, first.x0), memory)

    def cost(start: Index, stop: Index) -> Index:
        before_data = stop - start - ((stop == grid.num_steps) & (start < stop))
        return stop - start + 3 * sum(before_data > k for k in range(WARM_UP))

    return Sampler(grid, step, init, cost=cost)


def _multistep(
    eps: tuple[Float[Array, " b *dims"], ...], known: Int[Array, ""]
) -> Float[Array, " b *dims"]:
    """Returns the weighted sum of the newest 1 + `known` predictions, the newest first."""
    weights = jnp.asarray(WEIGHTS, jnp.float32)[known]
    terms = [w * e for w, e in zip(weights, eps, strict=True)]
    return sum(terms, start=jnp.zeros_like(eps[0]))


def _transfer(t: Points, s: Points) -> Coefs:
    """Returns the factors of x_t and of eps in phi(x_t, eps, t, s)."""
    ratio = np.exp(s.log_signal - t.log_signal)
    return ratio, s.std - ratio * t.std


def uneven_steps(grid: Grid) -> str | None:
    """Returns a warning if a grid does not suit the multistep weights, or begins with next to no signal, or None."""
    steps = -np.diff(grid.time[:-1])
    if len(steps) > 1 and steps.max() > UNEVEN * steps.min():
        return "pndm is for even steps; set sampler.spacing to leading, uniform or trailing"
    if grid.signal[0] < TINY_SIGNAL:
        return (
            f"pndm divides by the signal, which is {grid.signal[0]:.1e} at t = {grid.time[0]:g}; "
            "set sampler.spacing=leading"
        )
    return None
