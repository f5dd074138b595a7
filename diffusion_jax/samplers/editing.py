"""Image editing: inpainting, coloring, enlarging, and image-to-image.

An orthogonal projection P of x_t = signal x_0 + std eps is signal P x_0 + std P eps, and P eps is normal noise in its
subspace: so the known part of x_0, be it some pixels, the gray values or the means of blocks, is known of every x_t
(Song et al., 2021, Appendix I). A `Constraint` sets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax.errors import InputError
from diffusion_jax.keys import StepStream, fold_in, image_normal
from diffusion_jax.models.denoiser import Denoise
from diffusion_jax.options import Component, Option, Registry, kinds
from diffusion_jax.processes.gaussian import per_image, q_sample
from diffusion_jax.processes.ode import SolverStats
from diffusion_jax.processes.process import Grid, take
from diffusion_jax.samplers.loop import (
    Sampler,
    SampleResult,
    State,
    continuation_keys,
    equal_stats,
    first_noise,
    sample_loop,
    step_keys,
)

# (images, images with the known part) -> the first with the known part of the second
Constraint = Callable[[Float[Array, "b h w c"], Float[Array, "b h w c"]], Float[Array, "b h w c"]]
Shape = tuple[int, int, int]  # (H, W, C)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601; a sum of the channels, as Pillow makes gray images.


def project_pixels(mask: Bool[np.ndarray, "h w"]) -> Constraint:
    """Returns the constraint that keeps the pixels marked True, for inpainting."""
    return lambda images, given: jnp.where(mask[None, :, :, None], given, images)


def project_gray() -> Constraint:
    """Returns the constraint that keeps the gray values of RGB images, for coloring: x + w (w . (x' - x)) / (w . w).

    w are the weights of `LUMA`. Given images may be gray, with three equal channels.
    """
    weights = np.asarray(LUMA, np.float32)

    def constraint(images: Array, given: Array) -> Array:
        gray = jnp.sum((given - images) * weights[None, None, None, :], -1, keepdims=True)
        return images + gray * (weights / np.square(weights).sum())[None, None, None, :]

    return constraint


def project_blocks(
    factor: Annotated[
        int,
        Option(kinds.Int(2, 16_384), "side of the blocks, the factor of enlargement", default=4),
    ],
) -> Constraint:
    """Returns the constraint that keeps the mean of each block of factor x factor pixels, for enlarging.

    Args:
      factor: Divisor of height and width.
    """

    def constraint(images: Array, given: Array) -> Array:
        b, h, w, c = images.shape
        blocks = (given - images).reshape(b, h // factor, factor, w // factor, factor, c)
        mean = jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape)
        return images + mean.reshape(images.shape)

    return constraint


def project_nothing() -> Constraint:
    """Returns the constraint that keeps nothing, for image-to-image: only the start x_t is given."""
    return lambda images, given: images


def as_gray(kept: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the gray values of kept images in all channels; as a projection they have the hue of the weights."""
    return jnp.broadcast_to(kept @ jnp.asarray(LUMA)[:, None], kept.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class ConstraintKind(Component[Constraint]):
    """A constraint; `make` maps the mask, if it asks for it, and its options to a `Constraint`.

    Attributes:
      misfit: ((H, W, C), options by field) -> why images have no such part, in terms of the config; None if they do.
      keeps_part: Whether it keeps a part of the image; otherwise an edit needs a start.
      as_shown: Images of the kept part -> how a picture shows them.
    """

    misfit: Callable[[Shape, Mapping[str, Any]], str | None] = lambda shape, options: None
    keeps_part: bool = True
    as_shown: Callable[[Array], Array] = lambda kept: kept


def _without_colors(shape: Shape, options: Mapping[str, Any]) -> str | None:
    if shape[2] == 3:
        return None
    return f"edit.keep is 'gray', but the images have no colors: they have {shape[2]} channel"


def _not_divided(shape: Shape, options: Mapping[str, Any]) -> str | None:
    factor = options["factor"]
    if not shape[0] % factor and not shape[1] % factor:
        return None
    return f"edit.factor is {factor}; it must divide the images' {shape[0]}x{shape[1]}"


CONSTRAINTS: Registry[ConstraintKind] = Registry(
    "edit.keep",
    {
        "mask": ConstraintKind(project_pixels, "pixels"),
        "gray": ConstraintKind(
            project_gray, "gray values", misfit=_without_colors, as_shown=as_gray
        ),
        "coarse": ConstraintKind(project_blocks, "means of blocks", misfit=_not_divided),
        "nothing": ConstraintKind(project_nothing, "nothing but a start", keeps_part=False),
    },
    given=("mask",),
    aliases={"grey": "gray"},
)


def replaced(sampler: Sampler, constraint: Constraint, x0: Float[Array, "b h w c"]) -> Sampler:
    """Returns the sampler that sets the known part of x0, noised, after each step; after the last, x0's own.

    The noise is fresh in each step (Lugmayr et al., 2022, Eq. 8).

    Args:
      sampler: Any update rule.
      constraint: The known part.
      x0: Images with the known part, in [-1, 1].
    """

    def step(denoise: Denoise, state: State, i: Int[Array, ""], keys: Key[Array, " b"]) -> State:
        after = sampler.advance(denoise, state, i, keys)
        eps = image_normal(fold_in(keys, StepStream.KNOWN_PART), x0.shape[1:])
        given = q_sample(sampler.grid.at(jnp.full(x0.shape[:1], i + 1)), x0, eps)
        return after._replace(x=constraint(after.x, given), x0_hat=constraint(after.x0_hat, x0))

    return sampler._replace(step=step, refine=None)


def inpaint(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    x0: Float[Array, "b h w c"],
    constraint: Constraint,
    *,
    start: int = 0,
    resamplings: int = 1,
    jump: int = 10,
) -> SampleResult:
    """Draws images with the known part of x0; call inside `jit`.

    Replacement alone (resamplings = 1) draws the rest without matching it to the known part. RePaint (Lugmayr et al.,
    2022, Algorithm 1) harmonizes both: after every `jump` steps the images are noised back by these steps, which are
    then repeated; here the segments at both ends too.

    Args:
      denoise: (x_t, point) -> Prediction.
      sampler: Update rule. One with memory starts each segment of `jump` steps without it.
      keys: One key per image.
      x0: Images with the known part, in [-1, 1]; the other part matters only if start > 0.
      constraint: The known part, such as `project_pixels(mask)`.
      start: Index of the start point. 0: pure noise; else x0 with the noise of that point (SDEdit: Meng et al.,
        2022), so the later, the more of x0 remains.
      resamplings: Number of passes over each segment, 1 or more; see `inpaint_nfe` for the cost.
      jump: Steps per segment.

    Raises:
      InputError: start outside {0, ..., num_steps - 1}, or resamplings or jump below 1.
    """
    num_steps = sampler.grid.num_steps
    check_edit(num_steps, start, resamplings, jump)
    rule, shape = replaced(sampler, constraint, x0), x0.shape[1:]
    noise = first_noise(keys, shape)
    at_start = sampler.grid.at(jnp.full(keys.shape, start))
    x = sampler.prior_std * noise if start == 0 else q_sample(at_start, x0, noise)
    if resamplings == 1:
        return sample_loop(denoise, rule, keys, shape, x_init=x, start=start)

    def stretch(k: Int[Array, ""], carry: tuple[Array, SolverStats]) -> tuple[Array, SolverStats]:
        first = start + k * jump
        last = jnp.minimum(first + jump, num_steps)

        def again(r: Int[Array, ""], carry: tuple[Array, SolverStats]) -> tuple[Array, SolverStats]:
            (x, before), own = carry, continuation_keys(keys, r)
            run = sample_loop(denoise, rule, own, shape, x_init=x, start=first, stop=last)
            noised = renoise(sampler.grid, run.images, first, last, own)
            drawn = jnp.where(r == resamplings - 1, run.images, noised)
            return drawn, _together(before, run.stats)

        return jax.lax.fori_loop(0, resamplings, again, carry)

    carry = x, equal_stats(x, 0, sampler.grid.time[start])
    images, stats = jax.lax.fori_loop(0, -(-(num_steps - start) // jump), stretch, carry)
    return SampleResult(images, None, None, stats)


def _together(before: SolverStats, after: SolverStats) -> SolverStats:
    """Returns the statistics of two consecutive runs together."""
    return SolverStats(
        evaluations=before.evaluations + after.evaluations,
        finished=before.finished & after.finished,
        reached=jnp.where(before.finished, after.reached, before.reached),
    )


def inpaint_nfe(
    sampler: Sampler, *, start: int = 0, resamplings: int = 1, jump: int = 10
) -> int | None:
    """Returns the network evaluations per image of `inpaint` with these numbers; None for an adaptive sampler.

    Args:
      sampler: The sampler.
      start: Index of the first step.
      resamplings: Times that each stretch is drawn.
      jump: Steps of a stretch.
    """
    num_steps = sampler.grid.num_steps
    if resamplings == 1:
        return sampler.cost(start, num_steps)
    firsts = range(start, num_steps, jump)
    costs = [sampler.cost(i, min(i + jump, num_steps)) for i in firsts]
    return None if None in costs else resamplings * sum(filter(None, costs))


def renoise(
    grid: Grid,
    x: Float[Array, " b *dims"],
    first: Int[Array, ""],
    last: Int[Array, ""],
    keys: Key[Array, " b"],
) -> Float[Array, " b *dims"]:
    """Returns x_t ~ q(x_t | x_s), where t is point `first` of the grid and s, with less noise, point `last`.

    Its variance, std_t^2 - (signal_t / signal_s)^2 std_s^2, is std_t^2 (1 - SNR_t / SNR_s): no cancellation, and
    correct even for signals below the lower bound of a `Point`.
    """
    i, j = (jnp.full(keys.shape, k) for k in (first, last))
    signal = jnp.exp(take(grid.log_signal, i) - take(grid.log_signal, j))
    std = take(grid.std, i) * jnp.sqrt(-jnp.expm1(take(grid.logsnr, i) - take(grid.logsnr, j)))
    own = fold_in(step_keys(keys, take(grid.time, j)[0]), StepStream.RENOISING)
    noise = image_normal(own, x.shape[1:])
    return per_image(signal, x) * x + per_image(std, x) * noise


def check_edit(num_steps: int, start: int, resamplings: int, jump: int) -> None:
    """Raises an InputError for invalid arguments of `inpaint`."""
    if not 0 <= start < num_steps:
        raise InputError(f"start is {start}; it must be from 0 to {num_steps - 1}")
    for name, value in (("resamplings", resamplings), ("jump", jump)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more")
