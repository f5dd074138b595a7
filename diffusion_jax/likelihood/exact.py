"""The exact likelihood of the probability-flow ODE (Song et al., 2021, Section 4.3 and Appendix D.2).

Along dy/dt = f(y, t) the log density of y changes by minus the divergence of f (Chen et al., 2018), so from the data at
t = a to the prior at t = b

    log p_a(y_a) = log p_b(y_b) + integral of div f(y_t, t) dt from a to b.

The divergence is exact or estimated (`divergence.py`). An image keeps its probes along the path, so the integrand is
smooth.

For a Gaussian process, the ODE is solved in z = x_t / r and s = log(std / signal) (`models/flow.py`), where
r^2 = signal^2 + std^2: with D dimensions, log p(x) = log p(z) - D log r at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from diffusion_jax.errors import expect
from diffusion_jax.keys import ExactLikelihoodStream, fold_in
from diffusion_jax.likelihood.decoder import check_levels
from diffusion_jax.likelihood.divergence import (
    Divergence,
    draw_probes,
    exact_divergence,
    hutchinson,
)
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.models.flow import field_of, level
from diffusion_jax.processes.dynamics import normal_prior
from diffusion_jax.processes.gaussian import per_image
from diffusion_jax.processes.ode import Field, solve
from diffusion_jax.processes.process import Grid, Process

LEVELS_PER_UNIT = 127.5  # For pixels in [-1, 1].


class Likelihood(NamedTuple):
    """Likelihood of each image; NaN where the solution did not reach the prior.

    Attributes:
      log_likelihood: log p(x) in nats, of all dimensions together.
      evaluations: Number of evaluations of the field, each with one derivative per probe.
      finished: Whether the solution reached the prior: False if max_steps was exhausted.
      reached: Time reached; for a Gaussian process, log(std / signal).
    """

    log_likelihood: Float[Array, " b"]
    evaluations: Int[Array, " b"]
    finished: Bool[Array, " b"]
    reached: Float[Array, " b"]


def flow_likelihood(
    field: Field,
    x: Float[Array, " b *dims"],
    start: Float[Array, " b"],
    stop: Float[Array, " b"],
    log_prior: Callable[[Float[Array, " b *dims"]], Float[Array, " b"]],
    divergence: Divergence = exact_divergence,
    **tolerances: Any,
) -> Likelihood:
    """Returns log p(x) for a custom flow, such as that of an SDE; works inside `jit` and eagerly.

    The integral of the divergence is solved along with x, per dimension, so the tolerances apply to it as to a pixel.

    Args:
      field: (x, t) -> dx/dt, row by row.
      x: Values at `start`.
      start: Time of x, image by image.
      stop: Time of the prior.
      log_prior: x -> log density of the prior in nats, image by image.
      divergence: `exact_divergence`, or `hutchinson(draw_probes(...))`.
      **tolerances: rtol, atol and max_steps of `processes.ode.solve`.
    """
    dims = math.prod(x.shape[1:])

    def augmented(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        slope, trace = divergence(lambda y: field(y, t), state[0])
        return slope, trace / dims

    solution = solve(augmented, (x, jnp.zeros_like(start)), start, stop, **tolerances)
    end, integral = solution.y
    log_p = log_prior(end) + dims * integral
    log_p = jnp.where(solution.stats.finished, log_p, jnp.nan)
    return Likelihood(log_p, *solution.stats)


def exact_likelihood(
    denoise: Denoise,
    grid: Grid,
    process: Process,
    x: Float[Array, " b *dims"],
    divergence: Divergence = exact_divergence,
    **tolerances: Any,
) -> Likelihood:
    """Returns log p(x) of the model, in nats; works inside `jit` and eagerly.

    As in Song et al., x is taken to lie at the start of the flow, the grid's last point before the data, whose noise is
    so small (for u_min = 1e-5 a standard deviation of 1e-3 in VP, 1e-6 in sub-VP) that images are not noised first.

    Args:
      denoise: (x_t, point) -> Prediction. Clipping would give the flow of another model, with kinks.
      grid: A grid of the process. Its first point is the prior, and x lies at its last before the data;
        `make_grid(process, 2)` has no others.
      process: The process that the denoiser was trained on.
      x: Images with continuous values; for those of 256 levels see `dequantized_likelihood`.
      divergence: `exact_divergence` for a few dimensions, `hutchinson(draw_probes(...))` for images.
      **tolerances: rtol, atol and max_steps of `processes.ode.solve`.

    Example:
      >>> def denoise(x_t, point):  # Of data that are standard normal.
      ...     return dj.models.complete(point, point.signal[:, None] * x_t, point.std[:, None] * x_t)
      >>> grid = dj.make_grid(dj.VP(), 2)
      >>> found = dj.exact_likelihood(denoise, grid, dj.VP(), jnp.zeros((1, 2)))
      >>> found.log_likelihood.round(3)  # -log(2 pi)
      Array([-1.838], dtype=float32)
    """
    _check(denoise, grid, process)
    dims, prior = math.prod(x.shape[1:]), normal_prior(grid.prior_std)
    first, last = (grid.at(jnp.full(len(x), i)) for i in (grid.num_steps - 1, 0))

    def log_prior(z: Float[Array, " b *dims"]) -> Float[Array, " b"]:
        # x = r z, at the prior and at the start.
        log_scale = jnp.log(last.scale) - jnp.log(first.scale)
        return prior.log_density(per_image(last.scale, z) * z) + dims * log_scale

    z = x / per_image(first.scale, x)
    field = field_of(denoise, process)
    return flow_likelihood(field, z, level(first), level(last), log_prior, divergence, **tolerances)


def _check(denoise: Denoise, grid: Grid, process: Process) -> None:
    expect("denoise", denoise, Callable, "a denoiser, such as DiffusionModel.denoiser returns")
    expect("grid", grid, Grid, "a Grid, such as make_grid(process, 2)")
    expect("process", process, Process, "a process, such as VP()")


def dequantized_likelihood(
    denoise: Denoise,
    grid: Grid,
    process: Process,
    images: UInt8[Array, " b *dims"] | Float[Array, " b *dims"],
    keys: Key[Array, " b"],
    *,
    num_probes: int = 1,
    probes: str = "rademacher",
    **tolerances: Any,
) -> Likelihood:
    """Returns log p(x) of one dequantization of each image of 256 levels; see `bits_per_dim`.

    Args:
      denoise: (x_t, point) -> Prediction.
      grid: A grid of the process; see `exact_likelihood`.
      process: The process that the denoiser was trained on.
      images: Images of 256 levels; see `dequantize`.
      keys: One key per image, for its dequantization and its probes.
      num_probes: Probes per image.
      probes: A key of `PROBES`.
      **tolerances: rtol, atol and max_steps of `processes.ode.solve`.

    Raises:
      InputError: Images without 256 levels, unless they are traced; unknown probes.
    """
    _check(denoise, grid, process)
    x = dequantize(images, fold_in(keys, ExactLikelihoodStream.DEQUANTIZATION))
    probe_keys = fold_in(keys, ExactLikelihoodStream.PROBES)
    drawn = draw_probes(probe_keys, x.shape[1:], num_probes, probes)
    return exact_likelihood(denoise, grid, process, x, hutchinson(drawn), **tolerances)


def dequantize(
    images: UInt8[Array, " b *dims"] | Float[Array, " b *dims"], keys: Key[Array, " b"]
) -> Float[Array, " b *dims"]:
    """Returns k / 127.5 - 1 + (2 u - 1) / 255 for level k, with u uniform in [0, 1): uniform over the level's bin.

    Args:
      images: Levels 0 to 255 as integers, or k / 127.5 - 1 as numbers.
      keys: One key per image.

    Raises:
      InputError: Numbers other than the 256 levels, unless they are traced.
    """
    if images.dtype == jnp.uint8:
        x0 = images.astype(jnp.float32) / LEVELS_PER_UNIT - 1
    else:
        if not isinstance(images, Tracer):
            check_levels(images)
        x0 = images

    def uniform(key: Key[Array, ""]) -> Float[Array, ...]:
        return jax.random.uniform(key, (math.prod(x0.shape[1:]),)).reshape(x0.shape[1:])

    return x0 + (2 * jax.vmap(uniform)(keys) - 1) / 255


def bits_per_dim(log_likelihood: Float[Array, " b"], dims: int) -> Float[Array, " b"]:
    """Returns -log2 p(x) / D + log2 127.5: the bits of a level, at most, of dequantized images in [-1, 1].

    The bin of a level is 1 / 127.5 wide, so the level has the probability P = E_u[p(x(u))] / 127.5^D, and by Jensen's
    inequality -log2 P is at most E_u[-log2 p(x(u))] + D log2 127.5. One dequantization is a draw of the right side.

    Args:
      log_likelihood: log p(x) in nats, of x from `dequantize`.
      dims: Number D of dimensions of an image.

    Example:
      >>> uniform = jnp.array([100 * np.log(0.5)])  # Of 100 dimensions, each in [-1, 1].
      >>> dj.likelihood.bits_per_dim(uniform, 100).round(3)
      Array([7.994], dtype=float32)
    """
    return -log_likelihood / (dims * math.log(2)) + math.log2(LEVELS_PER_UNIT)
