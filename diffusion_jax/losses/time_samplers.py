"""Time samplers: the distribution of the times of a batch, and weights that correct for it.

Times are drawn as u in [0, 1), which `training_time` maps to those of the process. Weights correct for uneven
distributions, so only the variance of the mean of weight * loss depends on the sampler, not its expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.options import Component, Option, Registry, kinds
from diffusion_jax.processes.grid import check_u_min, on_host
from diffusion_jax.processes.process import Process, are_counted, levels_of

GRID = 2**24  # u is a multiple of 1 / GRID: the resolution of float32 below 1.
KEPT = 10  # Losses per bin that count.
EVEN_SHARE = 0.001  # Share of times drawn evenly, so no weight exceeds 1 / EVEN_SHARE.
NUM_BINS = 1000
SMALLEST_U = 1e-5  # As in Song et al. (2021).
NUM_CELLS = 4096
SHORTEST_CELL = 1e-6  # In u.
U_MIN = Option(
    kinds.Float(0, 1, open=True),
    "vp, subvp, ve: smallest u in (0, 1) to train at (not for vlb, hybrid); unset: 1e-5",
    default=None,
)


class TimeSampler(NamedTuple):
    """The distribution of the times of a batch.

    Attributes:
      init: () -> aux, the sampler's state: a pytree of arrays.
      draw: (aux, key, number of images) -> (u, weight of each image).
      update: (aux, u, losses) -> aux after a step; losses are not weighted.
      u_min: Smallest u to train at; ignored by a discrete process.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]
    u_min: float = SMALLEST_U

    def time(self, process: Process, u: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns the process's times for these u; see `training_time`."""
        return training_time(process, u, self.u_min)


def training_time(
    process: Process, u: Float[Array, " b"], u_min: float = SMALLEST_U
) -> Float[Array, " b"]:
    """Returns the training times; uniform u makes all levels of a discrete process equally likely.

    In continuous time, they are uniform above the time of u_min.

    Args:
      process: The process to train on.
      u: In [0, 1), the least noisy first.
      u_min: Smallest u, as a fraction of the time range; ignored by a discrete process.
    """
    levels = levels_of(process)
    if levels is None:
        part = u_min + (1 - u_min) * u
    else:
        level = jnp.minimum(jnp.floor(u * len(levels)), len(levels) - 1)
        if are_counted(levels):
            return level
        part = level / (len(levels) - 1)
    first, last = process.ends
    return first + (last - first) * part


def _evenly(draw_u: Callable[[Array, int], Array], u_min: float) -> TimeSampler:
    """Returns times whose u = draw_u(key, n) is uniform for each image: all weights are 1."""
    check_u_min(u_min, None)
    return TimeSampler(
        init=lambda: (),
        draw=lambda aux, key, n: (draw_u(key, n), jnp.ones(n)),
        update=lambda aux, u, losses: aux,
        u_min=u_min,
    )


def uniform(*, u_min: Annotated[float, U_MIN] = SMALLEST_U) -> TimeSampler:
    """Returns independent times.

    Args:
      u_min: Smallest u to train at, in (0, 1); ignored by a discrete process.
    """
    return _evenly(lambda key, n: jax.random.uniform(key, (n,)), u_min)


def stratified(*, u_min: Annotated[float, U_MIN] = SMALLEST_U) -> TimeSampler:
    """Returns evenly spread times, u_i = i / n + one random offset, modulo 1: one in each n-th part of [0, 1).

    Each u_i is uniform, but the mean over a batch varies less (Kingma et al., 2021, Appendix I.1).

    Args:
      u_min: Smallest u to train at, in (0, 1); ignored by a discrete process.
    """

    def draw_u(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        spread = jnp.asarray(np.arange(n) * GRID // n, jnp.uint32)
        # Sums of integers are exact; rounding could move a u into the next part.
        return ((spread + jax.random.bits(key)) % GRID) * jnp.float32(1 / GRID)

    return _evenly(draw_u, u_min)


class History(NamedTuple):
    """The newest losses of each bin of u.

    Attributes:
      losses: A ring buffer per bin; (bins, KEPT).
      seen: Number of losses, less a multiple of KEPT once the ring is full; in {0, ..., 2 KEPT - 1}. The next
        one goes to slot seen modulo KEPT.
    """

    losses: Float[Array, "bins kept"]
    seen: Int[Array, " bins"]


def remember(history: History, bins: Int[Array, " b"], losses: Float[Array, " b"]) -> History:
    """Returns the history after a batch, with the losses of each bin in batch order."""
    num_bins = len(history.seen)
    new = jnp.zeros(num_bins, jnp.int32).at[bins].add(1)
    order = jnp.argsort(bins, stable=True)
    bins, losses = bins[order], losses[order]
    rank = jnp.arange(len(bins)) - (jnp.cumsum(new) - new)[bins]  # Within its bin.
    slot = (history.seen[bins] + rank) % KEPT
    # Only the last KEPT losses of a bin are written: a GPU may do two writes to one slot in either order.
    row = jnp.where(new[bins] - rank <= KEPT, bins, num_bins)
    seen = history.seen + new
    return History(
        losses=history.losses.at[row, slot].set(losses, mode="drop"),
        seen=jnp.where(seen >= KEPT, KEPT + seen % KEPT, seen),
    )


def probabilities(history: History) -> Float[Array, " bins"]:
    """Returns the probability of each bin: p ~ sqrt(E[L^2]), and a little of 1 / bins.

    Uniform until all rings are full, and while a loss in them is not finite.
    """
    size = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    total, num_bins = size.sum(), len(size)
    known = (history.seen >= KEPT).all() & (total > 0) & jnp.isfinite(total)
    mixed = (1 - EVEN_SHARE) * size / jnp.where(known, total, 1.0) + EVEN_SHARE / num_bins
    return jnp.where(known, mixed, 1 / num_bins)


def importance(
    *, num_bins: int = NUM_BINS, u_min: Annotated[float, U_MIN] = SMALLEST_U
) -> TimeSampler:
    """Returns times drawn in proportion to their losses (Nichol & Dhariwal, 2021, Section 3.3).

    p_t ~ sqrt(E[L_t^2]) over the last ten losses of each bin gives the mean of L_t / p_t the least variance.

    Args:
      num_bins: Number of equal intervals of u, with one probability each; u is the middle of one. Use T for a
        process of T steps.
      u_min: Smallest u to train at, in (0, 1); ignored by a discrete process.
    """
    check_u_min(u_min, None)

    def draw(
        history: History, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        p = probabilities(history)
        # Few random bits, or a sum of p, would be too coarse for the rarest bins.
        bins = jax.random.categorical(key, jnp.log(p), shape=(n,), mode="high")
        return (bins + 0.5) / num_bins, 1 / (num_bins * p[bins])

    def update(history: History, u: Float[Array, " b"], losses: Float[Array, " b"]) -> History:
        bins = jnp.minimum((u * num_bins).astype(jnp.int32), num_bins - 1)
        return remember(history, bins, losses)

    def init() -> History:
        return History(jnp.zeros((num_bins, KEPT)), jnp.zeros(num_bins, jnp.int32))

    return TimeSampler(init, draw, update, u_min)


def likelihood(process: Process, *, u_min: Annotated[float, U_MIN] = SMALLEST_U) -> TimeSampler:
    """Returns times with a density in u proportional to the likelihood weighting, g^2 / std^2 (Song et al., 2021b).

    That is, logsnr is uniform. The density is constant on cells that are short near the data, and an image's weight is
    1 / density: so the expectation of weight * loss is that of uniform times, for every process.

    Args:
      process: The process to train on.
      u_min: Smallest u to train at, in (0, 1); ignored by a discrete process.
    """
    check_u_min(u_min, None)
    process = on_host(process)
    edges = np.append(0.0, np.geomspace(SHORTEST_CELL, 1, NUM_CELLS))
    length = np.diff(edges)
    middle = jnp.asarray((edges[:-1] + edges[1:]) / 2, jnp.float32)
    time = np.asarray(training_time(process, middle, u_min), np.float64)
    density = process.rates(time).diffusion2 / process.at(time).std ** 2
    probability = density * length / (density * length).sum()
    below = np.append(0.0, np.cumsum(probability)[:-1])

    def draw(
        aux: Any, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        of_cell, within = jax.random.uniform(key, (2, n))
        cell = jnp.searchsorted(jnp.asarray(below, jnp.float32), of_cell, side="right") - 1
        first, size, weight = (
            jnp.asarray(values, jnp.float32)[cell]
            for values in (edges[:-1], length, length / probability)
        )
        return jnp.minimum(first + within * size, 1 - 1 / GRID), weight

    return TimeSampler(lambda: (), draw, lambda aux, u, losses: aux, u_min)


TIME_SAMPLERS: Registry[Component[TimeSampler]] = Registry(
    "time sampler",
    {
        "uniform": Component(uniform, "independently"),
        "stratified": Component(stratified, "evenly over a batch"),
        "importance": Component(importance, "more where their losses are large"),
        "likelihood": Component(likelihood, "more where the likelihood weighting is large"),
    },
    given=("process", "num_bins"),
)
